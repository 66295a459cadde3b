"""The order in which what belongs to slots is added up: a fixed binary tree that depends on their
number alone, so that the sum has the same bits however the slots are spread over ranks.

Two neighbouring blocks of 2^k slots, the left of which begins at a multiple of 2^(k+1), are added
first, as a binary counter does; the blocks that are left over are added from the left.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Block(Generic[T]):
    """The sum of the slots [begin, begin + size); size: a power of two."""

    begin: int
    size: int
    value: T


class TreeSum(Generic[T]):
    """Adds up blocks that come in the order of slots. Of n slots at most 2 log2(n) blocks are kept,
    one if they are aligned.
    """

    def __init__(self, add: Callable[[T, T], T]) -> None:
        self._add = add
        self.blocks: list[Block[T]] = []

    def push(self, block: Block[T]) -> None:
        """Take in the next block, and add up what belongs together."""
        while self.blocks and _are_siblings(self.blocks[-1], block):
            left = self.blocks.pop()
            block = Block(left.begin, 2 * left.size, self._add(left.value, block.value))
        self.blocks.append(block)

    def total(self) -> T:
        """The sum of all; the end of the tree if these are all slots."""
        return reduce(self._add, (one.value for one in self.blocks))


def _are_siblings(left: Block[T], right: Block[T]) -> bool:
    return left.size == right.size and left.begin % (2 * left.size) == 0


def blocks_of(slots: Iterable[int]) -> list[Block[None]]:
    """The blocks that consecutive slots add up to."""
    tree = TreeSum[None](lambda left, right: None)
    for slot in slots:
        tree.push(Block(slot, 1, None))
    return tree.blocks
