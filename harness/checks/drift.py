"""Drift: features that are distributed differently in two splits.

Numbers are compared by the Kolmogorov-Smirnov test, words by the chi-square test, and p-values are
corrected for the number of features (Bonferroni). Large samples make the least difference
significant, so a difference counts only from an effect size on: the largest difference between the
shares of two splits, of numbers up to any value (the statistic of Kolmogorov and Smirnov), or of
any set of words (the total variation distance).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.checks.report import Findings
from harness.checks.roles import Roles
from harness.checks.survey import Survey
from harness.data.columns import Values, are_texts
from harness.data.texts import Texts

ALPHA = 0.01  # the chance that any feature of splits without drift is called different
SAMPLES = 20_000  # of a split
FEATURES = 1000  # of a column
_NUMBERS = 2**22  # of a column and split
_FEWEST = 5  # expected samples of a word; rarer ones are counted together
_FEW = 8  # samples of a split that can be compared


class Features:
    """Numbers and words of a split's samples, of at most SAMPLES evenly spread ones.

    Images, sound and series have two features a channel: mean and standard deviation.
    """

    def __init__(self, num_samples: int, words: Sequence[str]) -> None:
        self._num_samples = num_samples
        self._words = words
        self._position = 0
        self._blocks: dict[str, list[NDArray[np.float32]]] = {}
        self._texts: dict[str, list[str]] = {}

    def add(self, samples: Mapping[str, Values]) -> None:
        """The next samples."""
        # Infinity is another check's matter
        with np.errstate(all="ignore"):
            self._add(samples)

    def _add(self, samples: Mapping[str, Values]) -> None:
        count = len(next(iter(samples.values())))
        for name, values in samples.items():
            if isinstance(values, list):
                if name not in self._words and are_texts(values):
                    kept = self._kept(1, count).tolist()
                    self._texts.setdefault(name, []).extend(values[row] for row in kept)
            elif values.ndim > 2:
                flat = values.reshape(*values.shape[:2], -1)[self._kept(1, count)]
                wide = np.result_type(flat, np.float32)  # float16 ends at 65504
                self._take(f"mean of {name}", flat.mean(2, dtype=wide))
                self._take(f"deviation of {name}", flat.std(2, dtype=wide))
            elif name not in self._words:
                rows = values.reshape(count, -1)
                rows = rows[:, :: -(-rows.shape[1] // FEATURES) or 1]
                self._take(name, rows[self._kept(rows.shape[1], count)])
        self._position += count

    def _kept(self, width: int, count: int) -> NDArray[np.int64]:
        """Which of the next samples are kept: the same share of all."""
        most = max(1, min(SAMPLES, _NUMBERS // max(1, width)))
        every = max(1, -(-self._num_samples // most))
        return np.arange(-self._position % every, count, every)

    def _take(self, name: str, values: NDArray[Any]) -> None:
        self._blocks.setdefault(name, []).append(values.astype(np.float32))

    def numbers(self) -> dict[str, NDArray[np.float32]]:
        """(n,) of each feature."""
        found: dict[str, NDArray[np.float32]] = {}
        for name, blocks in self._blocks.items():
            if len({block.shape[1:] for block in blocks}) == 1:
                columns = np.concatenate(blocks).T
                named = (
                    [name] if len(columns) == 1 else [f"{name}[{at}]" for at in range(len(columns))]
                )
                found |= dict(zip(named, columns, strict=True))
        return found

    def words(self) -> dict[str, Texts]:
        """n words of each feature."""
        return {name: Texts.of(texts) for name, texts in self._texts.items()}


def check_drift(
    surveys: Sequence[Survey],
    features: Sequence[Features],
    roles: Roles,
    groups: Sequence[Sequence[str]],
    findings: Findings,
) -> None:
    """Features of two splits that differ by data.checks.max_drift at least.

    Samples of a group are alike: a split counts for no more samples than it has groups.
    """
    sizes = [_num_independent(one, groups) for one in surveys]
    for (one, mine, size), (other, theirs, size_of) in combinations(
        zip(surveys, features, sizes, strict=True), 2
    ):
        effective = size * size_of / (size + size_of)
        tested = dict(_tested(one, mine, other, theirs, roles, effective))
        bound = ALPHA / max(1, len(tested))
        differ = {
            name: effect
            for name, (effect, p) in tested.items()
            if p < bound and effect >= findings.settings.max_drift
        }
        worst = sorted(differ, key=lambda name: -differ[name])
        message = (
            f"{other.where}: {len(differ):,} of {len(tested):,} features are distributed "
            f"differently than in {one.where} (p < {ALPHA}, corrected for their number). Was the "
            "data split in its order, by its source or by time? A score on it says how the network "
            "does on other data than it learns from."
        )
        findings.add(
            "drift",
            (one.split, other.split),
            message,
            len(differ),
            [f"{name}: shares differ by up to {differ[name]:.2g}" for name in worst],
        )


def _num_independent(one: Survey, groups: Sequence[Sequence[str]]) -> int:
    known = [("recording",)] if "recording" in one.known else []
    counts = [len(one.groups(columns).counts()) for columns in [*groups, *known]]
    return min([len(one.rows), *counts])


def _tested(
    one: Survey,
    mine: Features,
    other: Survey,
    theirs: Features,
    roles: Roles,
    effective: float,
) -> Iterator[tuple[str, tuple[float, float]]]:
    """(feature, (effect size, p-value)) of all that both splits have."""
    numbers, others = mine.numbers(), theirs.numbers()
    words, other_words = mine.words(), theirs.words()
    for role in roles.classes:
        labels = one.labels(role.target), other.labels(role.target)
        if labels[0] is not None and labels[1] is not None:
            words[role.target], other_words[role.target] = labels[0], labels[1]
    for name in words.keys() & other_words.keys():
        yield name, compare_words(words[name].counts(), other_words[name].counts(), effective)
    for name in numbers.keys() & others.keys():
        missing = [np.isnan(of) for of in (numbers[name], others[name])]
        if any(of.any() for of in missing):
            counts = [Counter(of.tolist()) for of in missing]
            yield f"missing {name}", compare_words(counts[0], counts[1], effective)
        first, second = numbers[name][~missing[0]], others[name][~missing[1]]
        if min(len(first), len(second)) >= _FEW:
            yield name, compare_numbers(first, second, effective)


def compare_numbers(
    one: NDArray[Any], other: NDArray[Any], effective: float
) -> tuple[float, float]:
    """The statistic of the two-sample Kolmogorov-Smirnov test, and its asymptotic p-value for a
    harmonic sample size of n m / (n + m) = `effective`; conservative for numbers with ties.
    """
    # Loaded when used
    from scipy.stats import (  # type: ignore[import-untyped]  # scipy has no stubs
        ks_2samp,
        kstwobign,
    )

    distance = float(ks_2samp(one, other, method="asymp").statistic)
    return distance, float(kstwobign.sf(distance * effective**0.5))


def compare_words(
    one: Mapping[Any, int], other: Mapping[Any, int], effective: float
) -> tuple[float, float]:
    """The total variation distance of two counts, and the p-value of the chi-square test for a
    harmonic sample size of n m / (n + m) = `effective`. Words too rare for the test count together.
    """
    # Loaded when used
    from scipy.stats import chi2, chi2_contingency

    words = sorted({*one, *other}, key=str)
    table = np.array([[of.get(word, 0) for word in words] for of in (one, other)])
    totals = table.sum(1)
    if len(words) < 2 or not totals.all():
        return 0.0, 1.0
    scale = min(1.0, effective * totals.sum() / totals.prod())
    expected = table.sum(0) * totals.min() / totals.sum() * scale
    rare = expected < _FEWEST
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], 1)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2:
        return 0.0, 1.0
    shares = table / totals[:, None]
    effect = float(np.abs(shares[0] - shares[1]).sum() / 2)
    statistic = float(chi2_contingency(table, correction=False).statistic) * scale
    return effect, float(chi2.sf(statistic, table.shape[1] - 1))
