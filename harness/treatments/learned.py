"""Treatments that learn from the training split, and are then the same for every split, evaluation
and prediction.

    observe(batch)             a micro-batch of the training split, processed by the treatments
                               before this one; each sample once
    finish()                   after the last one; raises DataError if nothing was observed
    state(), restore(state)    what was learned, as JSON; floats are exact

What is learned is a function of the samples alone: sums are exact, so that neither the order of
samples nor the micro-batches matter.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import ConfigError, DataError
from harness.treatments.numbers import Batch, Plain, by_channel, check_channels, numbers

Columns = NDArray[np.float64]
_UNIT = 1074  # 2**-1074 is the smallest positive float64; every other is an integer multiple of it
_LARGEST = 1e100  # its square is well within the range of float64


class FittedTreatment(Plain):
    """A treatment with parameters (C,) per channel or column, learned from the training split."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self._learned: dict[str, Tensor] = {}

    def state(self) -> dict[str, Any]:
        """{name: [C floats]}"""
        return {name: values.tolist() for name, values in self._learned.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """state: as returned by `state()`."""
        self._learned = {
            name: torch.tensor(values, dtype=torch.float64) for name, values in state.items()
        }

    def _by_channel(self, values: Tensor, *names: str) -> list[Tensor]:
        """The parameters of these names, in shapes that broadcast with values (B, C, ...)."""
        assert self._learned, "called before finish() or restore()"
        learned = [self._learned[name] for name in names]
        check_channels(values, self.key, len(learned[0]), "of the training split")
        return [by_channel(each, values) for each in learned]


class Standardise(FittedTreatment):
    """(x - mean) / std in float32, with the mean and standard deviation of each channel or column
    of (B, C, ...), or of (B,), in the training split.

    Missing values (NaN) are ignored, and stay missing. A channel that is constant in the training
    split is centred but not divided, as in scikit-learn's StandardScaler.
    """

    def __init__(self, key: str = "features") -> None:
        super().__init__(key)
        self._moments = Moments()

    def observe(self, batch: Batch) -> None:
        """batch: as for `__call__`."""
        self._moments.add(columns_of(batch, self.key))

    def finish(self) -> None:
        """Raises DataError for a channel without any value."""
        require_numbers(self.key, self._moments.counts)
        deviations = [math.sqrt(variance) or 1.0 for variance in self._moments.variances()]
        self.restore({"mean": self._moments.means(), "std": deviations})

    def treat(self, values: Tensor) -> Tensor:
        mean, std = self._by_channel(values, "mean", "std")
        return ((values.double() - mean) / std).float()

    def invert(self, values: Tensor) -> Tensor:
        """Back to the unit of the data, in float64."""
        mean, std = self._by_channel(values, "mean", "std")
        return values.double() * std + mean


class Rescale(FittedTreatment):
    """Scales each channel or column of (B, C, ...) so that its minimum and maximum in the training
    split become `low` and `high`, in float32.

    `clip` limits other values to this range. Missing values (NaN) are ignored, and stay missing. A
    constant channel becomes `low`, as in scikit-learn's MinMaxScaler.
    """

    def __init__(
        self, low: float = 0.0, high: float = 1.0, clip: bool = False, key: str = "features"
    ) -> None:
        if not low < high:
            raise ConfigError(f"low, high: {low} and {high}: low must be less than high.")
        super().__init__(key)
        self.low = low
        self.high = high
        self.clip = clip
        # (C,) after the first batch; fmin and fmax ignore NaN
        self._least, self._largest = np.array(np.inf), np.array(-np.inf)

    def observe(self, batch: Batch) -> None:
        """batch: as for `__call__`."""
        columns = columns_of(batch, self.key)
        self._least = np.fmin(self._least, np.fmin.reduce(columns, initial=np.inf))
        self._largest = np.fmax(self._largest, np.fmax.reduce(columns, initial=-np.inf))

    def finish(self) -> None:
        """Raises DataError for a channel without any value."""
        there = np.isfinite(self._least)
        require_numbers(self.key, there.tolist() if there.ndim else [])
        self.restore({"least": self._least.tolist(), "largest": self._largest.tolist()})

    def treat(self, values: Tensor) -> Tensor:
        least, largest = self._by_channel(values, "least", "largest")
        width = torch.where(largest > least, largest - least, 1.0)
        scaled = (values.double() - least) / width * (self.high - self.low) + self.low
        return (scaled.clamp(self.low, self.high) if self.clip else scaled).float()

    def invert(self, values: Tensor) -> Tensor:
        """Back to the unit of the data, in float64; what was clipped stays so."""
        least, largest = self._by_channel(values, "least", "largest")
        width = torch.where(largest > least, largest - least, 1.0)
        return (values.double() - self.low) / (self.high - self.low) * width + least


class Moments:
    """The count, sum and sum of squares of each channel's values, all exact; NaN is ignored."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self._sums: list[int] = []  # in units of 2**-1074
        self._squares: list[int] = []

    def add(self, columns: Columns) -> None:
        """columns: (N, C)"""
        there = ~np.isnan(columns)
        x = np.where(there, columns, 0.0)
        # Halves of 26 bits, whose products are exact (Dekker, "A floating-point technique for
        # extending the available precision", 1971).
        high = x * (2.0**27 + 1)
        high = high - (high - x)
        low = x - high
        squares = np.concatenate([high * high, 2 * high * low, low * low])
        self.counts = _add(self.counts, there.sum(axis=0).tolist())
        self._sums = _add(self._sums, exact_sums(x))
        self._squares = _add(self._squares, exact_sums(squares))

    def means(self) -> list[float]:
        """(C,), each the float64 nearest to the true mean."""
        return [
            float(Fraction(total, count << _UNIT))
            for count, total in zip(self.counts, self._sums, strict=True)
        ]

    def variances(self) -> list[float]:
        """(C,), each the float64 nearest to the true variance."""
        columns = zip(self.counts, self._sums, self._squares, strict=True)
        return [
            float(Fraction((count * squares << _UNIT) - total * total, count * count << 2 * _UNIT))
            for count, total, squares in columns
        ]


def exact_sums(values: Columns) -> list[int]:
    """(N, C) finite numbers -> the true sum of each column, in units of 2**-1074.

    Values are split at one bit position per column; the bits above it add up without rounding, in
    any order (Rump, Ogita & Oishi, "Accurate floating-point summation", SIAM Journal on Scientific
    Computing 31, 2008).
    """
    rest = values.copy()
    totals = [0] * values.shape[1]
    while (largest := np.abs(rest).max(axis=0, initial=0)).any():
        # Above N times the largest
        top = np.ldexp(1.0, np.frexp(largest)[1] + len(rest).bit_length())
        above = (top + rest) - top
        rest -= above
        totals = _add(totals, [_units(total) for total in above.sum(axis=0).tolist()])
    return totals


def columns_of(batch: Batch, key: str) -> Columns:
    """The values (B, C, ...) or (B,) of a batch as (N, C), NaN where missing.

    Raises DataError for an infinite value.
    """
    values = numbers(batch, key)
    values = values[:, None] if values.dim() == 1 else values
    columns = values.movedim(1, -1).reshape(-1, values.shape[1]).double().numpy()
    if (np.abs(columns) > _LARGEST).any():
        raise DataError(
            f"{key}: a value is infinite or above {_LARGEST:g}. Fix or rescale the data."
        )
    return columns


def _units(number: float) -> int:
    numerator, denominator = number.as_integer_ratio()
    return numerator << (_UNIT + 1 - denominator.bit_length())


def _add(totals: list[int], more: Sequence[int]) -> list[int]:
    return [one + other for one, other in zip(totals, more, strict=True)] if totals else list(more)


def require_numbers(key: str, counts: Sequence[int]) -> None:
    """Raise DataError unless there are channels and each has a value."""
    if counts and all(counts):
        return
    where = key
    if counts:
        where = f"channel or column {list(map(bool, counts)).index(False)} (from 0) of {key}"
    raise DataError(
        f"{where}: no values in the training split to learn from. Remove it, or fix the data."
    )
