"""Standard errors of metrics."""

import math
from collections.abc import Sequence

# With fewer the error is hardly known itself
FEWEST_GROUPS = 8


def share_error(successes: int, trials: int) -> float:
    """The standard error of a share of independent trials, with one success and one failure added,
    so that it is not 0 where none or all succeeded (after Agresti & Coull, "Approximate is better
    than 'exact'", 1998).
    """
    share = (successes + 1) / (trials + 2)
    return math.sqrt(share * (1 - share) / (trials + 2))


def mean_error(sums: Sequence[float], counts: Sequence[int]) -> float | None:
    """The standard error of sum(sums) / sum(counts), from groups of items: a group's sum and its
    number of items. None for fewer than 8 groups with items.

    A ratio of means (Cochran, "Sampling techniques", 1977, section 6.3); the groups' order does not
    matter to the last bit.
    """
    groups = [(total, count) for total, count in zip(sums, counts, strict=True) if count]
    if len(groups) < FEWEST_GROUPS or not all(math.isfinite(total) for total, _ in groups):
        return None
    items = sum(count for _, count in groups)
    mean = math.fsum(total for total, _ in groups) / items
    squares = math.fsum((total - mean * count) ** 2 for total, count in groups)
    return math.sqrt(squares * len(groups) / (len(groups) - 1)) / items
