"""Near-duplicates between splits: samples that are the same to a person and not to the byte.

Images are compared by their perceptual hash (C. Zauner, "Implementation and benchmarking of
perceptual image hash functions", 2010; by imagehash, of 256 bits), sound by that of its
spectrogram, rows of numbers and texts after rounding.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from importlib.util import find_spec
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.checks.report import SHOWN, Findings
from harness.checks.roles import Roles
from harness.checks.survey import Survey, content_of
from harness.data.columns import Values, are_texts
from harness.wording import some

# Of 256 bits. Among 5,000 x 20,000 images of Fashion-MNIST two pairs are so near, both the same
MOST_BITS = 16
_BANDS = MOST_BITS + 1  # hashes that differ in 16 bits are equal in one of 17 bands
_CANDIDATES = 2**27  # pairs that are compared: seconds
_AT_ONCE = 2**20
_PAIRS = 2**20  # that are found
SHORTEST_SOUND = 2048  # numbers of a channel
_FRAMES = 64
_SMALLEST_IMAGE = 8  # pixels
_FLAT = 2.0  # standard deviation of 256 greys: a hash of less is one of noise
_STEP = 1e-3  # of a column's standard deviation
_BY_CHANCE = 0.5  # pairs of rows that may be expected to be as near
_BITS, _ODD = 22, np.uint64(0x9E3779B97F4A7C15)  # of a hash
_SPREAD = 64  # rows of a block by which chance is estimated

_WITHIN: tuple[tuple[int, Literal["left", "right"]], ...] = ((1, "right"), (-1, "left"))

Hash = NDArray[np.uint64]
Pairs = NDArray[np.int64]


class Prints:
    """What the samples of a split are compared by.

    `steps`: by which numbers are rounded, by column, the same for all splits: the first to see a
    column adds its own.
    """

    def __init__(
        self,
        roles: Roles,
        treatments: Sequence[Mapping[str, Any]],
        steps: dict[str, NDArray[np.float64]],
    ) -> None:
        self._roles, self._treatments, self._steps = roles, treatments, steps
        self._hashes: list[Hash] = []
        self._blocks: list[NDArray[np.float64]] = []
        self._is_text: Sequence[bool] = ()  # of each column
        self.by = self.missing = ""

    @property
    def hashes(self) -> Hash:
        """(N, 4): 256 bits of each sample, all 0 if it has nothing to compare; of rows (N, 2), of
        which near ones agree in one at least.
        """
        return np.concatenate(self._hashes)

    @property
    def are_rows(self) -> bool:
        return bool(self._blocks)

    @property
    def width(self) -> int:
        """Numbers and texts of a row."""
        return len(self._is_text)

    def chance(self, other: "Prints") -> float:
        """The share of pairs of rows of two splits that agree in all columns, if those were
        independent, of some rows; texts that are mostly distinct do not agree by chance.
        """
        share = 1.0
        rows, others = np.concatenate(self._blocks), np.sort(np.concatenate(other._blocks), 0)
        for mine, theirs, is_text in zip(rows.T, others.T, self._is_text, strict=True):
            if is_text and len(np.unique(mine)) > len(mine) / 2:
                return 0.0
            upto, begins = (np.searchsorted(theirs, mine + by, side) for by, side in _WITHIN)
            share *= float((upto - begins).mean()) / len(theirs)
        return share

    def add(self, samples: Mapping[str, Values]) -> None:
        """The next samples."""
        names = content_of(samples, self._roles, self._treatments)
        kinds = {name: _kind(samples[name]) for name in names}
        shown = next((name for name in names if kinds[name] in _SHOWN), None)
        if shown is not None:
            if not find_spec("imagehash"):
                self.missing = shown
                return
            picture, what = _SHOWN[kinds[shown]]
            self._take(
                f"the perceptual hash of {what}{shown!r}",
                np.stack([_hash(picture(cell)) for cell in samples[shown]]),
            )
        elif set(kinds.values()) <= {"numbers", "text"}:
            with np.errstate(all="ignore"):
                columns = [self._in_steps(name, samples[name]) for name in names]
            is_text = [
                kinds[name] == "text"
                for name, column in zip(names, columns, strict=True)
                for _ in column.T
            ]
            self._take(
                f"{some(names)}, rounded", self._add_rows(np.concatenate(columns, 1)), is_text
            )
        else:
            self._take("", np.empty((0, 0), np.uint64))

    def _take(self, by: str, hashes: Hash, is_text: Sequence[bool] = ()) -> None:
        """Blocks of several kinds are not compared."""
        same = (by, len(is_text)) == (self.by, self.width)
        self.by = by if same or not self._hashes else ""
        self._is_text = is_text
        self._hashes.append(hashes)

    def _in_steps(self, name: str, values: Values) -> NDArray[np.float64]:
        """(B, K)"""
        if isinstance(values, list):
            digests = (blake2b(_plain(text).encode(), digest_size=6).digest() for text in values)
            codes = [int.from_bytes(digest) for digest in digests]
            return np.array(codes, np.float64)[:, None]
        rows = values.reshape(len(values), -1).astype(np.float64)
        key = f"{name} {rows.shape[1]}"
        if key not in self._steps:
            finite = np.where(np.isfinite(rows), rows, 0)
            self._steps[key] = np.where(finite.std(0) > 0, finite.std(0) * _STEP, 1.0)
        return np.nan_to_num(rows / self._steps[key], nan=2.0**62).clip(-(2.0**62), 2.0**62)

    def _add_rows(self, rows: NDArray[np.float64]) -> Hash:
        """(B, 2)"""
        self._blocks.append(rows[:: len(rows) // _SPREAD + 1])
        odd = np.random.default_rng(0).integers(0, 2**63, rows.shape[1], dtype=np.uint64) * 2 + 1
        # Two grids: numbers beside a border of one are amid a cell of the other
        cells = [np.floor(rows + shift).astype(np.int64).view(np.uint64) for shift in (0, 0.5)]
        return np.stack([(cell * odd).sum(1, dtype=np.uint64) for cell in cells], 1)


def check_near(
    surveys: Sequence[Survey],
    prints: Sequence[Prints],
    repeated: Sequence[NDArray[np.int64]],
    findings: Findings,
) -> None:
    """Samples of two splits that are nearly the same, without those that are the same. `repeated`:
    as of `harness.checks.leaks.number_repeated`.
    """
    for one, of in zip(surveys, prints, strict=True):
        if of.missing:
            findings.notes.append(
                f"{one.where}: near-duplicates in {of.missing!r} were not searched: imagehash is "
                "not installed. Install it: pip install 'fermarsi[images]'."
            )
        elif not of.by:
            findings.notes.append(
                f"{one.where}: near-duplicates were not searched: samples are neither images, "
                "sound, numbers nor texts"
            )
    kinds = [_Kinds(one, numbers) for one, numbers in zip(surveys, repeated, strict=True)]
    for (first, mine), (second, theirs) in combinations(zip(kinds, prints, strict=True), 2):
        if mine.by and (mine.by, mine.width) == (theirs.by, theirs.width):
            _compare(first, mine, second, theirs, findings)


class _Kinds:
    """The contents of a split that are not blank: `first` (K,), where each occurs first, ascending,
    and its number, -1 if it occurs once.
    """

    def __init__(self, survey: Survey, repeated: NDArray[np.int64]) -> None:
        self.survey = survey
        at = np.flatnonzero(repeated >= 0)
        again = np.ones(len(at), np.bool_)
        again[np.unique(repeated[at], return_index=True)[1]] = False
        is_first = ~survey.is_blank
        is_first[at[again]] = False
        self.first = np.flatnonzero(is_first)
        self.numbers = repeated[self.first]

    def without(self, other: "_Kinds") -> NDArray[np.int64]:
        """The first ones of those that the other does not have."""
        return self.first[(self.numbers < 0) | ~np.isin(self.numbers, other.numbers)]


def _compare(
    kinds: _Kinds, mine: Prints, others: _Kinds, theirs: Prints, findings: Findings
) -> None:
    one, other = kinds.survey, others.survey
    if mine.are_rows:
        expected = mine.chance(theirs) * len(one.rows) * len(other.rows)
        if expected > _BY_CHANCE:
            findings.notes.append(
                f"{other.where}: near-duplicates of {one.where} were not searched: {expected:.2g} "
                "pairs of such rows are expected to agree by chance"
            )
            return
    at, of = kinds.first, others.without(kinds)
    search = _equal if mine.are_rows else _alike
    pairs, ended = search(mine.hashes[at], theirs.hashes[of])
    near = {int(of[b]): int(at[a]) for a, b in pairs.tolist()}
    rows = [(int(other.rows[b]), int(one.rows[a])) for b, a in sorted(near.items())[:SHOWN]]
    share = f"{len(near):,} of {len(other.rows):,} samples ({len(near) / len(other.rows):.1%})"
    message = (
        f"{other.where}: {'at least ' if ended else ''}{share} are nearly the same as samples in "
        f"{one.where}, by {theirs.by}."
    )
    findings.add(
        "near_duplicates",
        (one.split, other.split),
        f"{message} Look at them (--html), and split by what they have in common.",
        len(near),
        [f"{other.name(b)} ~ {one.name(a)}" for b, a in rows],
        pairs=[(other.split, b, one.split, a) for b, a in rows],
    )


def _alike(one: Hash, other: Hash) -> tuple[Pairs, bool]:
    """one (N, 4), other (M, 4) -> (K, 2) pairs that differ in MOST_BITS at most."""
    bits = [np.unpackbits(hashes.view(np.uint8), axis=1) for hashes in (one, other)]
    bands = (
        [of[:, band::_BANDS] @ (1 << np.arange(of[:, band::_BANDS].shape[1])) for of in bits]
        for band in range(_BANDS)
    )
    has = [hashes.any(1) for hashes in (one, other)]
    keys = ((np.where(has[0], a, -1), np.where(has[1], b, -2)) for a, b in bands)
    return _search(keys, lambda a, b: np.bitwise_count(one[a] ^ other[b]).sum(1) <= MOST_BITS)


def _equal(one: Hash, other: Hash) -> tuple[Pairs, bool]:
    """one (N, 2), other (M, 2) -> (K, 2) pairs that have one hash in common."""
    return _search(zip(one.T, other.T, strict=True), lambda a, b: np.ones(len(a), np.bool_))


def _search(
    keys: Iterable[Sequence[NDArray[Any]]],
    are_near: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]],
) -> tuple[Pairs, bool]:
    """Of the pairs that have one of the keys (N,), (M,) in common, those that are near, and
    whether the search was ended for want of time.
    """
    found: list[Pairs] = []
    compared = 0
    for one, other in keys:
        mine_at, theirs_at = _candidates(one, other)
        mine, theirs = one[mine_at], other[theirs_at]
        # Both sorted, the search stays within the processor's caches
        firsts, order = np.argsort(mine, kind="stable"), np.argsort(theirs, kind="stable")
        begins, ends = (
            np.searchsorted(theirs[order], mine[firsts], side) for side in ("left", "right")
        )
        counts = ends - begins
        upto = np.cumsum(counts)
        for begin in range(0, int(upto[-1]) if len(upto) else 0, _AT_ONCE):
            numbers = np.arange(begin, min(begin + _AT_ONCE, int(upto[-1])))
            a = np.searchsorted(upto, numbers, "right")
            b = order[begins[a] + numbers - (upto - counts)[a]]
            pairs = np.stack([mine_at[firsts[a]], theirs_at[b]], 1)
            found.append(pairs[are_near(*pairs.T)])
            compared += len(numbers)
            if compared > _CANDIDATES or sum(map(len, found)) > _PAIRS:
                return np.concatenate(found), True
    return np.concatenate([np.empty((0, 2), np.int64), *found]), False


def _candidates(
    one: NDArray[np.integer], other: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """one (N,), other (M,) -> the rows of each that may have a key in common, and all that do: by
    one hash of few bits (B. H. Bloom, 1970), which takes less time than to sort them.
    """
    mine, theirs = ((keys.view(np.uint64) * _ODD) >> np.uint64(64 - _BITS) for keys in (one, other))
    there = np.zeros(2**_BITS, np.bool_)
    there[mine] = True
    rows = np.flatnonzero(there[theirs])
    there[:] = False
    there[theirs[rows]] = True
    return np.flatnonzero(there[mine]), rows


def _kind(values: Values) -> str:
    cells = values if isinstance(values, list) else values[:1]
    if are_texts(cells):
        return "text"
    if not all(isinstance(cell, np.ndarray | np.generic) for cell in cells):
        return "other"
    shapes = [cell.shape for cell in cells]
    if all(len(of) == 3 and of[0] <= 4 and min(of[1:]) >= _SMALLEST_IMAGE for of in shapes):
        return "image"
    if all(len(of) == 2 and of[1] >= SHORTEST_SOUND for of in shapes):
        return "sound"
    return "numbers" if isinstance(values, np.ndarray) else "other"


def _plain(text: str) -> str:
    """Without case, punctuation and spaces."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip() or text


def _grey(cell: NDArray[Any]) -> NDArray[np.uint8]:
    """(C, H, W) -> (H, W)"""
    colours = cell[:3] if len(cell) > 2 else cell[:1]
    return _greys(colours.mean(0), 255.0 if cell.dtype == np.uint8 else None)


def _spectrogram(cell: NDArray[Any]) -> NDArray[np.uint8]:
    """(C, T) -> (frequencies, 64): decibels down to 40 below the loudest."""
    wave = cell.astype(np.float64).mean(0)
    size = min(1024, 2 * len(wave) // _FRAMES)
    begins = np.linspace(0, len(wave) - size, _FRAMES).astype(np.int64)
    frames = wave[begins[:, None] + np.arange(size)] * np.hanning(size)
    power = np.abs(np.fft.rfft(np.nan_to_num(frames), axis=1).T) ** 2
    return _greys(np.log10(power + 1e-4 * power.max() + 1e-300))


def _greys(values: NDArray[Any], highest: float | None = None) -> NDArray[np.uint8]:
    """By 0 and `highest`, or by the lowest and highest of them."""
    finite = np.nan_to_num(values.astype(np.float64))
    low = finite.min() if highest is None else 0.0
    span = (finite.max() if highest is None else highest) - low
    return ((finite - low) * (255 / span if span else 0)).astype(np.uint8)


def _hash(greys: NDArray[np.uint8]) -> Hash:
    """(4,), all 0 for a flat picture."""
    # Loaded when used
    import imagehash
    from PIL import Image

    if greys.std() < _FLAT:
        return np.zeros(4, np.uint64)
    bits = imagehash.phash(Image.fromarray(greys), hash_size=16).hash
    return np.packbits(bits).view(np.uint64)


_SHOWN: Mapping[str, tuple[Callable[[NDArray[Any]], NDArray[np.uint8]], str]] = {
    "image": (_grey, ""),
    "sound": (_spectrogram, "the spectrogram of "),
}
