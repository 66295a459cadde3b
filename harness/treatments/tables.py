"""Treatments of table columns: categories to numbers, imputation of missing values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from harness.data.source import learns
from harness.data.written import text_of
from harness.errors import ConfigError, DataError
from harness.treatments.learned import Moments, columns_of, require_numbers
from harness.treatments.numbers import Batch, by_channel, check_channels, numbers
from harness.wording import some

Statistic = Literal["mean", "median", "most_frequent"]


class Encode:
    """Encodes a text column as category numbers, (B,) int64 in the order of `categories`.

    Without `categories` it learns them from the training split, sorted as by scikit-learn's
    OrdinalEncoder; an empty string, from a table with `missing: keep`, is a category too. Any other
    text raises DataError, or with `others: true` gets the number len(categories). Samples without
    the column raise DataError, unless it is `optional`, as a target is in new data to predict.
    """

    observe: Callable[[Batch], None]  # only set if there is something to learn
    finish: Callable[[], None]

    def __init__(
        self,
        key: str,
        categories: Sequence[Any] | None = None,
        others: bool = False,
        optional: bool = False,
    ) -> None:
        self.key = key
        self.others = others
        self.optional = optional
        self._found: set[str] = set()
        if categories is None:
            self.observe, self.finish = self._observe, self._finish
        else:
            self.restore({"categories": [text_of(category) for category in categories]})
            if len(set(self.categories)) < len(self.categories) or not self.categories:
                raise ConfigError(f"categories: {self.categories}: give at least one, each once.")

    def _observe(self, batch: Batch) -> None:
        self._found.update(self._texts(batch))

    def _finish(self) -> None:
        self.restore({"categories": sorted(self._found)})

    def state(self) -> dict[str, Any]:
        """{categories: strings in the order of their numbers}"""
        return {"categories": self.categories}

    def restore(self, state: Mapping[str, Any]) -> None:
        """state: as returned by `state()`."""
        self.categories: list[str] = list(state["categories"])
        # As it is written today too: earlier releases learned "1.0" where a table says "1" now
        today = {text_of(category): number for number, category in enumerate(self.categories)}
        self._numbers = today | {
            category: number for number, category in enumerate(self.categories)
        }

    def class_names(self) -> dict[str, list[str]]:
        """{key: categories}"""
        return {self.key: self.categories}

    def __call__(self, batch: Batch) -> Batch:
        if self.optional and self.key not in batch:
            return batch
        # Also as tables write it: the Hub gives texts as they are stored
        texts = [text if text in self._numbers else text_of(text) for text in self._texts(batch)]
        unknown = next((text for text in texts if text not in self._numbers), None)
        if unknown is not None and not self.others:
            fix = "Add it to categories"
            if learns(self):
                fix = "Add samples of it to the training split"
            raise DataError(
                f"{self.key}: {unknown!r} is not one of the categories "
                f"{some(self.categories, 20)}. {fix}, or set others: true."
            )
        found = [self._numbers.get(text, len(self.categories)) for text in texts]
        return {**batch, self.key: torch.tensor(found, dtype=torch.int64)}

    def _texts(self, batch: Batch) -> list[str]:
        texts = batch.get(self.key)
        if not isinstance(texts, list):
            raise DataError(
                f"Encode needs {self.key!r} as text; samples have {', '.join(sorted(batch))}. Read "
                "the column as text, or set key."
            )
        return texts


class OneHot:
    """One-hot encoding of numbers 0 … size-1: (B,) int64 -> (B, size) float32.

    Raises DataError for a number outside this range.
    """

    def __init__(self, key: str, size: int) -> None:
        self.key = key
        self.size = size

    def __call__(self, batch: Batch) -> Batch:
        values = numbers(batch, self.key)
        outside = (values < 0) | (values >= self.size)
        if values.is_floating_point() or bool(outside.any()):
            raise DataError(
                f"{self.key}: integers from 0 to {self.size - 1} are needed. Put "
                "harness.treatments.Encode before it, or set size."
            )
        return {**batch, self.key: torch.nn.functional.one_hot(values, self.size).float()}


class Impute:
    """Replaces missing values (NaN) by `value`: one for all, or one per channel or column of
    (B, C, ...).

    "mean", "median" and "most_frequent" (in a tie, the smallest) are learned from the training
    split for each channel, as in scikit-learn's SimpleImputer; the latter two hold the split's
    values in memory while learning. `mark` adds C channels that are 1 where a value was missing.
    """

    observe: Callable[[Batch], None]  # only set if there is something to learn
    finish: Callable[[], None]

    def __init__(
        self, value: float | Sequence[float] | Statistic, mark: bool = False, key: str = "features"
    ) -> None:
        self.key = key
        self.mark = mark
        self._moments = Moments()
        self._seen: list[NDArray[np.float64]] = []  # (N, C) each
        if not isinstance(value, str):
            self.restore({"value": value})
            if not self._value.isfinite().all():
                raise ConfigError(f"value: {value}: must be finite numbers.")
        elif value not in get_args(Statistic):
            raise ConfigError(
                f"value: {value!r} is neither a number nor one of {', '.join(get_args(Statistic))}."
            )
        else:
            self._statistic = value
            self.observe, self.finish = self._observe, self._finish

    def _observe(self, batch: Batch) -> None:
        columns = columns_of(batch, self.key)
        self._moments.add(columns)
        if self._statistic != "mean":
            self._seen.append(columns)

    def _finish(self) -> None:
        require_numbers(self.key, self._moments.counts)
        if self._statistic == "mean":
            values = self._moments.means()
        else:
            each = np.concatenate(self._seen).T
            self._seen = []
            statistic = np.nanmedian if self._statistic == "median" else _most_frequent
            values = [float(statistic(one[~np.isnan(one)])) for one in each]
        self.restore({"value": values})

    def state(self) -> dict[str, Any]:
        """{value: C floats}"""
        return {"value": self._value.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """state: as returned by `state()`."""
        self._value = torch.tensor(state["value"], dtype=torch.float64)

    def __call__(self, batch: Batch) -> Batch:
        values = numbers(batch, self.key)
        if self._value.dim():
            check_channels(values, self.key, len(self._value), "of value")
        missing = values.isnan()
        value = by_channel(self._value.view(-1), values).to(values.dtype)
        filled = torch.where(missing, value, values)
        if self.mark and values.dim() < 2:
            raise DataError(
                f"{self.key}: {tuple(values.shape)} has no channels, so mark cannot add any. Join "
                "it first, or remove mark."
            )
        if self.mark:
            filled = torch.cat([filled, missing.to(filled.dtype)], dim=1)
        return {**batch, self.key: filled}


def _most_frequent(values: NDArray[np.float64]) -> float:
    found, counts = np.unique(values, return_counts=True)
    return float(found[counts.argmax()])


class Join:
    """Concatenates the columns `keys`, (B,) or (B, D), in that order, as float32, to `into`
    (B, sum of D).
    """

    def __init__(self, keys: Sequence[str], into: str = "features") -> None:
        self.keys = list(keys)
        self.into = into

    def __call__(self, batch: Batch) -> Batch:
        columns = [numbers(batch, key).float() for key in self.keys]
        rows = [column[:, None] if column.dim() == 1 else column for column in columns]
        kept = {name: value for name, value in batch.items() if name not in self.keys}
        return {**kept, self.into: torch.cat(rows, dim=1)}
