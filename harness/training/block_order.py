"""Which blocks of a sharded network a pass uses, and in which order: the same on all ranks, which
gather a block's parameters together.

Ranks that go apart would wait for each other for ever, or, where blocks are of one size, compute
with rows of one block and of another, without a word (pytorch/pytorch#148334, #158719;
facebookresearch/fairscale#796).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_leaves

from harness.data.source import Batch
from harness.errors import ConfigError
from harness.ranks.ranks import Ranks

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
    micro-batch: there a rank looks at its own passes alone, without collectives or host waits.
    Evaluations are compared with passes of micro-batches of the same shapes (`of_all`).
    """

    def __init__(self, network: nn.Module, blocks: Sequence[str], ranks: Ranks) -> None:
        self._ranks = ranks
        self._learns = True
        self._passes = {True: _Passes(), False: _Passes()}  # by whether they keep gradients
        self._evaluations: dict[str, _Passes] = {}  # by the shapes on all ranks
        self._evaluation: _Passes | None = None  # of the pass under way
        self._agrees = False  # whether all ranks compare what it comes to
        self._is_outside = False  # whether blocks are called without the network, in an evaluation
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

    @contextmanager
    def of_all(self, batch: Batch) -> Iterator[None]:
        """Around what an evaluation does with a micro-batch. The first time that ranks have such
        shapes together, they compare each block before they come to it (one exchange on hosts
        each), and what they all come to is known from then on. Called by every rank. Raises
        ConfigError.
        """
        tensors = (one for one in tree_leaves(dict(batch)) if isinstance(one, Tensor))
        shapes = repr(self._ranks.gather([list(one.shape) for one in tensors]))
        self._agrees = shapes not in self._evaluations
        self._evaluation = self._evaluations.get(shapes, _Passes())
        self._evaluation.begin(learns=False)
        try:
            yield
            self._come_to(_END, False)
        finally:
            passes, self._evaluation = self._evaluation, None
        passes.begin(self._agrees)
        self._evaluations[shapes] = passes

    @_disable_dynamo
    def _enter_network(self, *_: object) -> None:
        kind = torch.is_grad_enabled()
        self._is_outside = False
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
        # Outside of the network's own: again, in a backward pass, or by another method
        kind = self._inside[-1] if self._inside else torch.is_grad_enabled()
        if not (kind or self._inside or self._is_outside):
            self._passes[False].begin(self._learns)
            self._is_outside = True
        self._come_to(f"the forward pass of {name}", kind)

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
        """Raises ConfigError where no known pass went on like this, or another rank does not."""
        passes = self._evaluation or self._passes[kind]
        wanted = passes.come_to(event)
        if self._evaluation is not None and self._agrees:
            found = self._ranks.gather(event)
            other = next((rank for rank, one in enumerate(found) if one != event), None)
            if other is None:
                return
            instead = f"rank {other} comes to {found[other]}"
        elif wanted is None or self._learns:
            return
        else:
            instead = f"the first one came to {wanted or 'nothing more'}"
        raise ConfigError(
            f"network: on rank {self._ranks.rank} a pass comes to {event}, where {instead}. "
            "Processes gather the parameters of a block together, so that each pass has to use the "
            "same blocks in the same order, as often. Leave blocks that only some micro-batches "
            "use, or only from some step on, or each time another number of times, out of "
            "parallel.shard: the rest of the network then holds them."
        )
