"""What sources share: samples that are read a batch at a time, and columns of text about them."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value")
Rows = Sequence[int] | NDArray[np.int64]


class BatchSource:
    """A source that reads samples a batch at a time; one sample is a batch of one."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """B indices -> {name: (B, ...) array, or a list of B texts}"""
        raise NotImplementedError


def select(values: Sequence[Value], rows: Rows) -> list[Value]:
    """values (N,), rows (M,) -> (M,)"""
    return [values[row] for row in np.asarray(rows).tolist()]


def as_texts(values: NDArray[Any]) -> list[str]:
    """(N,) numbers -> N texts."""
    return list(map(str, values.tolist()))


def span_columns(
    recordings: Iterable[Any], starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> dict[str, list[str]]:
    """Known columns of N samples cut from recordings: each sample is [start, stop) of one."""
    return {
        "recording": list(map(str, recordings)),
        "start": as_texts(starts),
        "stop": as_texts(stops),
    }
