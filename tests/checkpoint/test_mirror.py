"""Copies in the memories of several machines: whole when any one of them is lost."""

import os
import shutil
from pathlib import Path

from harness.checkpoint.mirror import Machines, Mirror, complete_copies
from harness.checkpoint.read import inspect, list_checkpoints
from harness.checkpoint.retention import Retention
from harness.ranks.membership import MEMBER
from harness.ranks.ranks import Ranks
from tests.checkpoint.examples import assert_is_step, names_in, snapshot, store_in
from tests.pool import on_ranks


def machine_at(machines: str, root: Path) -> tuple[Ranks, Machines, Path]:
    """This rank's: the letter of its rank in `machines`."""
    ranks = Ranks.join()
    os.environ[MEMBER] = f"{machines[ranks.rank]}.000.0"
    return ranks, Machines.of(ranks), root / machines[ranks.rank]


def save_copies(machines: str, root: Path, steps: list[int]) -> list[str | None]:
    """What was wrong with each."""
    ranks, where, directory = machine_at(machines, root)
    store = store_in(directory, ranks, Retention(1, 0), mirror=Mirror(directory, where))
    for step in steps:
        store.save(snapshot(step), None)
    store.wait()
    store.close()
    return [one.error for one in store.reports()]


def complete(machines: str, root: Path, later_than: int) -> list[list[str]]:
    ranks, where, directory = machine_at(machines, root)
    return list(complete_copies(directory, ranks, where, later_than).values())


def test_any_one_machine_may_be_lost_and_an_empty_one_may_come(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert on_ranks(5, save_copies, "aabbc", whole, [1, 2]) == [[None, None]] * 5
    for one in "abc":
        [found] = list_checkpoints(whole / one)  # the one before is gone
        assert found.step == 2
        assert [problem for problem in found.problems if ".safetensors" in problem]  # a part of it
        assert not [name for name in names_in(whole / one) if name.startswith(".")]
    assert Machines("aabbc", 0).partner(1) == 3
    assert [Machines("aabbc", 0).partner(rank) for rank in (2, 3, 4)] == [4, 4, 0]
    for left in ("bc", "ac", "ab"):
        root = tmp_path / left
        shutil.copytree(whole, root, symlinks=True)
        lost = next(one for one in "abc" if one not in left)
        shutil.rmtree(root / lost)
        assert on_ranks(3, complete, f"{left}d", root, 1) == [[]] * 3
        for one in f"{left}d":
            path = root / one / "step-00000002"
            assert inspect(path, verify="full").problems == []
            assert_is_step(path, 2, 0, 5)


def test_what_is_not_whole_on_all_machines_is_of_no_use(tmp_path: Path) -> None:
    on_ranks(4, save_copies, "abcd", tmp_path, [3])
    older, newer = on_ranks(2, complete, "ab", tmp_path / "nowhere", -1)
    assert older == newer == []
    assert on_ranks(2, complete, "ab", tmp_path, 3) == [[["not on each machine"]]] * 2  # not later
    shutil.rmtree(tmp_path / "c")
    shutil.rmtree(tmp_path / "d")  # who alone had c's share beside it
    assert on_ranks(2, complete, "ab", tmp_path, -1) == [[["not on each machine"]]] * 2


def test_a_machine_without_room_is_told(tmp_path: Path) -> None:
    on_ranks(2, save_copies, "ab", tmp_path, [3])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "step-00000003").touch()  # no directory can be made here
    for [why] in on_ranks(2, complete, "ac", tmp_path, -1):
        assert "sending a copy to another machine's memory failed" in why[0]
