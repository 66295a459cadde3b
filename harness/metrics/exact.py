"""Sums that do not depend on the order of what is added."""

import math
from collections.abc import Sequence


class ExactSum:
    """A running sum without rounding: partials that do not overlap (Shewchuk, "Adaptive precision
    floating-point arithmetic", 1997, section 2.4).
    """

    def __init__(self, partials: Sequence[float] = ()) -> None:
        self.partials = list(partials)

    def add(self, value: float) -> None:
        kept = []
        for partial in self.partials:
            high, low = (value, partial) if abs(value) >= abs(partial) else (partial, value)
            total = high + low
            rest = low - (total - high)
            if rest:
                kept.append(rest)
            value = total
        self.partials = [*kept, value]

    def value(self) -> float:
        """The sum, rounded once; NaN or infinite if a summand was."""
        return exact_sum(self.partials)


def exact_sum(values: Sequence[float]) -> float:
    """The sum, rounded once; NaN or infinite if a summand is (where math.fsum would raise on inf -
    inf).
    """
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
