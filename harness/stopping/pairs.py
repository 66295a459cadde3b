"""Two evaluations of the same samples, compared in pairs: how the metric of each group of samples
differs from the metric of all.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Deviations(NamedTuple):
    """What each group of samples adds to a metric's deviation from its mean, in units of `scale`:
    (the group's sum - its number of items x the mean) / the number of all items.

    `samples`: how many there are. Groups are the same at each evaluation.
    """

    samples: int
    scale: float
    groups: Sequence[int]


def paired_error(one: Deviations | None, other: Deviations | None) -> float | None:
    """The standard error of the difference of a metric at two evaluations: a jackknife that leaves
    out one group of samples at a time (Kott, "The delete-a-group jackknife", 2001). None where the
    groups are not known, or not the same.
    """
    if one is None or other is None:
        return None
    if one.samples != other.samples or len(one.groups) != len(other.groups):
        return None
    count = len(one.groups)
    squares = math.fsum(
        (mine * one.scale - theirs * other.scale) ** 2
        for mine, theirs in zip(one.groups, other.groups, strict=True)
    )
    return math.sqrt(squares * count / (count - 1))
