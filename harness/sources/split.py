"""Which samples belong to which part: rules, not draws, so that they are the same everywhere and
for ever, and can be read in the config.

A rule is given what is known of the samples, `{column: values (N,)}` as text, and says the part of
each. A source with `part: all` needs none.
"""

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError, require_choice
from harness.wording import did_you_mean, some

Part = Literal["all", "train", "val", "test"]
Known = Mapping[str, Sequence[str]]
_PARTS = ("train", "val", "test")


class Rule(Protocol):
    """What a split is made by."""

    @property
    def columns(self) -> Sequence[str]:
        """What it has to know of a sample."""

    def parts(self, known: Known) -> NDArray[np.str_]:
        """{column: (N,)} -> (N,) of "train", "val", "test"; other words belong to no part."""


class ByValue:
    """A column says it: the part's name itself, or a value that is listed for a part.

    A part that is not listed, at most one, gets all the others.
    """

    def __init__(
        self,
        column: str,
        train: Sequence[Any] | None = None,
        val: Sequence[Any] | None = None,
        test: Sequence[Any] | None = None,
    ) -> None:
        self.columns = [column]
        lists = {"train": train, "val": val, "test": test}
        self._part_of = {
            str(value): part for part, values in lists.items() for value in values or ()
        }
        if len(self._part_of) < sum(len(values or ()) for values in lists.values()):
            raise ConfigError(f"train, val, test: a value of {column!r} is listed twice.")
        self._given = bool(self._part_of)
        # With a list for test alone the others are for training; "val" has to be asked for.
        self._others = (
            next((part for part in _PARTS if lists[part] is None), "none") if self._given else ""
        )

    def parts(self, known: Known) -> NDArray[np.str_]:
        (values,) = _columns(known, self.columns)
        if not self._given:
            unknown = sorted(set(values) - set(_PARTS))
            if unknown:
                raise DataError(
                    f"split: {self.columns[0]!r} says {unknown[0]!r}, which is none of train, val, "
                    "test. List the values of each part."
                )
            return np.array(values, dtype=np.str_)
        missing = set(self._part_of) - set(values)
        if missing:
            raise DataError(
                f"split: no sample has {min(missing)!r} in {self.columns[0]!r}. Its values are "
                f"{some(sorted(set(values)), 8)}."
            )
        return np.array([self._part_of.get(value, self._others) for value in values], dtype=np.str_)


class ByGroup:
    """Whole groups (a subject, a speaker, a recording): in the order of their names' hashes, until
    a part has its share of the samples.

    With several columns, samples of a group are alike in all of them.
    """

    def __init__(self, column: str | Sequence[str], val: float = 0.1, test: float = 0.1) -> None:
        self.columns = [column] if isinstance(column, str) else list(column)
        if not self.columns:
            raise ConfigError("column: name at least one.")
        self._shares = _shares(val, test)

    def parts(self, known: Known) -> NDArray[np.str_]:
        groups = _together(_columns(known, self.columns))
        parts = parts_by_share(groups, self._shares)
        absent = [part for part, share in self._shares.items() if share > 0 and part not in parts]
        if absent:
            named = ", ".join(map(repr, self.columns))
            raise DataError(
                f"split: {len(set(groups))} groups in {named} are too few to give {absent[0]} its "
                "share. Set another share."
            )
        return parts


class ByTime:
    """What is to come is not known yet: the earliest samples are for training, later ones for
    "val", the last for "test".

    `column` holds numbers or dates such as 2026-01-31 or 2026-01-31T12:00; samples of one time stay
    together. Those less than `gap` (in the column's unit, for dates seconds) after the first of
    "val" or "test" belong to no part: set it to a window's length where windows overlap.
    """

    def __init__(self, column: str, val: float = 0.1, test: float = 0.1, gap: float = 0.0) -> None:
        if not gap >= 0:
            raise ConfigError(f"gap: {gap}: at least 0.")
        self.columns = [column]
        self._shares = _shares(val, test)
        self._gap = gap

    def parts(self, known: Known) -> NDArray[np.str_]:
        (texts,) = _columns(known, self.columns)
        times = np.array([_time(text, self.columns[0]) for text in texts])
        ordered = np.sort(times)
        parts = np.full(len(times), "train", dtype="<U5")
        left = sum(self._shares.values())
        for part in ("val", "test"):
            place = round((1 - left) * len(times))
            left -= self._shares[part]
            if self._shares[part] > 0 and place < len(times):
                parts[times >= ordered[place]] = "none"
                parts[times >= ordered[place] + self._gap] = part
        return parts


def _time(text: str, column: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise DataError(
            f"split: {text!r} in {column!r} is neither a number nor a date such as 2026-01-31. "
            "Name another column."
        ) from None
    return (date if date.tzinfo is not None else date.replace(tzinfo=datetime.UTC)).timestamp()


class Stratified:
    """The same share of each class.

    `key`: columns that tell samples apart, by whose hash they are ordered; equal ones stay
    together.
    """

    def __init__(
        self, column: str, key: str | Sequence[str], val: float = 0.1, test: float = 0.1
    ) -> None:
        self.columns = [column, *([key] if isinstance(key, str) else key)]
        if len(self.columns) < 2:
            raise ConfigError("key: name at least one column that tells samples apart.")
        self._shares = _shares(val, test)

    def parts(self, known: Known) -> NDArray[np.str_]:
        names, *keys = _columns(known, self.columns)
        classes = np.array(names, dtype=np.str_)
        joined = np.array(_together(keys), dtype=np.str_)
        parts = np.empty(len(classes), dtype="<U5")
        for name in np.unique(classes):
            rows = np.flatnonzero(classes == name)
            parts[rows] = parts_by_share(joined[rows].tolist(), self._shares)
        return parts


def parts_by_share(keys: Sequence[str], shares: Mapping[str, float]) -> NDArray[np.str_]:
    """keys (N,) -> (N,) parts: keys in the order of their hashes take the parts in the order of
    `shares`; the samples of a key stay together.

    A key belongs to where the middle of its samples falls, so that shares are kept as nearly as
    whole keys allow. The rest is "train".
    """
    unique, which, counts = np.unique(
        np.array(keys, dtype=np.str_), return_inverse=True, return_counts=True
    )
    order = np.argsort(
        [hashlib.blake2b(key.encode(), digest_size=16).hexdigest() for key in unique.tolist()]
    )
    middle = np.empty(len(unique))
    middle[order] = np.cumsum(counts[order]) - counts[order] / 2
    ends = np.cumsum(list(shares.values())) * len(which)
    names = np.array([*shares, "train"])
    chosen: NDArray[np.str_] = names[np.searchsorted(ends, middle, side="right")][which]
    return chosen


def rows_of(part: Part, rule: Rule | None, known: Known, count: int) -> NDArray[np.int64]:
    """Which of `count` samples belong to a part, in their order.

    Raises ConfigError or DataError, the latter also for a part without any.
    """
    require_choice("part", part, get_args(Part))
    if part == "all":
        return np.arange(count)
    if rule is None:
        raise ConfigError(
            f"part: {part!r} needs a rule to split by: set split, e.g. {{_target_: "
            f"harness.sources.split.ByGroup, column: ...}}."
        )
    parts = rule.parts(known)
    rows = np.flatnonzero(parts == part)
    if len(rows) == 0:
        raise DataError(
            f"part: no sample of {count} is in {part!r}; there are "
            f"{some(sorted(set(parts.tolist())), 8)}. Look at split."
        )
    return rows


def _columns(known: Known, names: Sequence[str]) -> list[Sequence[str]]:
    for name in names:
        if name not in known:
            raise ConfigError(
                f"split: nothing is known of {name!r}, only of "
                f"{', '.join(known) or 'nothing'}.{did_you_mean(name, known, quoted=True)}"
            )
    return [known[name] for name in names]


def _together(columns: Sequence[Sequence[str]]) -> list[str]:
    """Columns (N,) as one, in which samples are equal if they are in all of them."""
    return ["\x1f".join(cells) for cells in zip(*columns, strict=True)]


def _shares(val: float, test: float) -> dict[str, float]:
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise ConfigError(
            f"val, test: {val} and {test}: shares of at least 0 that leave some for training are "
            "needed."
        )
    return {"test": test, "val": val}
