"""What float32 makes of numbers that are large compared with their differences."""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.wording import some

_STEPS_OF_FLOAT32 = 1024  # in the range of a column, below which its numbers are compared
_MOST = 2**16  # distinct numbers that are counted


class Narrowed(NamedTuple):
    """The range of numbers, and, where it is narrow, the distinct ones, as float32 and as float64
    (the first `_MOST` + 1 of these); JSON values.
    """

    low: float = np.inf
    high: float = -np.inf
    narrow: Sequence[float] = ()
    wide: Sequence[float] = ()

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> "Narrowed":
        """Of a column, or of a piece of it."""
        finite = values[np.isfinite(values)]
        if len(finite) == 0:
            return cls()
        low, high = float(finite.min()), float(finite.max())
        if not _may_become_lossy(low, high):
            return cls(low, high)
        with np.errstate(over="ignore"):  # numbers that float32 cannot hold are refused where read
            narrow = np.unique(finite.astype(np.float32)).tolist()
        return cls(low, high, narrow, np.unique(finite)[: _MOST + 1].tolist())

    def joined(self, other: "Narrowed") -> "Narrowed":
        """Of two pieces of a column."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        if low > high or not _may_become_lossy(low, high):
            return Narrowed(low, high)
        narrow = sorted({*self.narrow, *other.narrow})
        return Narrowed(low, high, narrow, sorted({*self.wide, *other.wide})[: _MOST + 1])

    def lost(self) -> str | None:
        """What float32 (7 digits) makes of numbers that are large compared with their differences;
        None if it distinguishes them well.
        """
        narrow, wide = len(self.narrow), len(self.wide)
        if narrow == wide or not may_lose(self.low, self.high):
            return None
        of = f"{wide:,}" if wide <= _MOST else f"more than {_MOST:,}"
        return f"{narrow:,} of {of} distinct numbers remain"


def _may_become_lossy(low: float, high: float) -> bool:
    """Whether this range or a wider one may be one of `may_lose`: the steps of float32 double at
    each power of two, so that one that grows by little may have twice as wide ones.
    """
    return not 2 * _STEPS_OF_FLOAT32 * _step(low, high) <= high - low


def may_lose(low: float, high: float) -> bool:
    """Whether numbers in this range may be so close together that float32 joins some."""
    return not (_STEPS_OF_FLOAT32 * _step(low, high) <= high - low or low == high)


def _step(low: float, high: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.spacing(np.float32(max(abs(low), abs(high)))))


def tell_narrowed(lost: Mapping[str, str]) -> None:
    """Warn once of all columns, {where: what `Narrowed.lost` says}."""
    if lost:
        listed = [f"{where}: {what}" for where, what in lost.items()]
        warnings.warn(
            "float32 has 7 digits, and nothing between 0 and 1e-45; it cannot distinguish these "
            f"numbers: {some(listed, 4)}. Subtract a constant or rescale them in the file, or read "
            "the column as integer or text.",
            stacklevel=3,
        )
