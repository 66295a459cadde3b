"""Buffers that become the same on every rank after each step."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.checkpoint.state import same_bits
from harness.ranks.ranks import Ranks
from harness.training.statistics import RunningStatistics

_ALONE: AbstractContextManager[None] = nullcontext()
# Fewer bytes are sent in the time that the question takes
_WORTH_ASKING = 2**16


@dataclass(eq=False)
class _Still:
    """A buffer that does not change: what it was when all ranks had the same."""

    buffers: dict[str, Tensor | None]
    key: str
    tensor: Tensor
    version: int
    values: Tensor | None  # until its bits were compared once

    def has_changed(self) -> bool:
        values, self.values = self.values, None
        return (
            self.buffers[self.key] is not self.tensor
            or self.tensor._version != self.version
            or (values is not None and not same_bits(self.tensor, values))
        )


class Buffers:
    """A network's buffers, which become the same on every rank: the running statistics of all
    slots, and rank 0's of all others.

    Large ones that do not change are not sent again and again: ranks ask each other whether any
    has changed one, by what torch counts of writes, and after the first step by its bits too.
    """

    def __init__(self, network: nn.Module, ranks: Ranks, writes_are_counted: bool) -> None:
        """writes_are_counted: whether torch counts the writes, as far as is known."""
        self._ranks = ranks
        self._statistics = RunningStatistics(network, ranks)
        # Where the buffers are, not the tensors: wrapping puts others there, and so does a forward
        # pass that assigns a buffer anew.
        self._sent = [
            (module._buffers, key)
            for module in network.modules()
            for key in module._buffers
            if not self._statistics.owns(module, key)
        ]
        self._still: list[_Still] = []
        self._looks_for_still = writes_are_counted

    def slot(self) -> AbstractContextManager[None]:
        """Around one slot's forward and backward pass."""
        return (
            self._statistics.slot() if self._ranks.size > 1 and self._statistics.modules else _ALONE
        )

    def agree(self) -> None:
        """After a step. Called by every rank; the host waits for the other hosts where large
        buffers do not change, and for a device after the first step alone.
        """
        self._statistics.update()
        if self._ranks.size == 1:
            return
        if self._still:
            self._send_again(self._find_changed())
        self._ranks.broadcast_in_place(
            [
                tensor
                for buffers, key in self._sent
                if (tensor := buffers[key]) is not None and tensor.numel()
            ]
        )
        if self._looks_for_still:
            self._looks_for_still = False
            self._find_still()

    def _find_still(self) -> None:
        found = [
            _Still(buffers, key, tensor, tensor._version, tensor.detach().clone())
            for buffers, key in self._sent
            if (tensor := buffers[key]) is not None
            and tensor.numel()
            and not tensor.is_inference()  # torch counts nothing of them
        ]
        if _are_worth_asking(found):
            self._still = found
            still = {(id(one.buffers), one.key) for one in found}
            self._sent = [one for one in self._sent if (id(one[0]), one[1]) not in still]

    def _find_changed(self) -> list[bool]:
        """Of each that did not change so far: whether it has on any rank."""
        flags = torch.tensor([one.has_changed() for one in self._still], dtype=torch.uint8)
        work = self._ranks.start_maximum(flags)
        assert work is not None
        with self._ranks.heartbeat:
            work.wait()
        return [bool(flag) for flag in flags.tolist()]

    def _send_again(self, changed: Sequence[bool]) -> None:
        """From now on, those that have changed, and the others where they are few."""
        if not any(changed):
            return
        left = [one for one, flag in zip(self._still, changed, strict=True) if not flag]
        left = left if _are_worth_asking(left) else []
        self._sent += [(one.buffers, one.key) for one in self._still if one not in left]
        self._still = left


def _are_worth_asking(still: Sequence[_Still]) -> bool:
    return sum(one.tensor.nbytes for one in still) >= _WORTH_ASKING
