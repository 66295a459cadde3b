"""The tree over slots is the same however the slots are spread, and it is the naive one."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.data.sampling import fitting_world_sizes
from harness.training.buckets import are_apart
from harness.training.slot_tree import Block, TreeSum, blocks_of

Tree = Any  # a slot, or a pair of trees


def pair(left: Tree, right: Tree) -> Tree:
    return (left, right)


def naive(begin: int, size: int) -> Tree:
    """The sum of an aligned block, by its definition."""
    if size == 1:
        return begin
    return (naive(begin, size // 2), naive(begin + size // 2, size // 2))


def naive_total(num_slots: int) -> Tree:
    """By the binary digits of `num_slots`, the greatest first."""
    total, begin = None, 0
    for power in reversed(range(num_slots.bit_length())):
        if num_slots >> power & 1:
            block = naive(begin, 1 << power)
            total = block if total is None else (total, block)
            begin += 1 << power
    return total


def on_ranks(num_slots: int, bounds: list[int]) -> Tree:
    """Each rank adds up its own slots, and another its blocks and all others'."""
    whole = TreeSum[Tree](pair)
    for begin, end in zip([0, *bounds], [*bounds, num_slots], strict=True):
        mine = TreeSum[Tree](pair)
        for slot in range(begin, end):
            mine.push(Block(slot, 1, slot))
        length = max(end - begin, 1)
        assert len(mine.blocks) <= max(1, 2 * (length - 1).bit_length())
        assert [(one.begin, one.size) for one in mine.blocks] == [
            (one.begin, one.size) for one in blocks_of(range(begin, end))
        ]
        for block in mine.blocks:
            whole.push(block)
    return whole.total()


@given(st.integers(1, 200), st.data())
def test_any_spread_of_slots_gives_the_naive_tree(num_slots: int, data: st.DataObject) -> None:
    bounds = data.draw(st.lists(st.integers(0, num_slots), max_size=9).map(sorted))
    assert on_ranks(num_slots, bounds) == naive_total(num_slots)
    for ranks in fitting_world_sizes(num_slots):
        share = num_slots // ranks
        assert on_ranks(num_slots, [*range(share, num_slots, share)]) == naive_total(num_slots)


@given(st.integers(1, 12), st.integers(0, 20))
def test_an_aligned_share_is_one_block(power: int, rank: int) -> None:
    size = 1 << power
    assert [(one.begin, one.size) for one in blocks_of(range(rank * size, (rank + 1) * size))] == [
        (rank * size, size)
    ]


@given(st.integers(1, 40), st.integers(0, 1 << 30))
def test_a_missing_summand_is_a_negative_zero(num_slots: int, seed: int) -> None:
    """x + -0.0 is x to the bit, whatever x is: 0.0 would turn -0.0 into 0.0."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_slots, generator=generator) * (
        torch.rand(num_slots, generator=generator) > 0.5
    )
    values[::3] = -0.0
    kept = torch.rand(num_slots, generator=generator) > 0.4
    tree = TreeSum[torch.Tensor | None](
        lambda one, two: two if one is None else one if two is None else one + two
    )
    filled = TreeSum[torch.Tensor](torch.add)
    for slot in range(num_slots):
        tree.push(Block(slot, 1, values[slot] if kept[slot] else None))
        filled.push(Block(slot, 1, values[slot] if kept[slot] else torch.tensor(-0.0)))
    total = tree.total()
    if total is not None:
        assert total.view(torch.int32) == filled.total().view(torch.int32)


def test_gradients_that_are_views_of_one_another_are_not_added_to_in_place() -> None:
    one = torch.ones(4)
    assert are_apart([one, None, torch.ones(4)])
    assert not are_apart([one, one.view(2, 2)])
