"""When rank 0 asks for the next save where the clock decides: `checkpoint.every` in minutes, or
auto, by what saves have cost so far and how often the run was cut off.

The other ranks learn of it as of any request, so that all save after the same step. What is saved,
and when, changes no bit of the training.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from harness.checkpoint.save_period import Failures, SavePeriod, choose_save_period
from harness.checkpoint.settings import CheckpointConfig, SaveEvery
from harness.rundir.ledger import Ledger

_NUM_REMEMBERED = 9  # saves whose costs count
# How fast a copy is taken to be until a save has been measured: slower than any memory
_COPY_BYTES_PER_S = 1e9
_REPORT_FACTOR = 1.25  # by what a period has to change to be reported again


class Pace:
    """The clock of saves and the measure of their cost, on rank 0. No collectives."""

    def __init__(
        self,
        settings: CheckpointConfig,
        ledger: Ledger,
        share_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """share_bytes: what a rank has to copy for a save."""
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        # Of the last saves: how long the loop was held, and that with what steps took longer
        self._held_s = deque([share_bytes / _COPY_BYTES_PER_S], maxlen=_NUM_REMEMBERED)
        self._costs_s = deque(self._held_s, maxlen=_NUM_REMEMBERED)
        self._durable_s = 0.0
        self._measured = 0
        self._told_s: float | None = None
        self._period = self._choose()
        self._begun_s = clock()
        self._due_s = self._begun_s + self._period.seconds
        self._asked = False
        # Of the save in flight, or measured last: the accounts and the step when it began
        self._before: tuple[dict[str, float], int] | None = None
        self._calm_since: tuple[float, int] | None = None
        self._calm_step_s: float | None = None

    def is_due(self, *, saving: bool = False) -> bool:
        """Whether a save is to be asked for now; asked for once.

        saving: one is in flight, which is waited for; not for ever, so that a disk that hangs is
        reported.
        """
        earliest_s = self._begun_s + self._settings.timeout_s if saving else self._due_s
        if self._asked or self._clock() < max(earliest_s, self._due_s):
            return False
        self._asked = True
        return True

    def begin(self, step: int) -> None:
        """A save of this step begins, whatever asked for it."""
        self._asked = False
        self._begun_s = self._clock()
        self._due_s = self._begun_s + self._period.seconds
        totals = self._ledger.totals()
        if self._calm_since is not None:
            since_s, since = self._calm_since
            if step > since:
                self._calm_step_s = (_work_s(totals) - since_s) / (step - since)
        self._before, self._calm_since = (totals, step), None

    def end(self, step: int, durable_s: float | None) -> None:
        """The save that began last has ended by now, after this many steps of the run; `durable_s`
        after it began, None if it failed or there was nothing to do.
        """
        if self._before is None:
            return
        totals, (before, begun) = self._ledger.totals(), self._before
        work_s, self._before = _work_s(totals), None
        self._calm_since = (work_s, step)
        if durable_s is None:
            return
        held_s = totals["checkpoint_stall"] - before["checkpoint_stall"]
        calm_s = (step - begun) * (self._calm_step_s or 0.0)
        # Below 0 now and then: cutting that off would make noise a cost
        slowed_s = work_s - _work_s(before) - calm_s if calm_s else 0.0
        if not self._measured:
            self._held_s.clear()
            self._costs_s.clear()
        self._measured += 1
        self._held_s.append(held_s)
        self._costs_s.append(held_s + slowed_s)
        self._durable_s = durable_s
        self._period = self._choose()
        self._due_s = self._begun_s + self._period.seconds

    def news(self) -> SavePeriod | None:
        """The current period if it was not told yet, or is quite another by now."""
        now_s, told_s = self._period.seconds, self._told_s
        if told_s is not None and told_s / _REPORT_FACTOR < now_s < told_s * _REPORT_FACTOR:
            return None
        self._told_s = now_s
        return self._period

    def state(self) -> dict[str, Any]:
        """JSON: what saves cost so far."""
        return {
            "held_s": list(self._held_s),
            "costs_s": list(self._costs_s),
            "durable_s": self._durable_s,
            "measured": self._measured,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`, once the ledger has its accounts; the clock starts anew."""
        for kept, name in ((self._held_s, "held_s"), (self._costs_s, "costs_s")):
            kept.clear()
            kept.extend(float(one) for one in state[name])
        self._durable_s, self._measured = float(state["durable_s"]), int(state["measured"])
        self._period = self._choose()
        self._begun_s = self._clock()
        self._due_s = self._begun_s + self._period.seconds

    def _choose(self) -> SavePeriod:
        every = self._settings.every
        if isinstance(every, SaveEvery):
            assert every.minutes is not None
            return SavePeriod(60 * every.minutes, "as set (checkpoint.every)")
        failures = Failures(
            self._ledger.elapsed_s(), self._ledger.failures, self._settings.failures_per_day
        )
        cost_s = max(median(self._costs_s), median(self._held_s))
        chosen = choose_save_period(cost_s, self._durable_s, failures, self._settings.max_overhead)
        if self._measured:
            return chosen
        return SavePeriod(chosen.seconds, f"{chosen.reason}; not measured yet")


def pace_of(settings: CheckpointConfig, ledger: Ledger, share_bytes: int) -> Pace | None:
    """None where the step decides when the run is saved."""
    every = settings.every
    by_step = every is None or (isinstance(every, SaveEvery) and every.minutes is None)
    return None if by_step else Pace(settings, ledger, share_bytes)


def _work_s(totals: Mapping[str, float]) -> float:
    return totals["compute"] + totals["data_wait"]
