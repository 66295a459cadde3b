"""Delivery of records: a thread for each backend reads metrics.jsonl as it grows. It never delays
or ends a training.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.rundir.outcome import Outcome
from harness.tracking.records import METRICS, Row, follow
from harness.wording import first_line


@dataclass(frozen=True)
class RunInfo:
    """What a backend knows about a run besides its records.

    `config`: the resolved config as plain values, `config_yaml` as a text.
    """

    name: str
    run_id: str
    directory: Path
    config: Mapping[str, Any]
    config_yaml: str


class Backend(Protocol):
    """Where records are sent besides metrics.jsonl; a user's own class by dotted path works like
    ours, and is made with `run`, a RunInfo, besides the arguments that its config gives.

    Made and called on rank 0, in a thread of its own, but for `abandon`. It may take its time and
    raise anything: no training waits for it. What it holds is always a beginning of the history
    without gaps: rows come in the order of their steps, each once and whole.
    """

    name: str

    def begin(self) -> int:
        """Open it, or open it again after a failure; returns the first step that it lacks, 0 for
        all. Rows of earlier steps are not sent.
        """

    def row(self, row: Row) -> None:
        """Receive the numbers of a step."""

    def event(self, record: Mapping[str, Any]) -> None:
        """Receive an event, a record of metrics.jsonl: launch, verdict, save, outcome, ...;
        those of earlier launches come again.
        """

    def finish(self, outcome: Outcome | None) -> None:
        """Send what is pending and close; without an outcome the launch failed."""

    def abandon(self) -> None:
        """Abandon what is in progress, for good; from any thread."""


def deliver(
    backend: Backend, records: Iterable[Mapping[str, Any]], outcome: Callable[[], Outcome | None]
) -> int:
    """Send what the backend lacks, and close it properly; returns the number of rows sent. A row is
    sent once complete: when that of a later step arrives, or the outcome shows that no more will.
    What is held back is sent later.
    """
    lacks, sent = backend.begin(), 0
    held: Row | None = None
    for record in records:
        if record["kind"] == "event":
            backend.event(record)
        elif record["step"] >= lacks:
            if held is not None and held.step != record["step"]:
                backend.row(held)
                held, sent = None, sent + 1
            held = Row.of(record, held)
    ended = outcome()
    if (
        held is not None
        and ended is not None
        and (ended.is_finished or held.evaluated or held.step < ended.step)
    ):
        backend.row(held)
        sent += 1
    backend.finish(ended)
    return sent


class Courier:
    """Delivers the records of a launch to a backend. A backend that fails is reopened once, then
    dropped with one line.
    """

    def __init__(self, backend: Backend, directory: Path, warn: Callable[[str], None]) -> None:
        self._backend = backend
        self._directory = directory
        self._warn = warn
        self._ended = threading.Event()
        self._outcome: Outcome | None = None
        self._off = False
        self._thread = threading.Thread(
            target=self._work, name=f"fermarsi-{backend.name}", daemon=True
        )
        self._thread.start()

    def end(self, outcome: Outcome | None) -> None:
        """No more records will follow; call `wait` next."""
        self._outcome = outcome
        self._ended.set()

    def wait(self, until: float) -> None:
        """Wait until everything written is sent, or until that time of the monotonic clock."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._give_up("did not finish in time")

    def _give_up(self, why: str) -> None:
        if not self._off:
            self._off = True
            run = self._directory
            self._warn(
                f"{self._backend.name} {why}; {run / METRICS} has everything, `fermarsi track sync "
                f"{run}` sends what is missing."
            )
            # Nothing that a backend raises while it is abandoned may reach the training
            with suppress(Exception):
                self._backend.abandon()

    def _work(self) -> None:
        for tries_left in (1, 0):
            try:
                deliver(
                    self._backend,
                    follow(self._directory / METRICS, self._ended),
                    lambda: self._outcome,
                )
                return
            except BaseException as error:  # noqa: BLE001 - see above
                # Wandb raises whatever its service process died of, SystemExit included. A
                # scheduler's SIGTERM to all processes kills W&B's service process: opened again it
                # takes the rest.
                if self._off:
                    return
                if tries_left and not isinstance(error, ImportError):
                    continue
                self._give_up(f"failed ({type(error).__name__}: {first_line(error)})")
                return
