"""Treatments that learn from the training split, and are then the same for every split, evaluation
and prediction.

    observe(batch)             a micro-batch of the training split as the treatments before it give
                               it; each sample once
    finish()                   after the last; raises DataError if there was nothing to learn from
    state(), restore(state)    what was learned, as JSON; floats are exact

What is learned is a function of the samples alone: sums are exact, so that neither their order nor
their micro-batches matter.
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
from harness.treatments.numbers import Batch, by_channel, numbers

Columns = NDArray[np.float64]
_UNIT = 1074  # 2**-1074 is the least number in float64: every other is a whole multiple of it
_LARGEST = 1e100  # whose square is still far from the end of float64


class Standardise:
    """(x - mean) / std in float32: (B, C, ...) by the mean and standard deviation of each channel
    or column in the training split, (B,) by one.

    Missing numbers (NaN) are not counted, and stay missing. A channel that never changes in the
    training split has its mean taken away and is not divided, as in scikit-learn's StandardScaler.
    """

    def __init__(self, key: str = "features") -> None:
        self.key = key
        self._moments = Moments()
        self._learned: dict[str, Tensor] | None = None

    def observe(self, batch: Batch) -> None:
        """batch: as in a call."""
        self._moments.add(columns_of(batch, self.key))

    def finish(self) -> None:
        """Raises DataError for a channel without any number."""
        self._moments.require(self.key)
        deviations = [math.sqrt(variance) for variance in self._moments.variances()]
        self.restore(
            {"mean": self._moments.means(), "std": [deviation or 1.0 for deviation in deviations]}
        )

    def state(self) -> dict[str, Any]:
        """{mean: [C floats], std: [C floats]}"""
        return _as_lists(self._learned)

    def restore(self, state: Mapping[str, Any]) -> None:
        """state: as `state()` gave it."""
        self._learned = _as_tensors(state)

    def __call__(self, batch: Batch) -> Batch:
        values, mean, std = _with_learned(batch, self.key, self._learned, "mean", "std")
        return {**batch, self.key: ((values.double() - mean) / std).float()}


class Rescale:
    """Each channel or column of (B, C, ...) from its least and largest number in the training split
    to `low` and `high`, in float32.

    `clip` keeps numbers that are outside of what was seen within. Missing numbers (NaN) are not
    counted, and stay missing. A channel that never changes becomes `low`, as in scikit-learn's
    MinMaxScaler.
    """

    def __init__(
        self, low: float = 0.0, high: float = 1.0, clip: bool = False, key: str = "features"
    ) -> None:
        if not low < high:
            raise ConfigError(f"low, high: {low} and {high}: needed is low < high.")
        self.low = low
        self.high = high
        self.clip = clip
        self.key = key
        self._least: Columns | None = None  # (C,)
        self._largest: Columns | None = None
        self._learned: dict[str, Tensor] | None = None

    def observe(self, batch: Batch) -> None:
        """batch: as in a call."""
        columns = columns_of(batch, self.key)
        # Of numbers; NaN is passed over
        least, largest = (
            np.fmin.reduce(columns, initial=np.inf),
            np.fmax.reduce(columns, initial=-np.inf),
        )
        self._least = least if self._least is None else np.fmin(self._least, least)
        self._largest = largest if self._largest is None else np.fmax(self._largest, largest)

    def finish(self) -> None:
        """Raises DataError for a channel without any number."""
        if self._least is None or self._largest is None or np.isinf(self._least).any():
            raise DataError(
                _nothing(self.key, [] if self._least is None else np.isfinite(self._least).tolist())
            )
        self.restore({"least": self._least.tolist(), "largest": self._largest.tolist()})

    def state(self) -> dict[str, Any]:
        """{least: [C floats], largest: [C floats]}"""
        return _as_lists(self._learned)

    def restore(self, state: Mapping[str, Any]) -> None:
        """state: as `state()` gave it."""
        self._learned = _as_tensors(state)

    def __call__(self, batch: Batch) -> Batch:
        values, least, largest = _with_learned(batch, self.key, self._learned, "least", "largest")
        width = torch.where(largest > least, largest - least, 1.0)
        scaled = (values.double() - least) / width * (self.high - self.low) + self.low
        return {
            **batch,
            self.key: (scaled.clamp(self.low, self.high) if self.clip else scaled).float(),
        }


class Moments:
    """How many numbers a channel has, their sum and the sum of their squares, all exact; NaN is
    passed over.
    """

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
        self.counts = _added(self.counts, there.sum(axis=0).tolist())
        self._sums = _added(self._sums, exact_sums(x))
        self._squares = _added(self._squares, exact_sums(squares))

    def require(self, key: str) -> None:
        """Raise DataError if a channel has no number."""
        if not self.counts or 0 in self.counts:
            raise DataError(_nothing(key, self.counts))

    def means(self) -> list[float]:
        """(C,), each the float64 next to the true mean."""
        return [
            float(Fraction(total, count << _UNIT))
            for count, total in zip(self.counts, self._sums, strict=True)
        ]

    def variances(self) -> list[float]:
        """(C,) mean squares of the distances from the mean, each the nearest float64."""
        columns = zip(self.counts, self._sums, self._squares, strict=True)
        return [
            float(Fraction((count * squares << _UNIT) - total * total, count * count << 2 * _UNIT))
            for count, total, squares in columns
        ]


def exact_sums(values: Columns) -> list[int]:
    """(N, C) finite numbers -> the true sum of each column, in units of 2**-1074.

    Numbers are cut at one bit of a column; what is above it adds up without rounding, whatever the
    order (Rump, Ogita & Oishi, "Accurate floating-point summation", SIAM Journal on Scientific
    Computing 31, 2008).
    """
    rest = values.copy()
    totals = [0] * values.shape[1]
    while (largest := np.abs(rest).max(axis=0, initial=0)).any():
        # Above N times the largest
        top = np.ldexp(1.0, np.frexp(largest)[1] + len(rest).bit_length())
        above = (top + rest) - top
        rest -= above
        totals = _added(totals, [_units(total) for total in above.sum(axis=0).tolist()])
    return totals


def columns_of(batch: Batch, key: str) -> Columns:
    """The numbers (B, C, ...) or (B,) of a batch as (N, C), NaN where one is missing.

    Raises DataError for an infinite one.
    """
    values = numbers(batch, key)
    values = values[:, None] if values.dim() == 1 else values
    columns = values.movedim(1, -1).reshape(-1, values.shape[1]).double().numpy()
    if (np.abs(columns) > _LARGEST).any():
        raise DataError(
            f"{key}: a number that is infinite or above {_LARGEST:g}. Mend the data, or rescale it."
        )
    return columns


def _units(number: float) -> int:
    numerator, denominator = number.as_integer_ratio()
    return numerator << (_UNIT + 1 - denominator.bit_length())


def _added(totals: list[int], more: Sequence[int]) -> list[int]:
    return [one + other for one, other in zip(totals, more, strict=True)] if totals else list(more)


def _nothing(key: str, counts: Sequence[int]) -> str:
    where = (
        f"channel or column {list(map(bool, counts)).index(False)} of {key}, from 0,"
        if counts
        else key
    )
    return (
        f"{where}: no number in the training split to learn from. Leave it out, or mend the data."
    )


def _as_lists(learned: dict[str, Tensor] | None) -> dict[str, Any]:
    assert learned is not None, "asked for what was learned before finish()"
    return {name: values.tolist() for name, values in learned.items()}


def _as_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in state.items()}


def _with_learned(
    batch: Batch, key: str, learned: dict[str, Tensor] | None, *names: str
) -> tuple[Tensor, ...]:
    """The numbers of a batch, and what was learned of each channel in a matching shape."""
    assert learned is not None, "called before finish() or restore()"
    values = numbers(batch, key)
    num_channels = values.shape[1] if values.dim() > 1 else 1
    expected = len(learned[names[0]])
    if num_channels != expected:
        raise DataError(
            f"{key}: {tuple(values.shape)} does not have the {expected} channels or columns that "
            "the training split has."
        )
    return values, *(by_channel(learned[name], values) for name in names)
