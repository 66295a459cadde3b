"""What this rank is doing, and how long that usually takes: written by the main thread, read by the
thread that reports to the other ranks.
"""

import math
import time

START_UP, END = "start-up", "end"
# In the order of a step: of two ranks in one step the one in the earlier phase is behind
PHASES = (
    START_UP,
    (DATA := "data"),
    (FORWARD := "forward"),
    (BACKWARD := "backward"),
    (UPDATE := "optimizer step"),
    (AGREEMENT := "agreement"),
    (LOSSES := "reading of losses"),
    (LOG := "log"),
    (EVALUATION_DATA := "evaluation data"),
    (EVALUATION := "evaluation"),
    (METRICS := "metrics"),
    (VERDICT := "verdict"),
    (SAVE := "save"),
    (STAGE := "copy for a save"),
    END,
)
# Where a rank waits for a file system, which may come back after a minute
STORAGE = (DATA, EVALUATION_DATA)
# Where rank 0 does so, which looks for requests and leaves records
RECORDS = (AGREEMENT, LOSSES, LOG, METRICS, VERDICT)
# Watched elsewhere, or without an end that could be learned: a save has its own time limit
ENDLESS = (START_UP, SAVE, END)


_HALF_POWER = math.sqrt(0.5)


class Durations:
    """A histogram of durations, by half powers of two."""

    def __init__(self) -> None:
        self.number = 0
        self.longest_s = 0.0
        self._counts: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        mantissa, exponent = math.frexp(seconds)
        bucket = 2 * exponent - (mantissa < _HALF_POWER)
        counts = self._counts
        counts[bucket] = counts.get(bucket, 0) + 1
        self.number += 1
        if seconds > self.longest_s:
            self.longest_s = seconds

    def quantile(self, share: float) -> float:
        """The quantile of the durations at this share, to within a factor of sqrt(2); 0 without
        any.
        """
        left = share * self.number
        for bucket, count in sorted(self._counts.copy().items()):
            left -= count
            if left <= 0:
                return float(2.0 ** (bucket / 2))
        return 0.0


class Heartbeat:
    """Where the main thread of this rank is: a phase of a step, and whether it is waiting for other
    ranks.

    `step`: that is worked on, None before the first. `count`: of phases entered. `busy_s`: seconds
    by phase, waits for other ranks taken out.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.phase = START_UP
        self.count = 0
        self.durations = {phase: Durations() for phase in PHASES}
        self.busy_s = dict.fromkeys(PHASES, 0.0)
        self._since = time.monotonic()
        self._waited_s = 0.0
        self._waiting_since: float | None = None

    def enter(self, phase: str) -> None:
        """The main thread begins a phase; a repeated one, such as evaluation with each micro-batch,
        is entered again.
        """
        now = time.monotonic()
        lasted = now - self._since
        self.durations[self.phase].add(lasted)
        self.busy_s[self.phase] += lasted - self._waited_s
        self._waited_s = 0.0
        self.phase, self._since = phase, now
        self.count += 1

    @property
    def is_waiting(self) -> bool:
        """Whether the main thread is inside a collective."""
        return self._waiting_since is not None

    # -- a context: inside, the main thread waits for other ranks

    def __enter__(self) -> None:
        self._waiting_since = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        if self._waiting_since is not None:
            self._waited_s += time.monotonic() - self._waiting_since
        self._waiting_since = None
