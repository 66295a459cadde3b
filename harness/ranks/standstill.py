"""Which rank the others are waiting for, and which one is slower than the rest, judged from the
ranks' own reports. No clock, no files, no collective.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.ranks.heartbeat import (
    AGREEMENT,
    DATA,
    END,
    ENDLESS,
    FORWARD,
    LOG,
    LOSSES,
    PHASES,
    RECORDS,
    STORAGE,
    UPDATE,
    Heartbeat,
)

LEAST_S = 10.0  # what any phase may take
USUAL_TIMES, LONGEST_TIMES, STORAGE_TIMES = 3.0, 1.5, 6.0
LEARNED_FROM = 5  # times that a phase was seen
# What each rank does for itself in a step. A backward pass waits for the other ranks' gradients
OWN = (DATA, FORWARD, UPDATE, AGREEMENT, LOSSES, LOG)
SLOW_FACTOR, SLOW_SHARE, SLOW_STEPS, SLOW_S = 1.5, 0.1, 100, 10.0
_ORDER = {phase: index for index, phase in enumerate(PHASES)}


def limit_s(heartbeat: Heartbeat) -> float:
    """How long the present phase should last at most: three times the 99th percentile of what it
    took so far, one and a half times the longest, 10 s at least.

    Endless where little is known: what has been seen fewer than five times, the start, the end, and
    the wait for an earlier save, which has its own limit.
    """
    usual = heartbeat.durations[heartbeat.phase]
    if heartbeat.phase in ENDLESS or usual.number < LEARNED_FROM:
        return math.inf
    return max(LEAST_S, USUAL_TIMES * usual.quantile(0.99), LONGEST_TIMES * usual.longest_s)


@dataclass(frozen=True)
class Report:
    """What a rank says of itself.

    `beat`: counts its reports; `count`: phases entered; `limit_s`: how long this phase should last
    at most, None without end; `held`: why it may stand still, such as a debugger; `stack`: of its
    main thread, innermost first, once it stands still; `busy_s`: by phase.
    """

    rank: int
    host: str
    process: int
    beat: int
    count: int
    step: int | None
    phase: str
    waiting: bool
    limit_s: float | None
    held: str | None = None
    stack: Sequence[str] = ()
    busy_s: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def who(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.process})"

    @property
    def where(self) -> str:
        step = "before the first step" if self.step is None else f"step {self.step:,}"
        return f"{step}, {self.phase}"


@dataclass(frozen=True)
class StuckRank:
    """A rank that all others wait for: its last report. `where`: the training is; `silent`: it has
    stopped reporting, too.
    """

    report: Report
    where: str
    for_s: float
    limit_s: float
    silent: bool

    @property
    def is_given_up(self) -> bool:
        """Whether it is not only named: six times later where it waits for a file system, which may
        come back.
        """
        phases = (*STORAGE, *RECORDS) if self.report.rank == 0 else STORAGE
        times = STORAGE_TIMES if self.report.phase in phases else 1.0
        return self.for_s > times * self.limit_s


class Overseer:
    """Finds ranks that make no progress; the time is passed in."""

    def __init__(self, size: int) -> None:
        self._still_s = [0.0] * size
        self._quiet_s = [0.0] * size
        self._before: Sequence[Report] | None = None

    def look(self, reports: Sequence[Report], elapsed_s: float) -> list[StuckRank]:
        """The ranks that keep all others waiting for longer than their phase should last.

        reports: the last of each rank, in their order; elapsed_s: since the look before.
        """
        before, self._before = self._before, reports
        if before is None:
            return []
        for rank, (old, new) in enumerate(zip(before, reports, strict=True)):
            moved = (old.count, old.step) != (new.count, new.step)
            self._still_s[rank] = 0.0 if moved else self._still_s[rank] + elapsed_s
            self._quiet_s[rank] = 0.0 if old.beat != new.beat else self._quiet_s[rank] + elapsed_s
        if min(self._still_s) < LEAST_S or any(one.held or one.phase == END for one in reports):
            return []
        silent = [one for one in reports if self._quiet_s[one.rank] >= LEAST_S]
        # Where a silent rank is now is not known; the others wait for it where they are
        others = [one for one in reports if one.limit_s is not None and one not in silent]
        found = []
        for one in silent or behind(reports):
            there = others[0] if silent and others else one
            for_s = self._still_s[one.rank]
            limit = None if there.limit_s is None else max(there.limit_s, one.limit_s or 0.0)
            if limit is not None and for_s > limit:
                found.append(StuckRank(one, there.where, for_s, limit, silent=bool(silent)))
        return found


def behind(reports: Sequence[Report]) -> list[Report]:
    """The ranks that are least far, and do not wait there for others; else any that do not wait;
    all that are least far if each rank waits.
    """

    def progress(one: Report) -> tuple[int, int]:
        return (-1 if one.step is None else one.step, _ORDER[one.phase])

    least = min(map(progress, reports))
    last = [one for one in reports if progress(one) == least]
    acting = [one for one in reports if not one.waiting]
    return [one for one in last if not one.waiting] or acting or last


class Pace:
    """Finds a rank that is slower than the others, from each rank's own work in a step."""

    def __init__(self) -> None:
        self._began: Sequence[Report] | None = None
        self._window_s = 0.0
        self._slow_before: frozenset[int] = frozenset()
        self._reported: set[int] = set()

    def look(self, reports: Sequence[Report], elapsed_s: float) -> list[str]:
        """A sentence on each rank that has been slower over two stretches of at least a hundred
        steps and ten seconds; each rank is told of once, and again if it was not slow in between.
        """
        if any(one.step is None for one in reports):
            return []
        if self._began is None:
            self._began = reports
        self._window_s += elapsed_s
        steps = [
            (new.step or 0) - (old.step or 0) for old, new in zip(self._began, reports, strict=True)
        ]
        if min(steps) < SLOW_STEPS or self._window_s < SLOW_S:
            return []
        step_s = self._window_s / min(steps)
        own = [
            _own_s(old, new, number)
            for old, new, number in zip(self._began, reports, steps, strict=True)
        ]
        totals = [sum(one.values()) for one in own]
        usual = statistics.median_low(totals)
        slow = frozenset(
            rank
            for rank, total in enumerate(totals)
            if total > SLOW_FACTOR * usual and total - usual > SLOW_SHARE * step_s
        )
        self._reported &= slow
        found = sorted((slow & self._slow_before) - self._reported)
        self._reported |= set(found)
        self._began, self._window_s, self._slow_before = reports, 0.0, slow
        return [
            _words(reports[rank], own[rank], own[totals.index(usual)], step_s, min(steps))
            for rank in found
        ]


def _own_s(old: Report, new: Report, steps: int) -> dict[str, float]:
    return {
        phase: (new.busy_s.get(phase, 0.0) - old.busy_s.get(phase, 0.0)) / steps for phase in OWN
    }


def _words(
    report: Report, own: Mapping[str, float], usual: Mapping[str, float], step_s: float, steps: int
) -> str:
    total, other = sum(own.values()), sum(usual.values())
    worst = max(OWN, key=lambda phase: own[phase] - usual[phase])
    return (
        f"{report.who} is slower than the others: {total * 1e3:.1f} ms of its own work a step, "
        f"where the median rank has {other * 1e3:.1f}, over the last {steps:,} steps; mostly in "
        f"{worst} ({own[worst] * 1e3:.1f} ms against {usual[worst] * 1e3:.1f}). The others wait "
        f"for it for {(total - other) / step_s:.0%} of each step."
    )
