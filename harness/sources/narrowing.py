"""What float32 makes of numbers that are large compared with their differences."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.wording import some

_STEPS_OF_FLOAT32 = 1024  # in the range of a column, below which its numbers are compared


class Narrowed(NamedTuple):
    """The range of numbers, and, where it is narrow, how many distinct ones there are, as float32
    and as float64.
    """

    low: float = np.inf
    high: float = -np.inf
    narrow: int = 0
    wide: int = 0

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> "Narrowed":
        """Of a column, or of a piece of it."""
        finite = values[np.isfinite(values)]
        if len(finite) == 0:
            return cls()
        low, high = float(finite.min()), float(finite.max())
        if not may_lose(low, high):
            return cls(low, high)
        return cls(low, high, len(np.unique(finite.astype(np.float32))), len(np.unique(finite)))

    def joined(self, other: "Narrowed") -> "Narrowed":
        """Of two pieces of a column."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Narrowed(low, high, self.narrow + other.narrow, self.wide + other.wide)

    def lost(self) -> str | None:
        """What float32 (7 digits) makes of numbers that are large compared with their differences;
        None if it distinguishes them well.
        """
        if self.narrow == self.wide or not may_lose(self.low, self.high):
            return None
        return f"{self.narrow:,} of {self.wide:,} distinct numbers remain"


def may_lose(low: float, high: float) -> bool:
    """Whether numbers in this range may be so close together that float32 joins some."""
    with np.errstate(all="ignore"):
        step = float(np.spacing(np.float32(max(abs(low), abs(high)))))
    return not (step * _STEPS_OF_FLOAT32 <= high - low or low == high)


def tell_narrowed(lost: Mapping[str, str]) -> None:
    """Warn once of all columns, {where: what `Narrowed.lost` says}."""
    if lost:
        listed = [f"{where}: {what}" for where, what in lost.items()]
        warnings.warn(
            f"float32 has 7 digits, and cannot distinguish large numbers: {some(listed, 4)}. "
            "Subtract a constant in the file, or read the column as integer or text.",
            stacklevel=3,
        )
