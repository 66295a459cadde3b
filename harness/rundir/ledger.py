"""The time ledger: every second of every launch is booked to exactly one account.

    start_up           from the process's first line to the first step, but for `resume`
    resume             choosing, verifying and loading a checkpoint
    data_wait, compute, evaluation, checkpoint_stall       the training
    work_lost          training that a crash undid: done again after the resume
    idle               between two launches

The sum of all but `idle` is the run's time; its goodput is compute / the sum of all. Between
launches the ledger lives in `ledger.json` (for what came after the last checkpoint) and in each
checkpoint (for what that checkpoint keeps).
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.bounded import read_json
from harness.durable import write_json

TRAINING = ("data_wait", "compute", "evaluation", "checkpoint_stall")
ACCOUNTS = ("start_up", "resume", *TRAINING, "work_lost", "idle")


class Ledger:
    """Books time to the open account; there is always one. `clock` and `wall` give seconds, the
    second one since the epoch.

    `age_s`: how long the process had been there before, to be booked to start_up. `failures`: how
    many launches before this one were cut off; `ended`: set where this one ends with nothing lost.
    """

    def __init__(
        self,
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        age_s: float = 0.0,
    ) -> None:
        self._path = path
        self._clock = clock
        self._wall = wall
        self._totals = dict.fromkeys(ACCOUNTS, 0.0)
        self._open = "start_up"
        self._saved = -math.inf
        self._began = self._since = clock() - age_s
        self._before_s = 0.0
        self.failures = 0
        self.ended = False

    def account(self, name: str) -> "_Account":
        """A context: time inside is booked to `name`, and to no other."""
        return _Account(self._switch, name)

    def begin_training(self) -> None:
        """From now on, time not booked otherwise is compute."""
        self._switch("compute")
        self._before_s = self._stepped_s()

    def stepped_s(self) -> float:
        """Seconds of this launch that steps took, with their waits for data."""
        self._switch(self._open)
        return self._stepped_s() - self._before_s

    def totals(self) -> dict[str, float]:
        """Seconds by account, up to now."""
        self._switch(self._open)
        return dict(self._totals)

    def elapsed_s(self) -> float:
        """Seconds of all launches so far, without the idle time between them."""
        totals = self.totals()
        return sum(totals.values()) - totals["idle"]

    def hours(self) -> float:
        """The same in hours: what a budget of hours is compared with."""
        return self.elapsed_s() / 3600

    def summary(self) -> dict[str, float]:
        """The accounts, rounded to milliseconds, with the goodput."""
        totals = self.totals()
        whole = sum(totals.values())
        return {
            **{f"{name}_s": round(value, 3) for name, value in totals.items()},
            "goodput": round(totals["compute"] / whole, 4) if whole else 0.0,
        }

    def save(self, period_s: float = 0.0) -> None:
        """Write the accounts to the run directory, for the launch after a crash; at most once in
        `period_s` seconds.
        """
        if self._path is not None and self._clock() - self._saved >= period_s:
            self._saved = self._clock()
            left = {
                "totals": self.totals(),
                "wall_s": self._wall(),
                "failures": self.failures,
                "ended": self.ended,
            }
            # A full disk must not end a training; saves fail too, and say so
            with suppress(OSError):
                write_json(self._path, left, sync=False, end="\n")

    def resume(self, kept: Mapping[str, float] | None) -> None:
        """Go on from the accounts of earlier launches.

        `kept`: those of the checkpoint, None when starting afresh.

        Training time that is in `ledger.json` and not in the checkpoint was lost; the time since
        its last line was idle.
        """
        left = self._read_previous()
        kept = kept or {}
        known = left["totals"] if left else kept
        for name in ACCOUNTS:
            self._totals[name] += kept.get(name, 0.0) if name in TRAINING else known.get(name, 0.0)
        if left:
            # Those of 0.1.0 do not tell how the launch ended
            self.failures = left.get("failures", 0) + (not left.get("ended", True))
            self._totals["work_lost"] += sum(
                max(0.0, known.get(name, 0.0) - kept.get(name, 0.0)) for name in TRAINING
            )
            self._totals["idle"] += max(
                0.0, self._wall() - left["wall_s"] - (self._clock() - self._began)
            )

    def _read_previous(self) -> dict[str, Any] | None:
        if self._path is None:
            return None
        try:
            left: dict[str, Any] = read_json(self._path)
            seconds = [left["wall_s"], *left["totals"].values()]
            fits = all(isinstance(one, float) and math.isfinite(one) for one in seconds)
            counted = isinstance(left.get("failures", 0), int)
            return left if fits and counted and set(left["totals"]) <= set(ACCOUNTS) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # half a line after a power cut: the time it held is counted as idle

    def _stepped_s(self) -> float:
        return self._totals["compute"] + self._totals["data_wait"]

    def _switch(self, name: str) -> str:
        now = self._clock()
        self._totals[self._open] += now - self._since
        self._since = now
        before, self._open = self._open, name
        return before


class _Account:
    """The context of `Ledger.account`: a generator would be slower, twice a step."""

    def __init__(self, switch: Callable[[str], str], name: str) -> None:
        self._switch = switch
        self._name = name
        self._before = name

    def __enter__(self) -> None:
        self._before = self._switch(self._name)

    def __exit__(self, *exception: object) -> None:
        self._switch(self._before)


def process_age_s() -> float:
    """Seconds since this process began, its imports included; 0 where there is no /proc."""
    try:
        began_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    return max(
        0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK")
    )
