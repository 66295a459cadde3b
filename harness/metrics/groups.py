"""Sums by groups of samples, the same groups at each evaluation, so that two can be compared in
pairs.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.metrics.errors import FEWEST_GROUPS
from harness.stopping.pairs import Deviations

# The standard error of a gain is then itself known to 6 %; an evaluation holds a kilobyte more
MOST_GROUPS = 128
_UNITS = 10**6  # of the largest deviation


class GroupSums:
    """Items and hits of the samples of each group, by metric: sample number n is of group n mod
    128. No host wait.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, first: int, counts: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take a micro-batch in whose first sample is number `first`: (B,) hits and items."""
        for name, (hits, items) in counts.items():
            sums = self._sums.get(name)
            if sums is None:
                sums = torch.zeros(2, MOST_GROUPS, dtype=torch.int64, device=hits.device)
                self._sums[name] = sums
            groups = torch.arange(first, first + len(hits), device=hits.device) % MOST_GROUPS
            sums.index_add_(1, groups, torch.stack([hits, items]).long())

    def totals(self) -> dict[str, list[list[int]]]:
        """By metric, hits and items of each group. The host waits."""
        return {name: sums.tolist() for name, sums in self._sums.items()}


def deviations(sums: Sequence[float], counts: Sequence[int], num_samples: int) -> Deviations | None:
    """Of a mean over items, from each group's sum and number of items; more than 128 groups are
    taken together by their number mod 128. None for fewer than 8 groups with items.
    """
    groups = [
        (math.fsum(sums[first::MOST_GROUPS]), count)
        for first in range(min(MOST_GROUPS, len(sums)))
        if (count := sum(counts[first::MOST_GROUPS]))
    ]
    items = sum(count for _, count in groups)
    if len(groups) < FEWEST_GROUPS or not all(map(math.isfinite, sums)):
        return None
    mean = math.fsum(total for total, _ in groups) / items
    found = [(total - count * mean) / items for total, count in groups]
    scale = max(map(abs, found)) / _UNITS
    # The smallest numbers have no millionth
    numbers = [round(one / scale) if scale else 0 for one in found]
    return Deviations(num_samples, scale, numbers)
