"""Sources made of other sources: some of their samples, one after another, or drawn by weights."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.columns import Values, read_samples
from harness.data.mixing import Mixing, select_groups, shares_of
from harness.data.source import (
    Numbers,
    as_columns,
    class_names_of,
    has_length,
    known_of,
    order_of,
    own_numbers_of,
    paths_of,
    read_together,
    skipped_of,
)
from harness.errors import ConfigError, DataError
from harness.sources.source import BatchSource, select
from harness.sources.split import Part, Rule, rows_of
from harness.wording import some

Named = Mapping[str, Any] | Sequence[Any]


class Concat(BatchSource):
    """All samples of several sources, one source after another.

    sources: a list, or a mapping by names of your choice; without names they are called "0", "1",
    … Each sample is as its source gives it; all sources have to give the same names with the same
    type and number of axes. Known about each sample: its "source", by name, and what any of the
    sources knows, "" for samples of a source that does not know it.

    Raises ConfigError and DataError.
    """

    def __init__(self, sources: Named) -> None:
        self.sources = named_parts(sources, "sources")
        if not self.sources:
            raise ConfigError("sources: none. Give at least one.")
        for name, source in self.sources.items():
            _check(source, f"sources.{name}")
        self.sizes = tuple(len(source) for source in self.sources.values())
        self._refuse_orders()
        firsts = {
            f"sources.{name}": read_samples(source, [0], f"sources.{name}")
            for name, source in self.sources.items()
        }
        _require_alike(firsts)
        self._class_names = self._agreed_names()

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """B indices -> {name: (B, ...), or a list of B}"""
        numbers, rows_in = select_groups(np.asarray(indices, dtype=np.int64), self.sizes)
        rows: list[NDArray[np.int64]] = []
        parts: dict[str, dict[str, Values]] = {}
        for number, (name, source) in enumerate(self.sources.items()):
            mine = np.flatnonzero(numbers == number)
            if len(mine):
                where = f"sources.{name}"
                parts[where] = read_samples(source, rows_in[mine].tolist(), where)
                rows.append(mine)
        _require_alike(parts)
        back = np.argsort(np.concatenate(rows))
        return {
            name: _join([part[name] for part in parts.values()], back)
            for name in next(iter(parts.values()))
        }

    def known(self) -> dict[str, list[str]]:
        """{source: (N,) names, a column that any source knows: (N,) texts}"""
        of_each = [known_of(source) for source in self.sources.values()]
        names = list(dict.fromkeys(chain.from_iterable(of_each)))
        known = {
            name: list(
                chain.from_iterable(
                    of[name] if name in of else [""] * size
                    for of, size in zip(of_each, self.sizes, strict=True)
                )
            )
            for name in names
        }
        sized = zip(self.sources, self.sizes, strict=True)
        return {**known, "source": [name for name, size in sized for _ in range(size)]}

    def class_names(self) -> dict[str, list[str]]:
        """{column: names in the order of their numbers}"""
        return dict(self._class_names)

    def _agreed_names(self) -> dict[str, list[str]]:
        """The names of classes. Raises DataError where one number means two of them."""
        agreed: dict[str, tuple[str, list[str]]] = {}
        for name, source in self.sources.items():
            for column, names in class_names_of(source).items():
                first, wanted = agreed.setdefault(column, (name, names))
                if names != wanted:
                    raise DataError(
                        f"sources.{name}: the classes in {column!r} are {some(names)}, and those "
                        f"of sources.{first} {some(wanted)}, so one number means two of them. Set "
                        "the same classes in both."
                    )
        return {column: names for column, (_, names) in agreed.items()}

    def paths(self) -> list[Path] | None:
        """Every file that is read; None if one of the sources does not say."""
        found = [paths_of(source) for source in self.sources.values()]
        told = [paths for paths in found if paths is not None]
        return list(chain.from_iterable(told)) if len(told) == len(found) else None

    @property
    def skipped(self) -> list[str]:
        """What the sources skipped."""
        return list(chain.from_iterable(map(skipped_of, self.sources.values())))

    def _refuse_orders(self) -> None:
        for name, source in self.sources.items():
            _refuse_order(source, f"sources.{name}")


class Mixture(Concat):
    """Several sources, drawn by weights in training: after any number of samples, each source has
    given its share of them to within one sample.

    sources and weights: two lists, or two mappings with the same names; weights of any sum, as
    they are written (0.7 is seven tenths). Each source gives all of its samples before it
    repeats any, in a new order each time; a source may be a mixture itself. Which sample comes when
    depends on `run.seed` and its position in the training alone.

    As a source it has each sample once, as `Concat`: so it is evaluated, checked and stored, and
    treatments learn from it. An epoch of a training is as many draws as there are samples.
    """

    def __init__(self, sources: Named, weights: Mapping[str, float] | Sequence[float]) -> None:
        super().__init__(sources)
        shares = shares_of(weights_of(sources, weights))
        inner = tuple(order_of(source) for source in self.sources.values())
        self._order = Mixing(self.sizes, shares, inner)

    @property
    def order(self) -> Mixing:
        """Which sample comes at which position of a training."""
        return self._order

    def _refuse_orders(self) -> None:
        """Allowed: a mixture uses the orders of its sources."""


class Subset(BatchSource):
    """Some samples of a source: those at `indices`, or from `start` to before `stop`, every
    `step`-th of them; of these the `part` by a rule over what the source knows of its samples.

    Raises ConfigError and DataError.
    """

    def __init__(
        self,
        source: Any,
        indices: Sequence[int] | None = None,
        start: int = 0,
        stop: int | None = None,
        step: int = 1,
        part: Part = "all",
        split: Rule | None = None,
    ) -> None:
        _check(source, "source")
        _refuse_order(source, "source")
        self.sources = {"source": source}
        self._rows = _rows(len(source), indices, start, stop, step)
        known = {name: select(texts, self._rows) for name, texts in known_of(source).items()}
        self._rows = self._rows[np.asarray(rows_of(part, split, known, len(self._rows)))]
        if len(self._rows) == 0:
            raise DataError("no samples of the source are left. Choose others.")
        self._source = source

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """B indices -> {name: (B, ...), or a list of B}"""
        return dict(as_columns(read_together(self._source, self._rows[indices].tolist())))

    def known(self) -> dict[str, list[str]]:
        """{column: (N,) texts}, those that the source knows."""
        return {name: select(texts, self._rows) for name, texts in known_of(self._source).items()}

    def own_numbers(self) -> Numbers:
        """Numbers as the source's files have them."""
        own = own_numbers_of(self._source)
        return lambda indices: own(self._rows[indices])

    def class_names(self) -> dict[str, list[str]]:
        """{column: names in the order of their numbers}, as the source gives them."""
        return class_names_of(self._source)

    def paths(self) -> Sequence[Path] | None:
        """The files that the source reads; None if it does not say."""
        return paths_of(self._source)

    @property
    def skipped(self) -> Sequence[str]:
        """What the source skipped."""
        return skipped_of(self._source)


def weights_of(sources: Named, weights: Mapping[str, float] | Sequence[float]) -> list[float]:
    """The weight of each source, in their order. Raises ConfigError."""
    named, parts = named_parts(weights, "weights"), named_parts(sources, "sources")
    both = isinstance(sources, Mapping) == isinstance(weights, Mapping)
    if not parts or set(named) != set(parts) or not both:
        raise ConfigError(
            f"weights: {', '.join(named) or 'none'}, and the sources are "
            f"{', '.join(parts) or 'none'}. Give one weight for each, both as lists or both with "
            "names."
        )
    return [named[name] for name in parts]


def named_parts(given: Named, what: str) -> dict[str, Any]:
    """Parts by name, those of a list by "0", "1", … Raises ConfigError."""
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"{what}: {given!r} is neither a list nor a mapping by names.")
    return {str(number): one for number, one in enumerate(given)}


def _check(source: Any, where: str) -> None:
    if not has_length(source):
        raise DataError(
            f"{where}: a {type(source).__name__} has no length. Streams are mixed by "
            "harness.sources.streams.MixedStream."
        )
    if len(source) == 0:
        raise DataError(f"{where}: it is empty. Leave it out.")


def _refuse_order(source: Any, where: str) -> None:
    if order_of(source) is not None:
        raise ConfigError(
            f"{where}: a {type(source).__name__} draws by weights, which would be lost here. Make "
            "the mixture of the parts, or put it into a Mixture."
        )


def _rows(
    size: int, indices: Sequence[int] | None, start: int, stop: int | None, step: int
) -> NDArray[np.int64]:
    for name, one in (("start", start), ("stop", size if stop is None else stop), ("step", step)):
        _require_integer(name, one)
    if indices is None:
        if step < 1 or start < 0 or (stop is not None and stop < start):
            raise ConfigError(
                f"start, stop, step: {start}, {stop}, {step}: give 0 <= start <= stop and step >= "
                "1."
            )
        if stop is not None and stop > size:
            raise ConfigError(f"stop: {stop}: the source has {size} samples.")
        return np.arange(start, size if stop is None else stop, step, dtype=np.int64)
    if (start, stop, step) != (0, None, 1):
        raise ConfigError("indices: start, stop and step have no effect with it. Remove them.")
    for index in indices:
        _require_integer("indices", index)
    rows = np.asarray(indices, dtype=np.int64)
    outside = rows[(rows < 0) | (rows >= size)]
    if len(outside):
        raise ConfigError(f"indices: {outside[0]}: the source has {size} samples, 0 to {size - 1}.")
    return rows


def _require_integer(name: str, number: Any) -> None:
    if isinstance(number, bool | np.bool_) or not hasattr(number, "__index__"):
        raise ConfigError(f"{name}: {number!r}: must be an integer.")


def _kind(column: Values) -> tuple[str, int]:
    """The type of a column's cells, and their number of axes."""
    if isinstance(column, np.ndarray):
        return str(column.dtype), column.ndim - 1
    cell = column[0]
    return (str(cell.dtype), cell.ndim) if isinstance(cell, np.ndarray) else ("text", 0)


def _require_alike(parts: Mapping[str, Mapping[str, Values]]) -> None:
    """Raise DataError for samples of two sources that cannot be in one micro-batch, or not always
    with the same types.
    """
    (first, mine), *others = parts.items()
    for other, theirs in others:
        if mine.keys() != theirs.keys():
            raise DataError(
                f"{other}: samples have {', '.join(theirs)}, and those of {first} "
                f"{', '.join(mine)}. Give each sample the same names."
            )
        for name in mine:
            (kind, axes), (their_kind, their_axes) = _kind(mine[name]), _kind(theirs[name])
            if (kind, axes) != (their_kind, their_axes):
                raise DataError(
                    f"{other}: {name!r} is {their_kind} with {their_axes} axes, and that of "
                    f"{first} {kind} with {axes}. Read both alike."
                )


def _join(columns: list[Values], back: NDArray[np.int64]) -> Any:
    """Columns one after another, in the order of `back`."""
    arrays = [column for column in columns if isinstance(column, np.ndarray)]
    if len(arrays) == len(columns) and len({column.shape[1:] for column in arrays}) == 1:
        return np.concatenate(arrays)[back]
    cells = list(chain.from_iterable(columns))
    return [cells[index] for index in back.tolist()]
