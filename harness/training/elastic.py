"""The same bits on any number of ranks: each slot's gradient is computed alone, and all are added
up in a tree that depends on the number of slots alone (slot_tree.py; docs/elastic.md).

Across ranks each bucket of parameters makes one exchange, as soon as the last slot's backward pass
has given its gradients: every rank gets its share of the elements of all ranks' partial sums,
finishes the tree there, and the results are gathered.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.errors import ConfigError
from harness.ranks.ranks import Ranks
from harness.training.buckets import Partial, Scratch, add, are_apart, buckets_of, give, write
from harness.training.network_state import BufferState, find_changes
from harness.training.parallel import Whole, require_gradients
from harness.training.slot_tree import Block, TreeSum, blocks_of
from harness.training.statistics import RunningStatistics
from harness.wording import some

_MOST_WAITING = 2  # exchanges under way before the oldest is waited for
_NOTHING: AbstractContextManager[None] = nullcontext()

Finish = Callable[[], Tensor]


def refuse_synchronised(network: nn.Module) -> None:
    """Raise ConfigError for layers that look at the other ranks' batches."""
    found = [name for name, one in network.named_modules() if isinstance(one, nn.SyncBatchNorm)]
    if found:
        raise ConfigError(
            f"network: {some(found)} (SyncBatchNorm) computes with the samples that all processes "
            "have at one time, so that a run depends on their number. Use batch normalisation of "
            "micro-batches (BatchNorm), or set run.exactness: resume from the start of a run."
        )


@dataclass
class _Exchange:
    """One under way, of a bucket, and the memory that it needs."""

    bucket: int
    finish: Finish
    scratch: Sequence[Tensor]


@dataclass
class _Step:
    """What a step has so far."""

    slot: int
    sums: list[TreeSum[Partial]]
    waiting: deque[_Exchange] = field(default_factory=deque)
    gathering: list[tuple[int, Finish]] = field(default_factory=list)
    is_last: bool = False
    # Of the left slot of a pair: how often its gradients, still the parameters', were written
    left: dict[nn.Parameter, int] | None = None
    missing: list[int] = field(default_factory=list)  # of each bucket's gradients, how many
    sent: int = 0  # buckets
    used: set[nn.Parameter] = field(default_factory=set)


class Elastic(Whole):
    """A whole copy on each rank; gradients, buffers and norms have the same bits on any number."""

    averaged_over = 1

    def __init__(
        self,
        network: nn.Module,
        accelerator: Accelerator,
        ranks: Ranks,
        num_slots: int,
        find_unused: bool,
    ) -> None:
        """Called by every rank, once the weights are in. num_slots: of all ranks.

        find_unused: whether parameters may get a gradient in some forward passes and none in
        others. Raises ConfigError.
        """
        super().__init__(network, ranks)
        refuse_synchronised(network)
        # Without DDP: only the precision
        self.model = accelerator.prepare_model(network, evaluation_mode=True)
        self.statistics = RunningStatistics(network, ranks)
        self._find_unused = find_unused
        self._num_slots = num_slots
        share = num_slots // ranks.size
        self._slots = range(ranks.rank * share, (ranks.rank + 1) * share)
        self._layout = [blocks_of(range(r * share, (r + 1) * share)) for r in range(ranks.size)]
        self._buffers: BufferState | None = BufferState(network)
        self._names = {one: name for name, one in network.named_parameters() if one.requires_grad}
        self._set_buckets(list(self._names))
        self._expected: set[str] = set()
        self._without: list[nn.Parameter] = []  # trained, but no pass gives them a gradient
        self._step: _Step | None = None
        self._scratch = Scratch()

    def _set_buckets(self, parameters: Sequence[nn.Parameter]) -> None:
        self._buckets = buckets_of(parameters)
        self._bucket_of = {
            one: index for index, bucket in enumerate(self._buckets) for one in bucket.parameters
        }

    def check_gradients(self) -> None:
        """After a first backward pass. Called by every rank. Raises ConfigError for gradients that
        cannot be summed, and for buffers that the pass changed and that do not come in the order of
        slots.
        """
        require_gradients(self._network, of_all=False)
        assert self._buffers is not None
        self.ranks.together(self._check_buffers)
        if not self._find_unused:
            mine = [name for one, name in self._names.items() if one.grad is not None]
            self._expected = set(self.ranks.decide(lambda: mine))
            self.ranks.together(lambda: self._check_expected(mine))
            expected = [one for one, name in self._names.items() if name in self._expected]
            self._set_buckets(expected)
            self._without = [one for one in self._names if one not in self._bucket_of]
        if self.ranks.size > 1:
            for one in self._bucket_of:
                one.register_post_accumulate_grad_hook(self._take_ready)  # type: ignore[no-untyped-call] # torch's

    def _check_buffers(self) -> None:
        assert self._buffers is not None
        own = {
            f"{path}.{key}".lstrip(".")
            for path, module in self._network.named_modules()
            for key in module._buffers
            if self.statistics.owns(module, key)
        }
        before, now = (
            {name: one.values for name, one in state.kept.items() if name not in own}
            for state in (self._buffers, BufferState(self._network))
        )
        changed = find_changes(before, now)
        self._buffers = None  # they took memory
        if changed:
            raise ConfigError(
                f"network: a training pass changes the buffers {some(changed)}, on each rank by "
                "its own slots, so that a run depends on the number of processes. Use batch "
                "normalisation, whose statistics are put in the order of slots, or set "
                "run.exactness: resume from the start of a run."
            )

    def _check_expected(self, given: Sequence[str]) -> None:
        differing = self._expected ^ set(given)
        if differing:
            raise ConfigError(
                f"network: {some(sorted(differing))} get a gradient in some micro-batches and none "
                "in others. Set train.find_unused_parameters: true, or use every parameter in each "
                "forward pass."
            )

    # -- a step

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Around one slot's forward and backward pass: its gradients are taken, and after the last
        one's the parameters have the sum over all slots. Raises ConfigError.
        """
        return self._one_slot(last)

    @contextmanager
    def _one_slot(self, last: bool) -> Iterator[None]:
        if self._step is None:
            sums = [TreeSum[Partial](add) for _ in self._buckets]
            self._step = _Step(self._slots.start, sums)
        step = self._step
        if last and self.ranks.size > 1:
            step.missing = [len(one.parameters) for one in self._buckets]
            step.is_last = True
        with self.statistics.slot() if self.statistics.modules else _NOTHING:
            yield
        if not self._find_unused:
            self._check_given(step)
        if not last:
            self._keep(step)
            step.slot += 1
            return
        self._step = None
        self._finish(step)

    def _check_given(self, step: _Step) -> None:
        """Raise ConfigError unless the slot gave the gradients that the first pass gave."""
        before = step.left or {}

        def has_given(one: nn.Parameter) -> bool:
            return one.grad is not None and one.grad._version != before.get(one, -1)

        unsent = (one for bucket in self._buckets[step.sent :] for one in bucket.parameters)
        given = all(map(has_given, unsent))
        if given and all(one.grad is None for one in self._without):
            return
        sent = {one for bucket in self._buckets[: step.sent] for one in bucket.parameters}
        self._check_expected(
            [
                name
                for one, name in self._names.items()
                if one in sent
                or (one.grad is not None and one.grad._version != before.get(one, -1))
            ]
        )

    def _keep(self, step: _Step) -> None:
        """Take a slot's gradients, or leave those of the left one of a pair to autograd, which adds
        the right one's to each while it is in the cache.
        """
        if step.slot % 2 == 0 and step.slot + 1 in self._slots:
            given = [one for one in self._bucket_of if one.grad is not None]
            if are_apart([one.grad for one in given]):
                step.left = {one: one.grad._version for one in given if one.grad is not None}
                return
        for index in range(len(self._buckets)):
            self._take(step, index)
        step.left = None

    def _take(self, step: _Step, index: int) -> None:
        """Add a slot's gradients of a bucket, or a pair's, to those of the slots before."""
        parameters = self._buckets[index].parameters
        gradients = [one.grad for one in parameters]
        for one in parameters:
            one.grad = None
        begin, size = (step.slot, 1) if step.left is None else (step.slot - 1, 2)
        sums = Partial(gradients, owned=are_apart(gradients))
        step.sums[index].push(Block(begin, size, sums))

    def _take_ready(self, parameter: nn.Parameter) -> None:
        """A hook of each parameter: once the last slot has given all gradients of a bucket, and of
        those before it, it is sent: in the same order on every rank.
        """
        step = self._step
        if step is None or not step.is_last:
            return
        index = self._bucket_of[parameter]
        step.missing[index] -= 1
        if step.missing[index] < 0:
            raise ConfigError(
                f"network: the gradient of {self._names[parameter]} comes in several pieces, as "
                "with reentrant checkpoints. Use use_reentrant=False, or train.recompute."
            )
        while step.sent < len(self._buckets) and step.missing[step.sent] == 0:
            self._send(step)

    def _send(self, step: _Step) -> None:
        """Begin the exchange of the next bucket."""
        index = step.sent
        step.sent += 1
        self._take(step, index)
        bucket = self._buckets[index]
        flat, views = bucket.flat(self.ranks.size)
        blocks = step.sums[index].blocks
        for one in blocks:
            pairs = zip(bucket.parameters, one.value.tensors, strict=True)
            step.used.update(parameter for parameter, found in pairs if found is not None)
        rows = flat.view(self.ranks.size, -1)
        width = rows.shape[1]
        counts = [len(one) * width for one in self._layout]
        scratch = [self._scratch.take(flat, sum(counts))]
        if len(blocks) == 1:
            write(views, blocks[0].value.tensors)
        else:
            scratch.append(self._scratch.take(flat, self.ranks.size * len(blocks) * width))
            rows = scratch[1].view(self.ranks.size, len(blocks), width)
            for number, block in enumerate(blocks):
                write(views, block.value.tensors)
                rows[:, number].copy_(flat.view(self.ranks.size, -1))
        step.sums[index] = TreeSum(add)  # frees the partial sums
        finish = self.ranks.start_exchange(rows.view(self.ranks.size, -1), scratch[0], counts)
        step.waiting.append(_Exchange(index, finish, scratch))
        while len(step.waiting) > _MOST_WAITING:
            self._gather(step)

    def _gather(self, step: _Step) -> None:
        """Finish the tree of the oldest exchange on this rank's share, and begin to gather it."""
        exchange = step.waiting.popleft()
        received = exchange.finish()
        flat, _ = self._buckets[exchange.bucket].flat(self.ranks.size)
        by_rank = flat.view(self.ranks.size, -1)
        width = by_rank.shape[1]
        tree = TreeSum[Tensor](Tensor.add_)
        blocks = [block for layout in self._layout for block in layout]
        for block, row in zip(blocks, torch.split(received, width), strict=True):
            tree.push(Block(block.begin, block.size, row))
        by_rank[self.ranks.rank] = tree.total()
        self._scratch.give_back(exchange.scratch)
        step.gathering.append((exchange.bucket, self.ranks.start_gather(by_rank)))

    def _finish(self, step: _Step) -> None:
        """Give the parameters the sums over all slots."""
        if self.ranks.size == 1:
            for index, bucket in enumerate(self._buckets):
                self._take(step, index)
                give(bucket, step.sums[index].total())
            return
        while step.sent < len(self._buckets):
            self._send(step)
        finish_used = self._start_used(step) if self._find_unused else None
        while step.waiting:
            self._gather(step)
        used = None if finish_used is None else finish_used()
        for index, finish in step.gathering:
            finish()
            bucket = self._buckets[index]
            for one, view in zip(bucket.parameters, bucket.flat(self.ranks.size)[1], strict=True):
                one.grad = view if used is None or one in used else None

    def _start_used(self, step: _Step) -> Callable[[], set[nn.Parameter]]:
        """Begin to find out which parameters got a gradient in any slot of any rank. The host
        waits for the others, not for a device.
        """
        parameters = list(self._bucket_of)
        mask = torch.tensor([one in step.used for one in parameters], dtype=torch.uint8)
        work = self.ranks.start_maximum(mask)

        def finish() -> set[nn.Parameter]:
            if work is not None:
                with self.ranks.heartbeat:
                    work.wait()
            return {one for one, got in zip(parameters, mask.tolist(), strict=True) if got}

        return finish

    def agree_on_buffers(self) -> None:
        """Running statistics of all slots, in order; other buffers do not change. Called by every
        rank.
        """
        self.statistics.update()
