"""Arrays that a program has in memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.source import Numbers
from harness.errors import DataError
from harness.sources.narrowing import Narrowed, tell_narrowed
from harness.sources.source import BatchSource
from harness.wording import first_line


class Arrays(BatchSource):
    """Arrays, tensors or lists of one length, each a field of the samples by its name, e.g.
    `Arrays(image=images, label=labels)`: N values, or (N, ...) numbers.

    Numbers keep their type, but for 64-bit floats, which become float32. For configs made in Python
    (docs/python-api.md). Raises DataError.
    """

    def __init__(self, **fields: Any) -> None:
        self._fields = {name: _array(name, values) for name, values in fields.items()}
        self._given = {
            name: values if getattr(values, "dtype", None) == np.float64 else self._fields[name]
            for name, values in fields.items()
        }
        sizes = {name: len(values) for name, values in self._fields.items()}
        if len(set(sizes.values())) != 1:
            raise DataError(f"arrays: {sizes or 'none'}: give at least one, all of one length.")

    def __len__(self) -> int:
        return len(next(iter(self._fields.values())))

    def own_numbers(self) -> Numbers:
        """A function of indices (B,): {field: (B,)} of the fields that are one number a sample."""
        numbers = {
            name: of
            for name, of in self._fields.items()
            if of.ndim == 1 and of.dtype.kind in "biuf"
        }
        given = {name: np.asarray(self._given[name]) for name in numbers}
        return lambda indices: {name: of[indices] for name, of in given.items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{name: (B, ...) array, or a list of B texts}"""
        read = {name: values[indices] for name, values in self._fields.items()}
        return {name: of.tolist() if of.dtype.kind == "O" else of for name, of in read.items()}


def _array(name: str, values: Any) -> NDArray[Any]:
    try:
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except (ValueError, TypeError) as error:  # rows of several lengths; bfloat16, sparse tensors
        why = first_line(error).rstrip(".")
        raise DataError(
            f"arrays: {name}: {why}. Give rows of one length, of a type of NumPy's."
        ) from error
    if array.dtype.kind == "U":  # to which NumPy converts numbers among texts
        array = np.asarray(values, object)
    is_text = array.dtype.kind == "O" and all(isinstance(cell, str) for cell in array.flat)
    if array.ndim == 0 or not (is_text or array.dtype.kind in "biufc"):
        raise DataError(
            f"arrays: {name}: a {type(values).__name__} of neither numbers nor texts alone. "
            "Fill in what is missing, and give dates as numbers."
        )
    if array.dtype != np.float64:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if (np.isinf(narrow) & np.isfinite(array)).any():
        raise DataError(f"arrays: {name}: numbers too large for float32. Rescale them.")
    columns = array.reshape(len(array), -1).T if array.ndim < 3 else [array.ravel()]
    found = [lost for column in columns if (lost := Narrowed.of(column).lost()) is not None]
    tell_narrowed({name: found[0]} if found else {})
    return narrow
