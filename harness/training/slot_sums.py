"""The sum of all slots' gradients with the same bits on any number of ranks: each slot's is
computed alone, and all are added up in a tree that depends on the number of slots alone
(slot_tree.py; docs/elastic.md).

Across ranks each bucket of parameters makes one exchange, as soon as the last slot's backward pass
has given its gradients: every rank gets its share of the elements of all ranks' partial sums, and
finishes the tree there.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.errors import ConfigError
from harness.ranks.ranks import Ranks
from harness.training.buckets import Bucket, Partial, Scratch, add, are_apart
from harness.training.slot_tree import Block, TreeSum, blocks_of
from harness.wording import some

_MOST_WAITING = 2  # exchanges under way before the oldest is waited for

Finish = Callable[[], Tensor]
Buckets = Callable[[Sequence[nn.Parameter]], Sequence[Bucket]]


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
    gathering: list[Callable[[], object]] = field(default_factory=list)
    is_last: bool = False
    # Of the left slot of a pair: how often its gradients, still the parameters', were written
    left: dict[nn.Parameter, int] | None = None
    missing: list[int] = field(default_factory=list)  # of each bucket's gradients, how many
    sent: int = 0  # buckets
    used: set[nn.Parameter] = field(default_factory=set)


class SlotSums:
    """Takes the gradients of this rank's slots, and gives parameters the sum over all slots."""

    def __init__(
        self,
        names: Mapping[nn.Parameter, str],
        ranks: Ranks,
        num_slots: int,
        find_unused: bool,
        buckets: Buckets,
    ) -> None:
        """names: of the parameters that backward passes give gradients; num_slots: of all ranks;
        buckets: makes those of some parameters.

        find_unused: whether parameters may get a gradient in some forward passes and none in
        others.
        """
        self.ranks = ranks
        self._names = names
        self._find_unused = find_unused
        self._make_buckets = buckets
        share = num_slots // ranks.size
        self._slots = range(ranks.rank * share, (ranks.rank + 1) * share)
        self._layout = [blocks_of(range(r * share, (r + 1) * share)) for r in range(ranks.size)]
        self._set_buckets(list(names))
        self._expected: set[str] = set()
        self._without: list[nn.Parameter] = []  # trained, but no pass gives them a gradient
        self._step: _Step | None = None
        self._scratch = Scratch()

    def _set_buckets(self, parameters: Sequence[nn.Parameter]) -> None:
        self._buckets = self._make_buckets(parameters)
        self._bucket_of = {
            one: index for index, bucket in enumerate(self._buckets) for one in bucket.parameters
        }

    def begin(self) -> None:
        """After a first backward pass, whose gradients say what slots give. Called by every rank.
        Raises ConfigError.
        """
        if not self._find_unused:
            mine = [name for one, name in self._names.items() if one.grad is not None]
            self._expected = set(self.ranks.decide(lambda: mine))
            self.ranks.together(lambda: self._check_expected(mine))
            expected = [one for one, name in self._names.items() if name in self._expected]
            self._set_buckets(expected)
            self._without = [one for one in self._names if one not in self._bucket_of]
        for one in self._names:
            one.grad = None
        if self.ranks.size > 1:
            for one in self._bucket_of:
                one.register_post_accumulate_grad_hook(self._take_ready)  # type: ignore[no-untyped-call] # torch's

    def _check_expected(self, given: Sequence[str]) -> None:
        differing = self._expected ^ set(given)
        if differing:
            raise ConfigError(
                f"network: {some(sorted(differing))} get a gradient in some micro-batches and none "
                "in others. Set train.find_unused_parameters: true, or use every parameter in each "
                "forward pass."
            )

    @contextmanager
    def slot(self, last: bool) -> Iterator[None]:
        """Around one slot's forward and backward pass: its gradients are taken, and after the last
        one's the parameters have the sum over all slots. Raises ConfigError.
        """
        if self._step is None:
            sums = [TreeSum[Partial](add) for _ in self._buckets]
            self._step = _Step(self._slots.start, sums)
        step = self._step
        if last and self.ranks.size > 1:
            step.missing = [len(one.parameters) for one in self._buckets]
            step.is_last = True
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
        sums = [one.value for one in step.sums[index].blocks]
        for one in sums:
            pairs = zip(bucket.parameters, one.tensors, strict=True)
            step.used.update(parameter for parameter, found in pairs if found is not None)
        rows, scratch = bucket.lay_out(sums, self._scratch)
        step.sums[index] = TreeSum(add)  # frees the partial sums
        counts = [len(one) * bucket.width for one in self._layout]
        received = self._scratch.take(rows, sum(counts))
        finish = self.ranks.start_exchange(rows, received, counts)
        step.waiting.append(_Exchange(index, finish, [received, *scratch]))
        while len(step.waiting) > _MOST_WAITING:
            self._gather(step)

    def _gather(self, step: _Step) -> None:
        """Finish the tree of the oldest exchange on this rank's share, and give the ranks what they
        need of it.
        """
        exchange = step.waiting.popleft()
        bucket = self._buckets[exchange.bucket]
        tree = TreeSum[Tensor](Tensor.add_)
        blocks = [block for layout in self._layout for block in layout]
        rows = torch.split(exchange.finish(), bucket.width)
        for block, row in zip(blocks, rows, strict=True):
            tree.push(Block(block.begin, block.size, row))
        step.gathering.append(bucket.place(tree.total()))
        self._scratch.give_back(exchange.scratch)

    def _finish(self, step: _Step) -> None:
        """Give the parameters the sums over all slots."""
        if self.ranks.size == 1:
            for index, bucket in enumerate(self._buckets):
                self._take(step, index)
                bucket.give_alone(step.sums[index].total())
            return
        while step.sent < len(self._buckets):
            self._send(step)
        finish_used = self._start_used(step) if self._find_unused else None
        while step.waiting:
            self._gather(step)
        used = None if finish_used is None else finish_used()
        for bucket, finish in zip(self._buckets, step.gathering, strict=True):
            finish()
            bucket.give(used)

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
