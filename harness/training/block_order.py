"""Which blocks of a sharded network a pass uses, and in which order: the same on all ranks, which
gather a block's parameters together.

Ranks that go apart would wait for each other for ever, or, where blocks are of one size, compute
with rows of one block and of another, without a word (pytorch/pytorch#148334, #158719;
facebookresearch/fairscale#796).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_leaves

from harness.errors import ConfigError

_END = "its end"


class _Passes:
    """Those of one kind: what the one under way has come to, and what others came to before."""

    def __init__(self) -> None:
        self.known: list[tuple[str, ...]] = []
        self._events: list[str] = []
        self._alike: list[tuple[str, ...]] = []  # of the known ones, those that began like this

    def begin(self, learns: bool) -> None:
        """Another one; the one before is to be known if `learns`."""
        events = tuple(self._events)
        if learns and events and events not in self.known:
            self.known.append(events)
        self._events.clear()
        self._alike = self.known

    def come_to(self, event: str) -> str | None:
        """What a known one came to instead; None if one came to that."""
        place, before = len(self._events), self._alike
        self._events.append(event)
        self._alike = [one for one in before if one[place : place + 1] == (event,)]
        return None if self._alike else next((one[place] for one in before if place < len(one)), "")


class BlockOrder:
    """Compares each pass, as it goes on, with those of the trial, which all ranks made with one
    micro-batch. A rank looks at its own passes alone: no collectives, no host wait.
    """

    def __init__(self, network: nn.Module, blocks: Sequence[str], rank: int) -> None:
        self._rank = rank
        self._learns = True
        self._passes = {True: _Passes(), False: _Passes()}  # by whether they keep gradients
        self._inside: list[bool] = []  # of the network's own forward passes, the kind of each
        self._is_backward = self._was_backward = False
        # Before the hooks of FSDP2, which gather parameters
        for name in blocks:
            module = network.get_submodule(name)
            module.register_forward_pre_hook(partial(self._enter, name), prepend=True)
            module.register_forward_hook(partial(self._leave, name), prepend=True)
        network.register_forward_pre_hook(self._enter_network, prepend=True)
        network.register_forward_hook(self._leave_network, prepend=True)

    def fix(self) -> None:
        """From now on each pass is to be like one of those that were seen."""
        for passes in self._passes.values():
            passes.begin(self._learns)
        self._learns = self._was_backward = False

    @_disable_dynamo
    def _enter_network(self, *_: object) -> None:
        kind = torch.is_grad_enabled()
        if self._was_backward or not kind:
            self._passes[kind].begin(self._learns)
            self._was_backward = self._was_backward and not kind
        self._inside.append(kind)

    @_disable_dynamo
    def _leave_network(self, _: nn.Module, __: object, outputs: Any) -> None:
        self._come_to(_END, self._inside.pop())
        self._watch("", outputs)

    @_disable_dynamo
    def _enter(self, name: str, *_: object) -> None:
        # Outside of the network's own: again, in a backward pass
        self._come_to(f"the forward pass of {name}", self._inside[-1] if self._inside else True)

    @_disable_dynamo
    def _leave(self, name: str, _: nn.Module, __: object, outputs: Any) -> None:
        self._watch(name, outputs)

    def _watch(self, name: str, outputs: Any) -> None:
        """Note when the backward pass comes to the outputs of a block, "" for the network."""
        tensors = (one for one in tree_leaves(outputs) if isinstance(one, Tensor))
        kept = [one for one in tensors if one.requires_grad]
        if kept:
            register_multi_grad_hook(kept, partial(self._turn_back, name), mode="any")

    def _turn_back(self, name: str, _: Tensor) -> None:
        if not self._is_backward:
            self._is_backward = True
            # Before that of FSDP2, which sums gradients of blocks that were not reached
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)
        if name:
            self._come_to(f"the backward pass of {name}", True)

    def _end_backward(self) -> None:
        self._is_backward, self._was_backward = False, True
        self._come_to(_END, True)

    def _come_to(self, event: str, kind: bool) -> None:
        """Raises ConfigError where no pass of the trial went on like this."""
        wanted = self._passes[kind].come_to(event)
        if wanted is None or self._learns:
            return
        raise ConfigError(
            f"network: on rank {self._rank} a pass comes to {event}, where the first one came to "
            f"{wanted or 'nothing more'}. Processes gather the parameters of a block together, so "
            "that each pass has to use the same blocks in the same order. Leave blocks that only "
            "some micro-batches use out of parallel.shard: the rest of the network then holds them."
        )
