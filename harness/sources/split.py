"""Which samples belong to which part: deterministic rules, the same on every machine, stated in
the config.

A rule takes what is known about the samples, `{column: values (N,)}` as text, and gives the part
of each. A source with `part: all` needs no rule.
"""

import datetime
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from harness.data.texts import Texts
from harness.data.written import name_of, text_of
from harness.errors import ConfigError, DataError, require_choice
from harness.sources.dates import parse_iso
from harness.wording import did_you_mean, some

Part = Literal["all", "train", "val", "test"]
Known = Mapping[str, Sequence[str]]
_PARTS = ("train", "val", "test")
ROW = "number of the sample"  # a column that rules with `by_row` may ask for


class Rule(Protocol):
    """A way of splitting samples."""

    @property
    def columns(self) -> Sequence[str]:
        """The columns that the rule needs."""

    def parts(self, known: Known) -> NDArray[np.str_] | Texts:
        """{column: (N,)} -> (N,) of "train", "val", "test"; any other word means no part."""


class ByValue:
    """By a column: it holds the part's name, or a value that is listed for a part.

    The first part without a list gets all other values.
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
            text_of(value): part for part, values in lists.items() for value in values or ()
        }
        if len(self._part_of) < sum(len(values or ()) for values in lists.values()):
            raise ConfigError(
                f"train, val, test: a value of {column!r} is listed twice. Remove one."
            )
        self._given = bool(self._part_of)
        # With a list for test alone, all others are for training; "val" needs a list.
        self._others = (
            next((part for part in _PARTS if lists[part] is None), "none") if self._given else ""
        )

    def parts(self, known: Known) -> NDArray[np.str_]:
        values = _columns(known, self.columns)[0].compact()
        if not self._given:
            unknown = sorted(set(values.words) - set(_PARTS))
            if unknown:
                raise DataError(
                    f"split: {self.columns[0]!r} says {unknown[0]!r}, which is not one of train, "
                    "val, test. List the values of each part."
                )
            return values.array()
        missing = set(self._part_of) - set(values.words)
        if missing:
            raise DataError(
                f"split: no sample has {min(missing)!r} in {self.columns[0]!r}. Its values are "
                f"{some(sorted(values.words), 8)}."
            )
        parts = [self._part_of.get(word, self._others) for word in values.words]
        return Texts(parts, values.codes).array()


class ByGroup:
    """Whole groups (a subject, a speaker, a recording), in the order of their names' hashes, until
    each part has its share of the samples.

    With several columns, the samples of a group are equal in all of them.
    """

    def __init__(self, column: str | Sequence[str], val: float = 0.1, test: float = 0.1) -> None:
        self.columns = [column] if isinstance(column, str) else list(column)
        if not self.columns:
            raise ConfigError("column: give at least one.")
        self._shares = _shares(val, test)

    def parts(self, known: Known) -> Texts:
        groups = _together(_columns(known, self.columns))
        parts = parts_by_share(groups, self._shares)
        absent = [
            part for part, share in self._shares.items() if share > 0 and part not in parts.words
        ]
        if absent:
            named = ", ".join(map(repr, self.columns))
            count = len(groups.compact().words)
            raise DataError(
                f"split: {count} groups in {named} are too few to give {absent[0]} its share. Set "
                "a larger share."
            )
        return parts


class ByTime:
    """By time: the earliest samples are for training, later ones for "val", the last for
    "test".

    `column` holds numbers or dates such as 2026-01-31 or 2026-01-31T12:00; samples of one time stay
    together. Those less than `gap` (in the column's unit, for dates seconds) after the first of
    "val" or "test" belong to no part: set it to a window's length where windows overlap.
    """

    def __init__(self, column: str, val: float = 0.1, test: float = 0.1, gap: float = 0.0) -> None:
        if not gap >= 0:
            raise ConfigError(f"gap: {gap}: must be at least 0.")
        self.columns = [column]
        self._shares = _shares(val, test)
        self._gap = gap

    def parts(self, known: Known) -> NDArray[np.str_]:
        texts = _columns(known, self.columns)[0].compact()
        times = np.array([_time(text, self.columns[0]) for text in texts.words])[texts.codes]
        ordered = np.sort(times)
        parts = np.full(len(times), "train", dtype="<U5")
        left = sum(self._shares.values())
        for part in ("val", "test"):
            first = round((1 - left) * len(times))
            left -= self._shares[part]
            if self._shares[part] > 0 and first < len(times):
                parts[times >= ordered[first]] = "none"
                parts[times >= ordered[first] + self._gap] = part
        return parts


def _time(text: str, column: str) -> float:
    try:
        if math.isfinite(number := float(text)):
            return number
    except ValueError:
        pass
    try:
        date = parse_iso(text)
    except ValueError:
        raise DataError(
            f"split: {text!r} in {column!r} is neither a number nor a date such as 2026-01-31. "
            "Choose another column."
        ) from None
    return (date if date.tzinfo is not None else date.replace(tzinfo=datetime.UTC)).timestamp()


class Stratified:
    """The same share of each class.

    `key`: columns that distinguish samples, which are ordered by its hash; samples with equal keys
    stay together.
    """

    def __init__(
        self, column: str, key: str | Sequence[str], val: float = 0.1, test: float = 0.1
    ) -> None:
        self.columns = [column, *([key] if isinstance(key, str) else key)]
        if len(self.columns) < 2:
            raise ConfigError("key: give at least one column that distinguishes samples.")
        self._shares = _shares(val, test)

    def parts(self, known: Known) -> NDArray[np.str_]:
        names, *keys = _columns(known, self.columns)
        joined = _together(keys)
        parts = np.empty(len(names), dtype="<U5")
        for rows in names.rows_by_word().values():
            parts[rows] = parts_by_share(joined.take(rows), self._shares).array()
        return parts


class ByFold:
    """Cross-validation: of `k` folds of nearly equal size number `fold`, counted from 1, is "val",
    the others are "train".

    `column`: whole groups, as in ByGroup, the largest first into the smallest fold so far, as
    sklearn's GroupKFold does; without it, samples one by one in the order of their numbers' hashes,
    with `stratify` the same share of each of that column's values in each fold. `within`: a rule,
    of whose "train" and "val" the folds are made; its "test" stays.
    """

    def __init__(
        self,
        k: int,
        fold: int,
        column: str | Sequence[str] | None = None,
        stratify: str | None = None,
        within: Rule | None = None,
    ) -> None:
        if not k >= 2 or not 1 <= fold <= k:
            raise ConfigError(f"k, fold: {k} and {fold}: k is at least 2, and fold 1 to k.")
        if column and stratify:
            raise ConfigError("column, stratify: whole groups are not stratified. Remove one.")
        self._groups = [column] if isinstance(column, str) else list(column or ())
        self._strata = [] if stratify is None else [stratify]
        self._within = within
        self._k, self._fold = k, fold
        inner = [] if within is None else list(within.columns)
        self.columns = [*self._groups, *self._strata, *inner]
        self.by_row = not self._groups or getattr(within, "by_row", False)

    def parts(self, known: Known) -> NDArray[np.str_]:
        keys = _together(_columns(known, self._groups or [ROW]))
        parts = np.full(len(keys), "train", dtype="<U5")
        if self._within is not None:
            parts = np.array(self._within.parts(known), dtype="<U5")
        rows = np.flatnonzero(np.isin(parts, ("train", "val")))
        mine = keys.take(rows).compact()
        if len(mine.words) < self._k:
            of = f"groups in {', '.join(map(repr, self._groups))}" if self._groups else "samples"
            raise DataError(
                f"split: {len(mine.words)} {of} are too few for {self._k} folds. Set a smaller k."
            )
        strata = [text.take(rows) for text in _columns(known, self._strata)]
        folds = _dealt(mine, self._k, strata[0] if strata else None)
        parts[rows] = np.where(folds == self._fold - 1, "val", "train")
        return parts


def _dealt(keys: Texts, k: int, strata: Texts | None) -> NDArray[np.int64]:
    """keys (N,) -> (N,) numbers of folds from 0."""
    counts = np.bincount(keys.codes)
    hashes = [_hash(word) for word in keys.words]
    folds = np.zeros(len(counts), dtype=np.int64)
    if counts.max() == 1:
        stratum = dict(zip(keys.codes.tolist(), strata or [""] * len(keys), strict=True))
        order = sorted(range(len(counts)), key=lambda one: (stratum[one], hashes[one]))
        folds[order] = np.arange(len(counts)) % k
    else:
        sizes = [0] * k
        for one in sorted(range(len(counts)), key=lambda one: (-counts[one], hashes[one])):
            folds[one] = sizes.index(min(sizes))
            sizes[folds[one]] += int(counts[one])
    dealt: NDArray[np.int64] = folds[keys.codes]
    return dealt


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def parts_by_share(keys: Sequence[str], shares: Mapping[str, float]) -> Texts:
    """keys (N,) -> (N,) parts: keys, in the order of their hashes, fill the parts in the order of
    `shares`; the samples of a key stay together.

    A key goes to the part in which the middle of its samples falls, so that shares are met as
    closely as whole keys allow. The rest is "train".
    """
    texts = Texts.of(keys).compact()
    which, counts = texts.codes, np.bincount(texts.codes)
    hashes = [_hash(key) for key in texts.words]
    order = np.array(sorted(range(len(hashes)), key=hashes.__getitem__))
    middle = np.empty(len(counts))
    middle[order] = np.cumsum(counts[order]) - counts[order] / 2
    ends = np.cumsum(list(shares.values())) * len(which)
    names = [*shares, "train"]
    used, part_of = np.unique(np.searchsorted(ends, middle, side="right"), return_inverse=True)
    return Texts([names[one] for one in used], part_of.astype(np.int8)[which])


def rows_of(part: Part, rule: Rule | None, known: Known, count: int) -> NDArray[np.int64]:
    """The indices of those of `count` samples that belong to a part, ascending.

    Raises ConfigError or DataError, the latter also for an empty part.
    """
    require_choice("part", part, get_args(Part))
    if part == "all":
        return np.arange(count)
    if rule is None:
        raise ConfigError(
            f"part: {part!r} needs a rule. Set split, e.g. {{_target_: "
            f"harness.sources.split.ByGroup, column: ...}}."
        )
    if getattr(rule, "by_row", False):
        known = {**known, ROW: list(map(str, range(count)))}
    parts = rule.parts(known)
    rows = np.flatnonzero(parts.equal(part) if isinstance(parts, Texts) else parts == part)
    if len(rows) == 0:
        raise DataError(
            f"part: none of {count} samples is in {part!r}; the parts are "
            f"{some(sorted(set(map(str, parts))), 8)}. Check split."
        )
    return rows


def _columns(known: Known, names: Sequence[str]) -> list[Texts]:
    """The columns, which may have words that do not occur."""
    found = {name_of(name): cells for name, cells in known.items()}
    for name in names:
        if name_of(name) not in found:
            named = [other for other in known if other != ROW]
            raise ConfigError(
                f"split: no column {name!r} is known; the known columns are "
                f"{', '.join(named) or 'none'}.{did_you_mean(name, named, quoted=True)}"
            )
    return [Texts.of(found[name_of(name)]) for name in names]


def _together(columns: Sequence[Texts]) -> Texts:
    """Columns (N,) joined into one: samples are equal in it if they are equal in all columns."""
    if len(columns) == 1:
        return columns[0]
    return Texts.of(["\x1f".join(cells) for cells in zip(*columns, strict=True)])


def _shares(val: float, test: float) -> dict[str, float]:
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise ConfigError(
            f"val, test: {val} and {test}: each share must be at least 0, and together they must "
            "leave some samples for training."
        )
    return {"test": test, "val": val}
