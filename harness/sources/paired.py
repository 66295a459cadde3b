"""Samples of several sources paired by a common value, e.g. an image and a recording of the same
class.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.columns import read_samples
from harness.data.source import class_names_of, known_of
from harness.errors import ConfigError, DataError
from harness.sources.source import BatchSource, select

_READ_AT_ONCE = 256


class Paired(BatchSource):
    """Each sample of the first source, with one of every other source that has the same `by`,
    chosen by a hash of its index: always the same.

    sources: by the key taken from each, e.g. `{image: {...}, wave: {...}}`. A sample: these
    keys, and `by` (an integer). The split is only as
    sound as those of the sources: pair train with train, test with test. Each source is read once
    at start-up, for its `by`. Raises DataError for a value of the first source that another one
    lacks.
    """

    def __init__(self, sources: Mapping[str, Any], by: str = "label") -> None:
        if len(sources) < 2 or by in sources:
            raise ConfigError(
                f"sources: {', '.join(sources) or 'none'}: give at least two, by the keys to "
                f"take from them, none of them {by!r}."
            )
        self.by = by
        self.sources = dict(sources)
        first, *others = sources
        self._values = _values(first, sources[first], by)
        self._rows = {first: np.arange(len(self._values))}
        for key in others:
            self._rows[key] = _partners(self._values, _values(key, sources[key], by), key, by)

    def __len__(self) -> int:
        return len(self._values)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{<key of each source>: (B, ...), <by>: (B,)}"""
        taken = {
            key: read_samples(source, self._rows[key][indices].tolist(), f"sources.{key}")[key]
            for key, source in self.sources.items()
        }
        return {**taken, self.by: self._values[indices]}

    def class_names(self) -> dict[str, list[str]]:
        """Those of the column `by`, as the first source names them."""
        names = class_names_of(next(iter(self.sources.values())))
        return {self.by: names[self.by]} if self.by in names else {}

    def known(self) -> dict[str, list[str]]:
        """What each source knows about its samples, as <key>_<name>."""
        return {
            f"{key}_{name}": select(texts, self._rows[key])
            for key, source in self.sources.items()
            for name, texts in known_of(source).items()
        }


def _partners(
    wanted: NDArray[np.int64], values: NDArray[np.int64], key: str, by: str
) -> NDArray[np.int64]:
    """wanted: (N,), values: (M,) -> (N,) indices into values."""
    rows_of = {value: np.flatnonzero(values == value) for value in np.unique(values).tolist()}
    missing = sorted(set(wanted.tolist()) - set(rows_of))
    if missing:
        raise DataError(
            f"sources.{key}: no sample has {by!r} {missing[0]}, which the first source has. Add "
            "some, or remove it from the first."
        )
    chosen = np.empty(len(wanted), dtype=np.int64)
    for index, value in enumerate(wanted.tolist()):
        rows = rows_of[value]
        draw = hashlib.blake2b(f"{key}/{index}".encode(), digest_size=8).digest()
        chosen[index] = rows[int.from_bytes(draw, "big") % len(rows)]
    return chosen


def _values(key: str, source: Any, by: str) -> NDArray[np.int64]:
    """(N,): `by` of each sample of a source."""
    found: list[Any] = []
    for begin in range(0, len(source), _READ_AT_ONCE):
        samples = read_samples(
            source, range(begin, min(begin + _READ_AT_ONCE, len(source))), f"sources.{key}"
        )
        for name in (key, by):
            if name not in samples:
                has = ", ".join(sorted(samples))
                raise DataError(
                    f"sources.{key}: samples have no {name!r}, they have {has}. Name each source "
                    "by the key to take from it."
                )
        found.extend(np.asarray(samples[by]).tolist())
    values = np.array(found)
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise DataError(
            f"sources.{key}: {by!r} is {values.dtype} {values.shape[1:]}, expected one integer "
            "per sample. Set by."
        )
    return values.astype(np.int64)
