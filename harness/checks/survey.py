"""One pass over a split's samples, as its source returns them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness import components
from harness.checks.channels import Channels
from harness.checks.roles import Roles
from harness.components import TARGET
from harness.data.columns import Values, are_texts, blocks_of, has_one_value, texts_of
from harness.data.source import known_of, some_of
from harness.data.texts import Texts
from harness.errors import ConfigError
from harness.treatments import Join

BLANK_SIZE = 8  # a sample of this many numbers, all equal, is blank rather than a duplicate
_SHORT = 256  # bytes of a row that are hashed with others at once
Hashes = NDArray[np.uint64]


class Observer(Protocol):
    """Sees the samples that are read."""

    def add(self, samples: Mapping[str, Values]) -> None:
        """The next block of them."""


@dataclass
class Survey:
    """What is known about a split.

    Of the n checked samples, `rows` (n,): `hashes` (n, 2) of their content, of which some are
    `is_blank` (n,), `columns` of one text per sample, and `channels`: statistics of their numbers,
    by key. `known`: texts of all samples.
    """

    split: str
    num_samples: int
    rows: NDArray[np.int64]
    known: Mapping[str, Sequence[str]]
    hashes: Hashes
    is_blank: NDArray[np.bool_]
    columns: Mapping[str, Texts] = field(default_factory=dict)
    channels: dict[str, Channels] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"data.{self.split}"

    def name(self, row: int) -> str:
        """A sample in messages: its index, and its file or its span of a recording, if known."""
        path, recording, start, stop = (
            self.known[name][row] if name in self.known else ""
            for name in ("path", "recording", "start", "stop")
        )
        span = f" [{start}, {stop})" if start and stop else ""
        origin = f" ({recording or path}{span})" if recording or path else ""
        return f"{self.where} {row:,}{origin}"

    def labels(self, target: str) -> Texts | None:
        """A target's values, one for each checked sample; None if samples do not have it before the
        treatments, or have several values each.
        """
        if target in self.columns:
            return self.columns[target]
        if target in self.known:
            return Texts.of(self.known[target]).take(self.rows)
        return None

    def texts(self, column: str) -> tuple[NDArray[np.int64], Sequence[str]]:
        """Rows and texts of a column: of all samples if the source knows them, else of the checked
        ones.
        """
        if column in self.known:
            return np.arange(self.num_samples), self.known[column]
        return self.rows, self.columns[column]

    def groups(self, columns: Sequence[str]) -> Texts:
        """The joined values of these columns: of all samples if the source knows the columns, else
        of the checked ones.
        """
        of_all = all(name in self.known for name in columns)
        texts = [self.known[name] if of_all else self.labels(name) or () for name in columns]
        if len(texts) == 1:
            return Texts.of(texts[0])
        return Texts.of(
            [" ".join(cells) if all(cells) else "" for cells in zip(*texts, strict=True)]
        )


def survey(
    split: str,
    source: Any,
    limit: int,
    roles: Roles,
    treatments: Sequence[Mapping[str, Any]],
    asked: Sequence[str],
    ranges: Mapping[str, tuple[float, float]],
    observers: Sequence[Observer] = (),
) -> Survey:
    """Read at most `limit` samples; `observers` see each block of them.

    `treatments`: the specs of the split's. `asked`: columns of one text per sample that must
    exist. Raises ConfigError and DataError.
    """
    size = len(source)
    rows = some_of(source, limit)
    hashes, is_blank = np.empty((len(rows), 2), np.uint64), np.empty(len(rows), np.bool_)
    found = Survey(split, size, rows, known_of(source), hashes, is_blank)
    where = f"data.{split}"
    targets = {role.target for role in roles.targets}
    columns: dict[str, list[str]] = {}
    end = 0
    for indices, samples in blocks_of(source, rows, where):
        block = slice(end, end := end + len(indices))
        unknown = sorted(set(ranges) - set(samples))
        if unknown:
            raise ConfigError(
                f"data.checks.ranges: samples of {where} have no {unknown[0]!r}, they have "
                f"{', '.join(samples)}. Use one of these."
            )
        for observer in observers:
            observer.add(samples)
        names = content_of(samples, roles, treatments)
        hashes[block], is_blank[block] = hashes_of(samples, names)
        single = [name for name in targets if name in samples and has_one_value(samples[name])]
        for name in dict.fromkeys([*asked, *single]):
            if name in samples or name not in found.known:
                columns.setdefault(name, []).extend(
                    texts_of(samples, name, found.known, f"data.checks: {where}")
                )
        classes = {role.target for role in roles.classes}
        for name, values in samples.items():
            for at, numbers in _numbers(indices, values):
                if name not in classes and numbers.dtype.kind in "iuf":
                    found.channels.setdefault(name, Channels(name, ranges.get(name))).add(
                        at, numbers
                    )
    found.columns = {name: Texts.of(texts) for name, texts in columns.items()}
    return found


def content_of(
    samples: Mapping[str, Values], roles: Roles, treatments: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """The columns by which samples are compared: the network's inputs, or the columns that `Join`
    makes them of, if samples have them before any treatment; else all but the targets.
    """
    inputs = _join_inputs(roles.inputs, treatments)
    if inputs and inputs <= set(samples):
        return sorted(inputs)
    targets = {role.target for role in roles.targets} - set(roles.inputs)
    return sorted(set(samples) - targets) or sorted(samples)


def _join_inputs(inputs: Sequence[str], treatments: Sequence[Mapping[str, Any]]) -> set[str]:
    """The columns of the source that joined columns are made of."""
    wanted = set(inputs)
    for spec in reversed(treatments):
        if components.find(spec[TARGET]) is Join:
            join = Join(**{name: spec[name] for name in ("keys", "into") if name in spec})
            if join.into in wanted:
                wanted = wanted - {join.into} | set(join.keys)
    return wanted


def hashes_of(samples: Mapping[str, Values], names: Sequence[str]) -> tuple[Hashes, NDArray[Any]]:
    """(B, 2): 128 bits of the type, shape and bytes of these columns; (B,): whether blank."""
    hashes, blank = zip(*(_hashes(samples[name]) for name in names), strict=True)
    return _sums(np.concatenate(hashes, 1).view(np.uint32)), np.logical_and.reduce(blank)


def _hashes(values: Values) -> tuple[Hashes, NDArray[np.bool_]]:
    """(B, 2), (B,): the same of one column."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf" and values.dtype.isnative:
        rows = np.ascontiguousarray(values).reshape(len(values), math.prod(values.shape[1:]))
        blank = (rows == rows[:, :1]).all(1) & (rows.shape[1] >= BLANK_SIZE)
        kind = f"{values.dtype} {values.shape[1:]}".encode()
        size = rows.shape[1] * rows.itemsize
        if size > _SHORT:
            data = rows.tobytes()
            return _digests(kind + data[at : at + size] for at in range(0, len(data), size)), blank
        words = np.zeros((len(rows), 4 + -(-size // 4)), np.uint32)
        words[:, :4] = _digests([kind]).view(np.uint32)
        words.view(np.uint8)[:, 16 : 16 + size] = rows.view(np.uint8).reshape(len(rows), size)
        return _sums(words), blank
    if are_texts(values):
        texts = [cell.encode() for cell in values]
        hashes = _digests(b"str %d " % len(text) + text for text in texts)
        return hashes, np.zeros(len(texts), np.bool_)
    arrays = list(map(np.asarray, values))
    if any(array.dtype.kind not in "biuf" or not array.dtype.isnative for array in arrays):
        kinds = (f"{array.dtype} {array.shape}".encode() for array in arrays)
        contents = (kind + array.tobytes() for kind, array in zip(kinds, arrays, strict=True))
        blanks = [array.size >= BLANK_SIZE and (array == array.flat[0]).all() for array in arrays]
        return _digests(contents), np.array(blanks, np.bool_)
    each = [_hashes(array[None]) for array in arrays]
    return np.concatenate([one for one, _ in each]), np.concatenate([blank for _, blank in each])


def _digests(contents: Iterable[bytes]) -> Hashes:
    """(B, 2)"""
    digests = b"".join([blake2b(content, digest_size=16).digest() for content in contents])
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def _sums(words: NDArray[np.uint32]) -> Hashes:
    """(B, K) -> (B, 2): sums of words, each times a random number. Different words have the same
    sums by a chance of 2^-66 at most (J. L. Carter and M. N. Wegman, "Universal classes of hash
    functions", 1979).
    """
    draw = np.random.default_rng(0)
    factors = draw.integers(2**64, size=(words.shape[1], 2), dtype=np.uint64)
    return words.astype(np.uint64) @ factors


def _numbers(indices: list[int], values: Values) -> list[tuple[list[int], NDArray[Any]]]:
    """(indices, their numbers): together, or one by one if shapes differ."""
    if isinstance(values, np.ndarray):
        return [(indices, values)] if values.size else []
    if are_texts(values):
        return []
    return [
        ([index], value[None])
        for index, value in zip(indices, values, strict=True)
        if isinstance(value, np.ndarray)
    ]
