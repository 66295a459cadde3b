"""Drawing from several groups of samples by weights: a pure function of the position."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.sampling import Integers, Order, turns
from harness.errors import ConfigError

_CHUNK = 4096  # draws that are found at a time
_LONGEST_PERIOD = 100_000


@dataclass(frozen=True, eq=False)  # inner orders need not be hashable
class Mixing:
    """Draws from S groups of `sizes` samples, which lie one after another, by whole `shares`.

    After any number n of draws a group has had floor or ceil of n x share / sum of shares. Its
    draws go through all of its samples before any comes again, each time in another order; or,
    where it has an `inner` order, by that. Any draw is found in O(log S).
    """

    sizes: tuple[int, ...]
    shares: tuple[int, ...]
    inner: tuple[Order | None, ...] = ()

    def samples(self, positions: Integers, seed: int) -> Integers:
        """positions: (n,) of draws -> (n,) samples, counted over all groups."""
        if not (np.diff(positions) == 1).all():
            return self._draw(positions, seed)
        # As in a training, one after another: numpy takes about as long for many as for a few
        first, last = int(positions[0]) // _CHUNK, int(positions[-1]) // _CHUNK
        chunks = [_chunk(self, seed, number) for number in range(first, last + 1)]
        drawn: Integers = np.concatenate(chunks)[positions - first * _CHUNK]
        return drawn

    def _draw(self, positions: Integers, seed: int) -> Integers:
        groups, counts = self.groups(positions)
        sizes = np.array(self.sizes, dtype=np.int64)
        begins = np.cumsum(sizes) - sizes
        found = turns("mixing", seed, groups, counts, sizes[groups])
        for group, order in enumerate(self.inner):
            mine = groups == group
            if order is not None and mine.any():
                found[mine] = order.samples(counts[mine], seed)
        drawn: Integers = begins[groups] + found
        return drawn

    def groups(self, positions: Integers) -> tuple[Integers, Integers]:
        """positions: (n,) -> the group (n,) of each draw, and how many it has had before (n,)."""
        period, before = self._period
        rounds, offsets = np.divmod(positions, len(period))
        groups = period[offsets]
        return groups, rounds * np.array(self.shares, dtype=np.int64)[groups] + before[offsets]

    @cached_property
    def _period(self) -> tuple[Integers, Integers]:
        """The group of each draw of a period (P,), and how many it has had before in it (P,).

        Draw j of a group, from 0, has to come at floor(j P / share) or later and before
        ceil((j + 1) P / share), or the group would be one sample ahead or behind. Of those that may
        come, the one that must come first is taken, which meets every deadline (Baruah, Cohen,
        Plaxton & Varvel, "Proportionate progress", Algorithmica 15, 1996).
        """
        length = sum(self.shares)
        ready: list[tuple[int, int, int]] = []  # (deadline, group, draw)
        released: list[tuple[int, int, int]] = [(0, group, 0) for group in range(len(self.shares))]
        groups, before = np.empty(length, np.int64), np.empty(length, np.int64)
        for offset in range(length):
            while released and released[0][0] <= offset:
                _, group, draw = heapq.heappop(released)
                heapq.heappush(ready, (-(-(draw + 1) * length // self.shares[group]), group, draw))
            _, group, draw = heapq.heappop(ready)
            groups[offset], before[offset] = group, draw
            if draw + 1 < self.shares[group]:
                begin = (draw + 1) * length // self.shares[group]
                heapq.heappush(released, (begin, group, draw + 1))
        return groups, before


@lru_cache(maxsize=4)
def _chunk(mixing: Mixing, seed: int, number: int) -> Integers:
    positions = np.arange(number * _CHUNK, (number + 1) * _CHUNK, dtype=np.int64)
    return mixing._draw(positions, seed)


def shares_of(weights: Sequence[Any]) -> tuple[int, ...]:
    """The smallest whole numbers in the ratios of weights, as they are written: 0.7, 0.3 -> 7, 3.

    Raises ConfigError.
    """
    for weight in weights:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight <= 0:
            raise ConfigError(
                f"weights: {weight!r}: must be a number above 0. To draw nothing from a source, "
                "leave it out."
            )
    exact = [Fraction(str(weight)) for weight in weights]
    common = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * common) for weight in exact]
    shares = tuple(share // math.gcd(*whole) for share in whole)
    if sum(shares) > _LONGEST_PERIOD:
        near = [max(1, round(1000 * weight / sum(exact))) for weight in exact]
        raise ConfigError(
            f"weights: {', '.join(map(str, weights))}: their ratios need whole numbers that add up "
            f"to {sum(shares):,}, and {_LONGEST_PERIOD:,} is the most. Round them, e.g. to "
            f"{', '.join(map(str, near))}."
        )
    return shares


def select_groups(indices: NDArray[np.int64], sizes: Sequence[int]) -> tuple[Integers, Integers]:
    """indices: (n,) over groups that lie one after another -> their groups (n,), and the indices
    within them (n,).
    """
    ends = np.cumsum(sizes)
    groups = np.searchsorted(ends, indices, side="right")
    return groups, indices - (ends - np.asarray(sizes))[groups]
