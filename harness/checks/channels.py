"""Statistics of a column's numbers by channel, updated block by block."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 512  # numbers of a channel kept to count its distinct values
# At most this many distinct values: flags, grades, categories, whose extremes are not clipping
FEW_VALUES = 32
HEAP = 10  # numbers: every range has a few at its end


class Channels:
    """(B, C, ...) has C channels, (B, D) has D, (B,) has one. `name`: the key in samples. NaN and
    infinity are counted separately.
    """

    def __init__(self, name: str, limits: tuple[float, float] | None) -> None:
        self.name = name
        self.limits = limits
        self.num_samples = 0
        self.num_axes = 0
        self.is_float = False
        self.is_nan: list[int] = []  # sample indices; as the next two
        self.is_infinite: list[int] = []
        self.outside: list[int] = []
        self.low = self.high = np.empty(0)  # (C,); as the next three
        self.at_low = self.at_high = self.count = np.empty(0, dtype=np.int64)
        self._kept: NDArray[Any] = np.empty((0, 0))

    def add(self, rows: Sequence[int], values: NDArray[Any]) -> None:
        """values: (B, ...) of the samples `rows`."""
        size = len(values)
        num_channels = 1 if values.ndim == 1 else values.shape[1]
        grid = values.reshape(size, num_channels, -1)  # (B, C, L)
        finite = np.isfinite(grid) if grid.dtype.kind == "f" else None
        lowest, highest = grid, grid
        if finite is not None and not finite.all():
            self.is_nan += _rows(rows, np.isnan(grid))
            self.is_infinite += _rows(rows, np.isinf(grid))
            lowest, highest = np.where(finite, grid, np.inf), np.where(finite, grid, -np.inf)
        else:
            finite = None
        if self.limits is not None:
            low, high = self.limits
            self.outside += _rows(rows, (grid < low) | (grid > high))
        self._take_ends(lowest.min(axis=(0, 2)), highest.max(axis=(0, 2)), grid)
        self.count = self.count + (
            size * grid.shape[2] if finite is None else finite.sum(axis=(0, 2))
        )
        if self.num_samples == 0:
            flat = grid.swapaxes(0, 1).reshape(grid.shape[1], -1)
            self._kept = flat[:, :: max(1, flat.shape[1] // KEPT)].copy()
        self.num_samples += size
        self.num_axes = values.ndim - 1
        self.is_float = values.dtype.kind == "f"

    @property
    def is_signal(self) -> bool:
        """Whether a device measured it along an axis: a series, sound, an image; else columns of a
        table, such as ages.
        """
        return self.num_axes >= 2

    def has_few_values(self, channel: int) -> bool:
        """Whether a channel has so few distinct values that they are categories, not
        measurements.
        """
        return len(np.unique(self._kept[channel])) <= FEW_VALUES

    def constant(self) -> list[int]:
        """The channels that have the same value everywhere."""
        if self.num_samples < 2:
            return []
        return np.flatnonzero((self.low == self.high) & (self.count > 1)).tolist()

    def find_clipped(self, share: float) -> list[tuple[int, float, float]]:
        """(channel, end of its range, share of its numbers there) where the share is above `share`.

        An end at 0 is not clipping but silence or background, and neither is the lower end of an
        image, which is darkness. Integers without a further axis (tokens, categories) have no
        range.
        """
        if self.num_axes < 2 and not self.is_float:
            return []
        ends = [(self.high, self.at_high)]
        if self.num_axes < 3:
            ends.insert(0, (self.low, self.at_low))
        found = []
        for end, at_end in ends:
            shares = at_end / np.maximum(self.count, 1)
            channels = np.flatnonzero(
                (shares > share) & (at_end >= HEAP) & (end != 0) & (self.low < self.high)
            ).tolist()
            found += [
                (one, float(end[one]), float(shares[one]))
                for one in channels
                if not self.has_few_values(one)
            ]
        return found

    def _take_ends(self, low: NDArray[Any], high: NDArray[Any], grid: NDArray[Any]) -> None:
        at_low, at_high = ((grid == end[:, None]).sum(axis=(0, 2)) for end in (low, high))
        if self.num_samples == 0 or len(low) != len(self.low):
            self.low, self.high = low.astype(np.float64), high.astype(np.float64)
            self.at_low, self.at_high = at_low, at_high
            self.count = np.zeros(len(low), dtype=np.int64)
            return
        self.at_low = np.where(
            low < self.low, at_low, self.at_low + np.where(low == self.low, at_low, 0)
        )
        self.at_high = np.where(
            high > self.high, at_high, self.at_high + np.where(high == self.high, at_high, 0)
        )
        self.low, self.high = np.minimum(low, self.low), np.maximum(high, self.high)


def _rows(rows: Sequence[int], bad: NDArray[np.bool_]) -> list[int]:
    """The samples that have a bad number; bad: (B, C, L)."""
    # Numpy's stubs: a list of int64 is one of int
    return np.asarray(rows)[bad.any(axis=(1, 2))].tolist()  # type: ignore[no-any-return] # see above
