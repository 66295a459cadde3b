"""How long to train between two saves: the optimum between what saves cost and what failures undo.

J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974); J. T.
Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future
Generation Computer Systems 22 (2006).
"""

import math
from dataclasses import dataclass

from harness.wording import duration


@dataclass(frozen=True)
class Failures:
    """What is known of a run's failures: so many per day, or `seen` in `elapsed_s` seconds."""

    elapsed_s: float
    seen: int
    per_day: float | None = None

    @property
    def mean_time_s(self) -> float:
        """The mean time between two of them.

        Of those seen, by Jeffreys' prior for a Poisson rate: one half more, so that a run without
        any expects the first after twice its age.
        """
        if self.per_day is not None:
            return 86400 / self.per_day
        return self.elapsed_s / (self.seen + 0.5)

    def __str__(self) -> str:
        if self.per_day is not None:
            return f"checkpoint.failures_per_day: {self.per_day:g}"
        return f"{self.seen} seen in {duration(self.elapsed_s)}"


@dataclass(frozen=True)
class SavePeriod:
    """The time from the beginning of one save to that of the next, and why."""

    seconds: float
    reason: str


def best_period_s(cost_s: float, mean_time_s: float) -> float:
    """The time of training between two saves that loses least in the mean, by Daly's equation 37.

    cost_s: what a save costs the training; mean_time_s: between failures.
    """
    if cost_s >= 2 * mean_time_s:
        return mean_time_s
    ratio = cost_s / (2 * mean_time_s)
    optimum = math.sqrt(2 * cost_s * mean_time_s)
    return optimum * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s


def choose_save_period(
    cost_s: float, durable_s: float, failures: Failures, max_overhead: float
) -> SavePeriod:
    """Daly's optimum, but no shorter than `max_overhead` allows, and than twice the time until a
    save is durable: a save must not wait for the one before.
    """
    best_s = best_period_s(cost_s, failures.mean_time_s)
    known = (
        f"a save that costs {duration(cost_s)}, and a failure every "
        f"{duration(failures.mean_time_s)} ({failures})"
    )
    least_s = {
        f"so that saves cost {max_overhead:.3g} of the time (checkpoint.max_overhead)": (
            cost_s / max_overhead
        ),
        f"twice what a save takes until it is durable ({duration(durable_s)})": 2 * durable_s,
    }
    why, most_s = max(least_s.items(), key=lambda one: one[1])
    if most_s > best_s:
        return SavePeriod(most_s, f"{why}; the optimum is {duration(best_s)}, for {known}")
    return SavePeriod(best_s, f"the optimum for {known}")
