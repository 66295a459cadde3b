"""The records of one launch. Rank 0 alone writes; on other ranks every call does nothing."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from harness.checkpoint.write import SaveReport
from harness.console import Console
from harness.errors import CheckpointError
from harness.rundir.outcome import Outcome
from harness.stopping.verdict import Best, Verdict
from harness.tracking.backends import open_backends
from harness.tracking.courier import Courier, RunInfo
from harness.tracking.records import METRICS, cut_back
from harness.tracking.settings import TrackingConfig
from harness.tracking.tables import to_record

# What an interrupted launch, which has little time, spends on sending pending records
_INTERRUPTED_S = 10.0
_FAILED_S = 2.0  # a launch that fails: other ranks may wait for this one to exit


class Tracker:
    """The records of one launch, from the step it starts at: to metrics.jsonl and the console, from
    there to the backends of the config.
    """

    def __init__(self, directory: Path, console: Console, *, enabled: bool) -> None:
        self.console = console
        self._path = directory / METRICS if enabled else None
        self._couriers: list[Courier] = []
        self._timeout_s = _FAILED_S

    def begin(self, tracking: TrackingConfig, run: RunInfo, step: int) -> None:
        """Cut metrics.jsonl back to `step` and start the backends.

        Raises CheckpointError if the file cannot be written.
        """
        if self._path is None:
            return
        try:
            cut_back(self._path, step)
        except OSError as error:
            raise CheckpointError(
                f"{self._path}: {error.strerror}. Make the run directory writable or choose "
                "another run.dir."
            ) from error
        self._timeout_s = tracking.timeout_s
        self._couriers = [
            Courier(backend, self._path.parent, self.warn)
            for backend in open_backends(tracking, run, self.warn)
        ]

    def train(self, record: Mapping[str, Any]) -> None:
        """Training losses since the last record."""
        self._write("train", record)
        self.console.training(record)

    def evaluation(self, record: Mapping[str, Any], tables: Mapping[str, NDArray[Any]]) -> None:
        """Metrics of an evaluation; `tables`: matrices (R, C) by name, e.g. val/confusion."""
        if self._path is None:
            return
        kept: dict[str, Any] = {}
        for name, table in tables.items():
            try:
                kept[name] = to_record(self._path.parent, name, table)
            except OSError as error:
                self.warn(f"the table {name} is not to_record: {error.strerror}")
        self._write("eval", {**record, **({"tables": kept} if kept else {})})
        self.console.evaluation(record)

    def verdict(
        self, verdict: Verdict, position: Mapping[str, Any], best: Best | None = None
    ) -> None:
        """A verdict of the stop controller. best: of the run so far."""
        self._write("event", {**position, "event": "verdict", "verdict": verdict.to_json()})
        self.console.verdict(verdict, best)

    def save(self, report: SaveReport, position: Mapping[str, Any]) -> None:
        """The result of a save."""
        self._write("event", {**position, "event": "save", "save": report.to_json()})
        if report.warning is not None:
            self.warn(f"the checkpoint of step {report.step} is safe; beside it: {report.warning}")
        if report.error is not None:
            self.console.say(
                f"warning: the checkpoint of step {report.step} was not saved; training continues: "
                f"{report.error}"
            )

    def event(self, name: str, position: Mapping[str, Any], **details: Any) -> None:
        """Any other event, e.g. a resume."""
        self._write("event", {**position, "event": name, **details})

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.console.say(f"warning: {text}")

    def finish(self, outcome: Outcome, position: Mapping[str, Any]) -> None:
        """The end of the launch: record the outcome and send pending records."""
        if self._path is None:
            return
        self._write("event", {**position, "event": "outcome", "outcome": outcome.to_json()})
        self.close(outcome)
        self.console.outcome(outcome, self._path.parent)

    def close(self, outcome: Outcome | None = None) -> None:
        """Send pending records within a time limit; also called when a launch fails."""
        self.console.close()
        limit_s = (
            _FAILED_S
            if outcome is None
            else self._timeout_s
            if outcome.is_finished
            else min(_INTERRUPTED_S, self._timeout_s)
        )
        until = time.monotonic() + limit_s
        for courier in self._couriers:
            courier.end(outcome)
        for courier in self._couriers:
            courier.wait(until)
        self._couriers = []

    def _write(self, kind: str, record: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"kind": kind, **record}) + "\n")
        except OSError as error:  # a full disk must not end a training; the console still reports
            self.warn(
                f"{self._path}: a record of step {record.get('step')} was not written: "
                f"{error.strerror}"
            )
