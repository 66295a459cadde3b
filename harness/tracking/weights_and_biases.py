"""One W&B run for all launches of a run.

Online, the server is asked for the last step it has; later rows are sent from metrics.jsonl,
earlier ones never again. So each step appears once, however launches ended. Offline, each launch
writes the whole history so far: the newest file is the run, older ones are prefixes of it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.rundir.outcome import Outcome
from harness.tracking.courier import RunInfo
from harness.tracking.records import Row, class_names
from harness.tracking.settings import WandbConfig
from harness.wording import first_line, own_version

# In its own thread: it delays nothing, and a server may be down for a while
_INIT_S = 300.0
_SYNC_INIT_S = 60.0
# Wandb itself would retry for ever; a launch gives up long before
_FINISH_S = 600.0
# The largest matrix for which a chart is drawn
_LARGEST_TABLE = 100
# Anything else is INFO
_ALERTS = {"diverged": "ERROR", "interrupted": "WARN"}


class WandbRun:
    """A run in W&B. `live`: during training, what cannot be sent is kept offline and alerts are
    sent; otherwise a user is waiting for it to be sent.
    """

    name = "Weights & Biases"

    def __init__(
        self, options: WandbConfig, info: RunInfo, say: Callable[[str], None], *, live: bool
    ) -> None:
        self._options = options
        self._info = info
        self._say = say
        self._live = live
        self._mode = options.mode
        self._broken: set[str] = set()
        self._wandb: Any = None
        self._abandoned = False
        self._lacks = 0
        self._row: Row | None = None
        self._tables: Mapping[str, Any] = {}
        self._classes: Mapping[str, Sequence[str]] = {}
        self._launches: list[dict[str, Any]] = []

    def begin(self) -> int:
        """Resume the run where W&B has it, or create it."""
        # Wandb's error reports to its developers: unsolicited, and noisy without a network
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if self._wandb is not None:
            self._kill()  # left over from a first attempt
        self._wandb, self._row, self._launches = wandb, None, []
        if self._mode == "online" and (trouble := _cannot_log_in(wandb)):
            if self._abandoned or not self._live:
                raise ConnectionError(trouble)
            self._say(
                f"tracking.wandb: {trouble}: working offline. To upload later, run `fermarsi track "
                f"sync {self._info.directory}`."
            )
            self._mode = "offline"
        options, info = self._options, self._info
        self._run: Any = wandb.init(
            id=info.run_id,
            resume="allow" if self._mode == "online" else None,
            reinit="create_new",
            name=options.name or info.name,
            project=options.project,
            entity=options.entity,
            group=options.group,
            notes=options.notes,
            tags=list(options.tags) or None,
            mode=self._mode,
            dir=str(info.directory),
            config={**info.config, "fermarsi": own_version()},
            allow_val_change=True,
            settings=wandb.Settings(
                init_timeout=_INIT_S if self._live else _SYNC_INIT_S,
                finish_timeout=_FINISH_S,
                x_transaction_log_flush_interval=1.0,
                git_root=os.getcwd(),  # the user's code; by default W&B looks in `dir`
                # A sync sends a run, perhaps somebody else's, to where its config says: nothing
                # of this machine and of the code here belongs to it
                disable_git=not self._live,
                disable_code=not self._live,
                x_disable_meta=not self._live,
                console="off",
                silent=True,
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._lacks = self._run.starting_step if self._mode == "online" else 0
        return self._lacks

    def row(self, row: Row) -> None:
        """A row of W&B's history, with W&B's own step too, so that W&B itself refuses to take one
        twice.
        """
        self._run.log({**row.values, "step": row.step}, step=row.step)
        self._row, self._tables = row, row.tables or self._tables

    def event(self, record: Mapping[str, Any]) -> None:
        """The launches and where each resumed, in the config; checkpoints, if enabled,
        as references.
        """
        if record["event"] == "launch":
            self._classes = class_names(record)
            self._launches.append(
                {
                    "launch": record["launch"],
                    "from_step": record["step"],
                    "world_size": record["world_size"],
                }
            )
            self._run.config.update({"launches": self._launches}, allow_val_change=True)
        elif (
            record["event"] == "save"
            and self._options.checkpoints
            and record["step"] >= self._lacks
        ):
            self._send_extra("checkpoints", lambda: self._refer_to(record["save"]))

    def finish(self, outcome: Outcome | None) -> None:
        """The summary; charts of the last matrices and of the time ledger, with the last row; an
        alert.
        """
        if outcome is not None:
            best = {f"best/{name}": value for name, value in (outcome.best or {}).items()}
            time = {f"time/{name}": value for name, value in outcome.time.items()}
            ended = {
                name: getattr(outcome, name)
                for name in ("reason", "detail", "launches", "world_size", "checkpoint", "exact")
            }
            self._run.summary.update({**ended, **best, **time})
            if self._row is not None:
                step = self._row.step
                self._send_extra("charts", lambda: self._run.log(self._charts(outcome), step=step))
            if self._live and self._options.alerts:
                level = getattr(self._wandb.AlertLevel, _ALERTS.get(outcome.reason, "INFO"))
                self._run.alert(f"{self._info.name}: {outcome.reason}", outcome.detail, level=level)
        self._run.finish(exit_code=0 if outcome is not None else 1)

    def abandon(self) -> None:
        """Abandon W&B; what it had not sent yet is in metrics.jsonl."""
        self._abandoned = True
        self._kill()

    def _kill(self) -> None:
        """End W&B's service process, and with it the exit hook that would wait for it."""
        # Wandb's internals may be in any state: no error may reach the training
        with suppress(BaseException):
            self._wandb.sdk.wandb_setup.singleton()._connection._proc._process.kill()
        with suppress(BaseException):
            self._wandb.teardown()

    def _send_extra(self, what: str, call: Callable[[], object]) -> None:
        """Nothing but the history may end the delivery: a server may not support artifacts, and
        tables are artifacts.
        """
        if what not in self._broken:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - see above
                # Any error of a server or of wandb's client
                self._broken.add(what)
                self._say(f"Weights & Biases accepts no {what} in this launch: {first_line(error)}")

    def _charts(self, outcome: Outcome) -> dict[str, Any]:
        table, plot = self._wandb.Table, self._wandb.plot
        seconds = [
            [name.removesuffix("_s"), value]
            for name, value in outcome.time.items()
            if name.endswith("_s")
        ]
        charts = {
            "time": plot.bar(
                table(columns=["account", "seconds"], data=seconds),
                "account",
                "seconds",
                title="time",
            )
        }
        for name, matrix in self._tables.items():
            if isinstance(matrix, list) and len(matrix) <= _LARGEST_TABLE:
                numbers = list(map(str, range(len(matrix))))
                known = self._classes.get(name.partition("/")[2], ())
                names = known if len(known) == len(matrix) else numbers
                cells = [
                    [names[true], names[predicted], count]
                    for true, row in enumerate(matrix)
                    for predicted, count in enumerate(row)
                ]
                columns = ["Actual", "Predicted", "nPredictions"]
                charts[name] = self._wandb.plot_table(
                    "wandb/confusion_matrix/v1",
                    table(columns=columns, data=cells),
                    {one: one for one in columns},
                    {"title": name},
                )
        return charts

    def _refer_to(self, save: Mapping[str, Any]) -> None:
        if save["path"] is None or save["error"] is not None:
            return
        path = Path(save["path"]).resolve()
        if not path.exists():
            return  # replaced by another since
        metadata = {"step": save["step"], "size_bytes": save["size_bytes"]}
        artifact = self._wandb.Artifact(
            f"checkpoint-{self._info.run_id}", type="checkpoint", metadata=metadata
        )
        artifact.add_reference(path.as_uri(), checksum=False)  # the manifest in it has the hashes
        self._run.log_artifact(artifact, aliases=["latest", path.name])


def _cannot_log_in(wandb: Any) -> str | None:
    """Why logging in is not possible, None if it is.

    Whether the server takes it shows when the run is opened.
    """
    try:
        wandb.setup(settings=wandb.Settings(mode="online", silent=True))
        return (
            None
            if wandb.login(prompt=False)
            else "no API key (set WANDB_API_KEY or run `wandb login`)"
        )
    except Exception as error:  # noqa: BLE001 - see above
        # E.g. a malformed key or settings file
        return first_line(error)
