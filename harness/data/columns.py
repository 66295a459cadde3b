"""What is known about the samples of a source before any treatment: without reading them, and from
reading them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.data.source import array_of, as_columns, known_of, read_together
from harness.errors import ConfigError, DataError, HarnessError
from harness.wording import did_you_mean

BLOCK_BYTES = 2**25  # samples are read in blocks of about this size


LARGEST_BLOCK = 4096


Values = NDArray[Any] | list[Any]


def read_samples(source: Any, indices: Sequence[int], where: str) -> dict[str, Values]:
    """{name: (B, ...) numbers, or a list of B texts or arrays of unequal shapes}.

    Raises a DataError that says which samples could not be read.
    """
    try:
        columns = as_columns(read_together(source, indices))
        return {name: _values(name, column) for name, column in columns.items()}
    except HarnessError as error:
        raise type(error)(f"{where}: {error}") from error
    except Exception as error:
        raise DataError(
            f"{where}: {type(error).__name__} while reading samples {indices[0]} to {indices[-1]}: "
            f"{error}"
        ) from error


def blocks_of(
    source: Any, rows: NDArray[np.int64], where: str
) -> Iterator[tuple[list[int], dict[str, Values]]]:
    """(indices, samples) block by block over `rows`. Raises DataError."""
    if len(rows) == 0:
        return
    first = read_samples(source, [int(rows[0])], where)
    size_bytes = sum(np.asarray(column[0]).nbytes for column in first.values())
    size = max(1, min(LARGEST_BLOCK, BLOCK_BYTES // max(1, size_bytes)))
    for begin in range(0, len(rows), size):
        indices = rows[begin : begin + size].tolist()
        yield indices, read_samples(source, indices, where)


def column_of(source: Any, name: str, where: str) -> list[str]:
    """(N,) texts of a column: known by the source, else read from all samples.

    Raises ConfigError, with `where` as the setting that names the column, if there is no
    such column with one value per sample.
    """
    known = known_of(source)
    if name in known:
        return list(known[name])
    texts: list[str] = []
    for _, samples in blocks_of(source, np.arange(len(source)), where):
        texts += texts_of(samples, name, known, where)
    return texts


def texts_of(
    samples: Mapping[str, Values], name: str, known: Mapping[str, Sequence[str]], where: str
) -> list[str]:
    """A column (B,) of read samples as texts.

    Raises ConfigError if there is none, or if it has several values per sample.
    """
    if name not in samples:
        names = [*known, *(other for other in samples if other not in known)]
        raise ConfigError(
            f"{where}: no column {name!r} is known; the known columns are "
            f"{', '.join(names)}.{did_you_mean(name, names)}"
        )
    values = samples[name]
    if not has_one_value(values):
        raise ConfigError(
            f"{where}: {name!r} has {np.asarray(values[0]).size} values per sample, where one is "
            "needed. Choose another column."
        )
    return list(map(str, values.tolist() if isinstance(values, np.ndarray) else values))


def has_one_value(values: Values) -> bool:
    """Whether a column holds one number or text for each sample."""
    return values.ndim == 1 if isinstance(values, np.ndarray) else are_texts(values)


def are_texts(cells: Iterable[Any]) -> bool:
    """Whether all of them are texts."""
    return all(issubclass(kind, str) for kind in set(map(type, cells)))


def _values(name: str, column: Any) -> Values:
    if isinstance(column, torch.Tensor):
        return array_of(name, column)
    items = None
    if isinstance(column, list | tuple):
        if column and are_texts(column):
            return list(column)
        items = [array_of(name, one) if isinstance(one, torch.Tensor) else one for one in column]
    if items is None or len({np.shape(item) for item in items}) == 1:
        array = np.asarray(column if items is None else items)
        return array if array.dtype.kind in "biuf" else array.tolist()
    return [np.asarray(item) for item in items]
