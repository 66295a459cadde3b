"""What a run has recorded. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.config import Overrides, texts
from harness.commands.forecast import forecast_run
from harness.commands.replay import replay_all
from harness.commands.report import write_report
from harness.config.read import read_values
from harness.errors import ConfigError
from harness.rundir.outcome import Outcome, read_outcome
from harness.stopping.forecast import Outlook
from harness.stopping.replay import Replay
from harness.tracking.records import METRICS, read_records

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunRecord:
    """What a run directory holds, as it is when it is asked for; see `read_run`."""

    directory: Path

    @property
    def outcome(self) -> Outcome | None:
        """Why and where the last launch ended; None while a run goes on, or after a crash."""
        return read_outcome(self.directory)

    @property
    def config(self) -> Mapping[str, Any]:
        """Its resolved config, as plain values."""
        return read_values(self.directory / "config.yaml")

    @property
    def metrics(self) -> "pd.DataFrame":
        """A row for each record of training and each evaluation, in order, by `step`: `kind`
        ("train" or "eval"), `epoch`, `samples`, `elapsed_s`, and the metrics by name, such as
        val/accuracy; NaN where a record has none.
        """
        import pandas as pd

        rows = [
            {name: value for name, value in record.items() if not isinstance(value, dict | list)}
            for record in self.records
            if record["kind"] != "event"
        ]
        columns = ["step", "kind"] if not rows else None
        return pd.DataFrame(rows, columns=columns).set_index("step")

    @property
    def verdicts(self) -> "pd.DataFrame":
        """What the stop settings said after each evaluation, by `step`: `action`, `reason`,
        `detail`, `new_best`, `warnings`, and all else that a verdict has.
        """
        import pandas as pd

        found = [
            {"step": record["step"], **record["verdict"]}
            for record in self.records
            if record.get("event") == "verdict"
        ]
        return pd.DataFrame(found, columns=["step"] if not found else None).set_index("step")

    @property
    def checkpoints(self) -> Sequence[Mapping[str, Any]]:
        """By step: `path`, `step`, `valid`, `links` (best, latest), `size_bytes`, `metrics`."""
        from harness.commands.checkpoints import list_run

        if not (self.directory / "checkpoints").is_dir():
            return []
        return [row.to_json() for row in list_run(self.directory, "size").rows]

    @cached_property
    def records(self) -> Sequence[Mapping[str, Any]]:
        """All records of metrics.jsonl, those of events too, read once."""
        return list(read_records(self.directory / METRICS))


def read_run(run: str | PathLike[str]) -> RunRecord:
    """What a run has recorded so far, also while it is being trained. Raises ConfigError if there
    is none.
    """
    directory = Path(run)
    if not (directory / "config.yaml").is_file():
        raise ConfigError(f"{directory}: no config.yaml in it. Give the directory of a run.")
    return RunRecord(directory)


def replay(
    history: str | PathLike[str],
    config: str | PathLike[str] | None = None,
    overrides: Overrides = (),
) -> Replay:
    """What stop settings would have decided on a recorded training: a run, a metrics.jsonl or a CSV
    of evaluations. `config`: whose settings, by default the run's own. Raises ConfigError.
    """
    changes = texts(overrides, {})
    return replay_all(Path(history), None if config is None else Path(config), changes)[1][0]


def forecast(
    run: str | PathLike[str],
    config: str | PathLike[str] | None = None,
    overrides: Overrides = (),
    *,
    metric: str | None = None,
) -> list[Outlook]:
    """Where the targets of a run, or one metric, will be at the end of its budget: `band` at 95 %,
    `chance` to reach `value`, `fan` of (step, low, high), `words()`. A run, or a history with a
    `config`. Raises ConfigError.
    """
    changes = texts(overrides, {})
    return forecast_run(Path(run), None if config is None else Path(config), changes, metric)


def report(run: str | PathLike[str]) -> Path:
    """Write one self-contained HTML page with the run's plots; its path. Raises ConfigError."""
    return write_report(Path(run))
