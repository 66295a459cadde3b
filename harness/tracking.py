"""Where a run's records go: metrics.jsonl, which is the truth, the console, and Weights & Biases.

Rank 0 alone writes; on other ranks every call does nothing.
"""

import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.checkpoint import SaveReport
from harness.config import Config, WandbConfig
from harness.console import Console
from harness.errors import CheckpointError
from harness.outcome import Outcome
from harness.stopping import Verdict

METRICS = "metrics.jsonl"
_QUEUE_RECORDS = 10_000
_INIT_TIMEOUT_S = 60.0
_FINISH_TIMEOUT_S = 60.0
_LEAVING_S = 2.0


class Tracker:
    """The records of one launch, from the step it starts at."""

    def __init__(self, directory: Path, console: Console, *, enabled: bool) -> None:
        self.console = console
        self._path = directory / METRICS if enabled else None
        self._wandb: Wandb | None = None

    def begin(self, config: Config, run_id: str, step: int) -> None:
        """Cut metrics.jsonl back to `step` and start W&B. Raises CheckpointError if the file cannot be written."""
        if self._path is None:
            return
        try:
            cut_back(self._path, step)
        except OSError as error:
            raise CheckpointError(f"{self._path}: {error.strerror}. Make the run directory writable or choose another run.dir.") from error
        if config.tracking.wandb is not None:
            self._wandb = Wandb(config.tracking.wandb, config, run_id, self._path, step, self.warn)

    def train(self, record: Mapping[str, Any]) -> None:
        """The training losses since the last record."""
        self._write("train", record)
        self.console.training(record)

    def evaluation(self, record: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
        """Metrics of an evaluation; `tables`: matrices by name, e.g. val/confusion."""
        self._write("eval", {**record, **({"tables": tables} if tables else {})})
        self.console.evaluation(record)

    def verdict(self, verdict: Verdict, position: Mapping[str, Any]) -> None:
        """What the stop controller said."""
        self._write("event", {**position, "event": "verdict", "verdict": verdict.to_json()})
        for warning in verdict.warnings:
            self.console.say(f"warning: {warning}")
        if verdict.stops:
            self.console.close()
            self.console.say(f"stop: {verdict.reason}: {verdict.detail}")

    def save(self, report: SaveReport, position: Mapping[str, Any]) -> None:
        """How a save ended."""
        self._write("event", {**position, "event": "save", "save": report.to_json()})
        if report.warning is not None:
            self.warn(f"the checkpoint of step {report.step} is safe, but tidying up after it failed: {report.warning}")
        if report.error is not None:
            self.console.say(f"warning: the checkpoint of step {report.step} was not saved, training goes on: {report.error}")

    def event(self, name: str, position: Mapping[str, Any], **details: Any) -> None:
        """Anything else worth keeping, e.g. a resume."""
        self._write("event", {**position, "event": name, **details})

    def warn(self, text: str) -> None:
        """A line for people."""
        self.console.say(f"warning: {text}")

    def finish(self, outcome: Outcome, position: Mapping[str, Any]) -> None:
        """The end of the launch: the outcome is recorded, and what waits to be sent is sent."""
        self._write("event", {**position, "event": "outcome", "outcome": outcome.to_json()})
        self.close(outcome)
        self.console.outcome(outcome)

    def close(self, outcome: Outcome | None = None) -> None:
        """Send what waits, within a time limit; also called when a launch fails."""
        self.console.close()
        if self._wandb is not None:
            self._wandb.finish(outcome)
            self._wandb = None

    def _write(self, kind: str, record: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        whole = {"kind": kind, **record}
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(whole) + "\n")
        except OSError as error:  # a full disk must not end a training; the console still tells
            self.warn(f"{self._path}: a record of step {record.get('step')} was not written: {error.strerror}")
        if self._wandb is not None:
            self._wandb.send(whole)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl; half a line that a crash left at the end is passed over."""
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record


def cut_back(path: Path, step: int) -> None:
    """Drop the records after `step`: the steps they tell of will be done again. Raises OSError."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in read_records(path) if record.get("step", 0) <= step)
    os.replace(temporary, path)


class Wandb:
    """One W&B run through all launches, fed by a thread with a bounded queue: nothing it does can delay or end the training.

    Online, what the server lacks up to the launch's first step is sent again from metrics.jsonl, and what it has is not sent twice.
    """

    def __init__(self, options: WandbConfig, config: Config, run_id: str, metrics: Path, step: int, warn: Callable[[str], None]) -> None:
        self._options = options
        self._mode = options.mode
        self._config = config
        self._run_id = run_id
        self._metrics = metrics
        self._step = step
        self._warn = warn
        self._records: queue.Queue[dict[str, Any] | None] = queue.Queue(_QUEUE_RECORDS)
        self._outcome: Outcome | None = None
        self._off = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def send(self, record: dict[str, Any]) -> None:
        """Queue a record; a full queue drops it with one warning (it stays in metrics.jsonl)."""
        if self._off:
            return
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self._fail("is too slow: its queue is full")

    def finish(self, outcome: Outcome | None) -> None:
        """Send what waits and end W&B's run, within a time limit: a short one after a failure, when other ranks wait for this one to go."""
        self._outcome = outcome
        if not self._off:
            limit_s = _LEAVING_S if outcome is None else _INIT_TIMEOUT_S + _FINISH_TIMEOUT_S
            with suppress(queue.Full):
                self._records.put(None, timeout=limit_s)
            self._thread.join(limit_s)
            if self._thread.is_alive():
                self._fail("did not finish in time")

    def _fail(self, why: str) -> None:
        self._off = True
        self._warn(f"Weights & Biases {why}; tracking there is off for this launch, {self._metrics} has everything.")

    def _work(self) -> None:
        try:
            run = self._start()
            have = run.starting_step if self._mode == "online" else self._step + 1
            for record in read_records(self._metrics):
                if have <= record.get("step", 0) <= self._step:
                    _log(run, record)
            while (sent := self._records.get()) is not None:
                if sent.get("step", 0) >= have:
                    _log(run, sent)
            if self._outcome is not None:
                run.summary.update({"reason": self._outcome.reason, "detail": self._outcome.detail, "best": dict(self._outcome.best or {})})
                run.summary.update({f"time/{name}": value for name, value in self._outcome.time.items()})
            run.finish(exit_code=0)
        except BaseException as error:  # noqa: BLE001 - wandb raises whatever its service process died of, SystemExit included
            self._fail(f"failed ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})")

    def _start(self) -> Any:
        import wandb

        mode = self._options.mode
        if mode == "online" and (trouble := _cannot_log_in(wandb)):
            self._warn(f"tracking.wandb: {trouble}: working offline; `wandb sync` sends later what was kept.")
            mode = self._mode = "offline"
        return wandb.init(
            id=self._run_id,
            resume="allow" if mode == "online" else None,
            name=self._options.name or self._config.run.name,
            project=self._options.project,
            entity=self._options.entity,
            group=self._options.group,
            notes=self._options.notes,
            tags=list(self._options.tags) or None,
            mode=mode,
            dir=str(self._metrics.parent),
            config=self._config.model_dump(mode="json"),
            settings=wandb.Settings(
                init_timeout=_INIT_TIMEOUT_S, finish_timeout=_FINISH_TIMEOUT_S, x_transaction_log_flush_interval=1.0, console="off", silent=True
            ),
        )


def _cannot_log_in(wandb: Any) -> str | None:
    """Why W&B cannot be reached with a key, None if it can."""
    try:
        return None if wandb.login(prompt=False) else "no API key (set WANDB_API_KEY or run `wandb login`)"
    except Exception as error:  # noqa: BLE001 - no network, a wrong key, a broken service: all the same here
        return str(error).splitlines()[0]


def _log(run: Any, record: Mapping[str, Any]) -> None:
    """Metrics by name on W&B's own step axis; a train and an eval record of one step make one row."""
    if record["kind"] in ("train", "eval"):
        run.log({name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}, step=record["step"])


def evaluations(path: Path) -> Sequence[dict[str, Any]]:
    """The evaluation records of a run, in order."""
    return [record for record in read_records(path) if record.get("kind") == "eval"]
