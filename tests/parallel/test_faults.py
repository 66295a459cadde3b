"""A rank that is lost, or fails, while ranks send each other rows: it costs that save only."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.read import choose, inspect
from harness.ranks.ranks import Ranks
from tests.checkpoint.examples import store_in
from tests.parallel.sharded import taken, wrong_after_load
from tests.pool import RanksFailed, on_ranks


def save(directory: Path, rank: int, how: str, steps: Sequence[int]) -> list[Any]:
    """Some saves; in the midst of the second one's exchange a rank is killed, or has an error."""
    ranks = Ranks.join(20.0)
    store = store_in(directory, ranks, timeout_s=3.0)
    usual, calls = Ranks.exchange, iter(range(100))

    def fail(self: Ranks, *args: Any) -> None:
        if next(calls) == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError
        usual(self, *args)

    for step in steps:
        if step == 2 and ranks.rank == rank:
            Ranks.exchange = fail  # type: ignore[method-assign] # put back below
        store.save(taken("fsdp", step), None)
        store.wait()
        Ranks.exchange = usual  # type: ignore[method-assign] # see above
    store.close()
    return [(one.step, one.error is None) for one in store.reports()]


@pytest.mark.parametrize("rank", [0, 2])
def test_an_error_in_an_exchange_costs_that_save_only(tmp_path: Path, rank: int) -> None:
    assert (
        on_ranks(3, save, tmp_path, rank, "error", (1, 2, 3))
        == [[(1, True), (2, False), (3, True)]] * 3
    )
    chosen = choose(tmp_path, "auto")
    assert (chosen.path, chosen.skipped) == (tmp_path / "step-00000003", [])
    assert inspect(tmp_path / "step-00000003", verify="full").problems == []
    assert on_ranks(2, wrong_after_load, tmp_path / "step-00000003", "fsdp") == [[], []]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_killed_in_an_exchange_leaves_the_checkpoint_before(
    tmp_path: Path, rank: int
) -> None:
    with pytest.raises(RanksFailed) as raised:
        on_ranks(3, save, tmp_path, rank, "killed", (1, 2))
    assert raised.value.failures[rank].exit_code == -signal.SIGKILL
    chosen = choose(tmp_path, "auto")
    assert (chosen.path, chosen.skipped) == (tmp_path / "step-00000001", [])
    assert wrong_after_load(tmp_path / "step-00000001", "ddp") == []
