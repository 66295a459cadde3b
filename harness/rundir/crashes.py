"""The step in progress, noted in the run directory, so that the next launch recognises a step that
crashes repeatedly.

One line in `step-in-work`, written over by rank 0 at each step and taken away when a launch ends in
order; no clock, no fsync: after a power cut the note may be old or gone, and then one crash is not
counted.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.bounded import read_bytes
from harness.errors import HarnessError, RankError

FILE = "step-in-work"


@dataclass(frozen=True)
class Crash:
    """A launch crashed during `step`, for the `times`-th time in a row."""

    step: int
    times: int

    def __str__(self) -> str:
        return f"step {self.step:,} crashed" + (
            f" {self.times} times in a row" if self.times > 1 else ""
        )


def last_crash(run: Path) -> Crash | None:
    """The crash that ended the previous launch; None if it ended in order or before a step."""
    try:
        step, crashed, times = map(int, read_bytes(run / FILE, 100, links=False).split())
    except (OSError, ValueError):
        return None
    return Crash(step, times + 1 if step == crashed else 1)


def check_crashes(run: Path, most: int) -> Crash | None:
    """The crash that ended the previous launch.

    Raises RankError if its step has crashed `most` times in a row.
    """
    crash = last_crash(run)
    if crash is not None and crash.times >= most:
        raise RankError(
            f"{run}: {crash} (run.max_crashes: {most}), so this launch does not start. Fix "
            "what breaks it: the output of the launches that crashed says what. Then remove "
            f"{run / FILE}, or raise run.max_crashes."
        )
    return crash


class StepNote:
    """Entered around a training on rank 0 (`run` None: elsewhere, where it does nothing). A note
    left behind means a crash.
    """

    def __init__(self, run: Path | None) -> None:
        self._path = None if run is None else run / FILE
        before = Crash(0, 0) if run is None else last_crash(run) or Crash(0, 0)
        self._rest = f" {before.step:>15} {before.times:>9}\n"
        self._file: int | None = None

    def begin(self, step: int) -> None:
        """Note that `step` is in progress: takes microseconds, without waiting for the disk."""
        if self._file is not None:
            with suppress(OSError):  # a full disk: saves fail too, and say so
                os.pwrite(self._file, f"{step:>15}{self._rest}".encode(), 0)

    def __enter__(self) -> "StepNote":
        if self._path is not None:
            with suppress(OSError):
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._path is not None and (
            error is None or isinstance(error, KeyboardInterrupt) or _is_expected(error)
        ):
            with suppress(OSError):
                self._path.unlink(missing_ok=True)


def _is_expected(error: BaseException) -> bool:
    """Whether an error is a reported user mistake or a request to leave, not a crash."""
    return isinstance(error, HarnessError) and not isinstance(error, RankError)
