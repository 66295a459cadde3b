"""Gradients in buckets, as ranks exchange them where sums have the same bits on any number
(elastic.py).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from harness.ranks.ranks import Ranks

BUCKET_BYTES = 25 << 20
ALIGNED_BYTES = 64  # kernels add up a tensor that begins elsewhere in another order
_MISSING = -0.0  # x + -0.0 has the bits of x, for every x


class Partial:
    """The sum of some slots' gradients of a bucket, None where none of them had one.

    `owned`: whether nothing else may have the memory, as autograd may of a single slot's.
    """

    def __init__(self, tensors: Sequence[Tensor | None], *, owned: bool = False) -> None:
        self.tensors = list(tensors)
        self.owned = owned


@torch.no_grad()
def add(left: Partial, right: Partial) -> Partial:
    """Their sum, in the memory of `left` where it is owned."""
    both = [
        index
        for index, (one, other) in enumerate(zip(left.tensors, right.tensors, strict=True))
        if one is not None and other is not None
    ]
    ours, theirs = ([one.tensors[index] for index in both] for one in (left, right))
    found = [
        other if one is None else one
        for one, other in zip(left.tensors, right.tensors, strict=True)
    ]
    # One that only a single slot gave is still autograd's
    whole = len(both) == len(found)
    if both and left.owned:
        torch._foreach_add_(ours, theirs)  # type: ignore[arg-type] # of `both`, none is None
    elif both:
        for index, one in zip(both, torch._foreach_add(ours, theirs), strict=True):  # type: ignore[arg-type] # see above
            found[index] = one
    return Partial(found, owned=whole or (left.owned and right.owned))


def are_apart(gradients: Sequence[Tensor | None]) -> bool:
    """Whether each has memory of its own: autograd may give two parameters views of one gradient.

    No other reference is left otherwise: torch adds to what it gave in place as well.
    """
    places = [one.untyped_storage().data_ptr() for one in gradients if one is not None]
    return len(set(places)) == len(places)


class Scratch:
    """Memory that is used again: with fresh memory each page costs more than what is written to it
    does.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, like: Tensor, length: int) -> Tensor:
        """(length,) of the type and device of `like`; what is there is left."""
        size = length * like.element_size()
        found = self._free.pop() if self._free else None
        if found is None or found.numel() < size:
            found = like.new_empty(size, dtype=torch.uint8)
        return found[:size].view(like.dtype)

    def give_back(self, tensors: Sequence[Tensor]) -> None:
        """Of `take`."""
        self._free += [one._base for one in tensors if one._base is not None]


class Bucket(Protocol):
    """Parameters whose gradients travel together, of which each rank adds up a chunk of `width`
    elements.
    """

    parameters: list[nn.Parameter]
    width: int

    def lay_out(self, sums: Sequence[Partial], scratch: Scratch) -> tuple[Tensor, list[Tensor]]:
        """Partial sums as ranks exchange them, (R, n * width) for n of them: each rank's chunk of
        one after another; and the memory to give back once they are sent.
        """

    def place(self, total: Tensor) -> Callable[[], object]:
        """Take in this rank's chunk of the sum over all slots, and begin to give the ranks what
        they need of it. Gives what waits for that: no host wait on a GPU. Called by every rank.
        """

    def give(self, used: set[nn.Parameter] | None) -> None:
        """Set the gradients from what has come: None where a parameter is not `used`."""

    def give_alone(self, sums: Partial) -> None:
        """Set the gradients of a rank alone."""


class WholeBucket:
    """All gradients on each rank, in one flat tensor, in the memory order of their parameters; the
    same at every step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self.parameters = list(parameters)
        self._ranks = ranks
        first = parameters[0]
        aligned = max(1, ALIGNED_BYTES // first.element_size())
        self.offsets: list[int] = []
        length = 0
        for one in parameters:
            self.offsets.append(length)
            length += -(-one.numel() // aligned) * aligned
        self.width = -(-length // ranks.size)
        self._made: tuple[Tensor, list[Tensor]] | None = None

    def _flat(self) -> tuple[Tensor, list[Tensor]]:
        """A tensor for all gradients in equal shares of the ranks, and each one's view of it."""
        if self._made is None:
            first = self.parameters[0]
            flat = first.detach().new_zeros(self._ranks.size * self.width)
            views = [
                flat.as_strided(one.shape, strides_of(one), offset)
                for one, offset in zip(self.parameters, self.offsets, strict=True)
            ]
            self._made = flat, views
        return self._made

    def lay_out(self, sums: Sequence[Partial], scratch: Scratch) -> tuple[Tensor, list[Tensor]]:
        """As `Bucket` has it; a single one in the memory that its result is for."""
        flat, views = self._flat()
        if len(sums) == 1:
            write(views, sums[0].tensors)
            return flat.view(self._ranks.size, -1), []
        taken = scratch.take(flat, self._ranks.size * len(sums) * self.width)
        rows = taken.view(self._ranks.size, len(sums), self.width)
        for number, one in enumerate(sums):
            write(views, one.tensors)
            rows[:, number].copy_(flat.view(self._ranks.size, -1))
        return rows.view(self._ranks.size, -1), [taken]

    def place(self, total: Tensor) -> Callable[[], object]:
        """As `Bucket` has it: all ranks get all chunks."""
        by_rank = self._flat()[0].view(self._ranks.size, -1)
        by_rank[self._ranks.rank] = total
        return self._ranks.start_gather(by_rank)

    def give(self, used: set[nn.Parameter] | None) -> None:
        """As `Bucket` has it."""
        for one, view in zip(self.parameters, self._flat()[1], strict=True):
            one.grad = view if used is None or one in used else None

    def give_alone(self, sums: Partial) -> None:
        """As `Bucket` has it, with the layout and alignment that those of several ranks have: norms
        depend on it.
        """
        for parameter, one in zip(self.parameters, sums.tensors, strict=True):
            strides = strides_of(parameter)
            if one is not None and (one.stride() != strides or one.data_ptr() % ALIGNED_BYTES):
                one = torch.empty_strided(
                    one.shape, strides, dtype=one.dtype, device=one.device
                ).copy_(one)
            parameter.grad = one


def strides_of(parameter: Tensor) -> Sequence[int]:
    """Of its gradient: autograd's layout contract."""
    return torch.empty_like(parameter, device="meta").stride()


@torch.no_grad()
def write(views: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """A bucket's gradients into its flat tensor."""
    there = [(view, one) for view, one in zip(views, gradients, strict=True) if one is not None]
    if there:
        torch._foreach_copy_([view for view, _ in there], [one for _, one in there])
    for view, one in zip(views, gradients, strict=True):
        if one is None:
            fill_missing(view)


def fill_missing(tensor: Tensor) -> Tensor:
    """What a gradient that is not there counts as."""
    return tensor.fill_(complex(_MISSING, _MISSING) if tensor.is_complex() else _MISSING)


def grouped(
    parameters: Sequence[nn.Parameter], dtype_of: Callable[[nn.Parameter], torch.dtype]
) -> list[list[nn.Parameter]]:
    """Those of each bucket, a function of the network alone: in the order in which a backward pass
    reaches parameters, by the type of their gradients.
    """
    found: list[list[nn.Parameter]] = []
    size = 0
    for one in reversed(parameters):
        nbytes, dtype = one.numel() * dtype_of(one).itemsize, dtype_of(one)
        if not found or size + nbytes > BUCKET_BYTES or dtype != dtype_of(found[-1][0]):
            found.append([])
            size = 0
        found[-1].append(one)
        size += nbytes
    return found
