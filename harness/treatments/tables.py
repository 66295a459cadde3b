"""Treatments of the columns of tables: text to numbers, gaps filled."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.errors import ConfigError, DataError
from harness.treatments.numbers import numbers

Batch = dict[str, Any]


class Encode:
    """A column of text to the numbers of its categories, (B,) int64 in the order in which they are given.

    Raises DataError for another text, or gives it the number len(categories) with `others: true`; and for samples without the column, unless it is
    `optional`: a target, which new data to predict does not have.
    """

    def __init__(self, key: str, categories: Sequence[Any], others: bool = False, optional: bool = False) -> None:
        self.key = key
        self.categories = [str(category) for category in categories]
        self.others = others
        self.optional = optional
        self._numbers = {category: number for number, category in enumerate(self.categories)}
        if len(self._numbers) < len(self.categories) or not self.categories:
            raise ConfigError(f"categories: {self.categories}: at least one, and each once.")

    def __call__(self, batch: Batch) -> Batch:
        if self.optional and self.key not in batch:
            return batch
        texts = batch.get(self.key)
        if not isinstance(texts, list):
            raise DataError(f"Encode needs {self.key!r} as text; samples have {', '.join(sorted(batch))}. Read the column as text, or set key.")
        unknown = next((text for text in texts if text not in self._numbers), None)
        if unknown is not None and not self.others:
            shown = ", ".join(self.categories[:20])
            raise DataError(f"{self.key}: {unknown!r} is none of the categories {shown}. Add it to categories, or set others: true.")
        return {**batch, self.key: torch.tensor([self._numbers.get(text, len(self.categories)) for text in texts], dtype=torch.int64)}


class OneHot:
    """Numbers 0 … size-1 to rows with a 1 in their place: (B,) int64 -> (B, size) float32. Raises DataError for a number outside."""

    def __init__(self, key: str, size: int) -> None:
        self.key = key
        self.size = size

    def __call__(self, batch: Batch) -> Batch:
        values = numbers(batch, self.key)
        if values.is_floating_point() or bool((values < 0).any()) or bool((values >= self.size).any()):
            raise DataError(f"{self.key}: whole numbers from 0 to {self.size - 1} are needed. Put harness.treatments.Encode before it, or set size.")
        return {**batch, self.key: torch.nn.functional.one_hot(values, self.size).float()}


class Impute:
    """Numbers that are missing (NaN) become `value`, one for all or one a column of (B, D). `mark`: D more columns, 1 where one was missing."""

    def __init__(self, value: float | Sequence[float], mark: bool = False, key: str = "features") -> None:
        self.key = key
        self.mark = mark
        self._value = torch.tensor(value, dtype=torch.float32)
        if not self._value.isfinite().all():
            raise ConfigError(f"value: {value}: numbers are needed.")

    def __call__(self, batch: Batch) -> Batch:
        values = numbers(batch, self.key)
        if self._value.dim() and (values.dim() != 2 or values.shape[1] != len(self._value)):
            raise DataError(f"{self.key}: {tuple(values.shape)} does not have the {len(self._value)} columns that value is given for.")
        missing = values.isnan()
        filled = torch.where(missing, self._value.to(values.dtype), values)
        return {**batch, self.key: torch.cat([filled, missing.to(filled.dtype)], dim=1) if self.mark else filled}


class Join:
    """Columns side by side, as float32: numbers (B,) and rows (B, D) of `keys`, in that order, become `into` (B, sum of D)."""

    def __init__(self, keys: Sequence[str], into: str = "features") -> None:
        self.keys = list(keys)
        self.into = into

    def __call__(self, batch: Batch) -> Batch:
        parts: list[Tensor] = [numbers(batch, key).float() for key in self.keys]
        kept = {name: value for name, value in batch.items() if name not in self.keys}
        return {**kept, self.into: torch.cat([part[:, None] if part.dim() == 1 else part for part in parts], dim=1)}
