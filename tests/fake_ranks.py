"""Ranks as threads of this process, for what only gathers: hundreds of worlds a second, where real
ones take milliseconds each.
"""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torch import Tensor

from harness.ranks.ranks import Ranks

T = TypeVar("T")


class _Exchange:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.values: list[Any] = [None] * size


class FakeRanks(Ranks):
    """As Ranks, but `gather` and `gather_rows` alone; like those it refuses what JSON cannot hold
    and rows that do not fit together.
    """

    def __init__(self, rank: int, exchange: _Exchange) -> None:
        super().__init__(rank, len(exchange.values))
        self._exchange = exchange

    def gather(self, value: T) -> list[T]:
        return [json.loads(one) for one in self._swap(json.dumps(value))]

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        gathered = self._swap(rows.detach().cpu().clone())
        assert len({(part.dtype, part.shape[1:]) for part in gathered}) == 1
        return gathered

    def _swap(self, value: Any) -> list[Any]:
        self._exchange.values[self.rank] = value
        self._exchange.barrier.wait()
        values = list(self._exchange.values)
        self._exchange.barrier.wait()
        return values


def on_fake_ranks(size: int, work: Callable[[Ranks], T]) -> list[T]:
    """What `work` returns on each of `size` ranks."""
    exchange = _Exchange(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(FakeRanks(rank, exchange)), range(size)))
