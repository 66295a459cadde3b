"""Gradients in buckets, as ranks exchange them where sums have the same bits on any number
(elastic.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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


class Bucket:
    """Parameters whose gradients travel together, and where these lie in one flat tensor: in the
    memory order of their parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first = parameters[0]
        aligned = max(1, ALIGNED_BYTES // first.element_size())
        self.offsets: list[int] = []
        self.length = 0
        for one in parameters:
            self.offsets.append(self.length)
            self.length += -(-one.numel() // aligned) * aligned
        self._views: list[Tensor] = []
        self._flat: Tensor | None = None

    def flat(self, num_ranks: int) -> tuple[Tensor, list[Tensor]]:
        """A tensor for all gradients in equal shares of the ranks, and each one's view of it; the
        same at every step.
        """
        if self._flat is None:
            first = self.parameters[0]
            width = -(-self.length // num_ranks)
            self._flat = first.detach().new_zeros(num_ranks * width)
            self._views = [
                self._flat.as_strided(one.shape, strides_of(one), offset)
                for one, offset in zip(self.parameters, self.offsets, strict=True)
            ]
        return self._flat, self._views


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
            view.fill_(complex(_MISSING, _MISSING) if view.is_complex() else _MISSING)


def give(bucket: Bucket, sums: Partial) -> None:
    """Set the gradients of a rank alone, with the layout and alignment that those of several have:
    norms depend on it.
    """
    for parameter, one in zip(bucket.parameters, sums.tensors, strict=True):
        strides = strides_of(parameter)
        if one is not None and (one.stride() != strides or one.data_ptr() % ALIGNED_BYTES):
            one = torch.empty_strided(one.shape, strides, dtype=one.dtype, device=one.device).copy_(
                one
            )
        parameter.grad = one


def buckets_of(parameters: Sequence[nn.Parameter]) -> list[Bucket]:
    """A function of the network alone: in the order in which a backward pass reaches parameters, by
    type.
    """
    found: list[list[nn.Parameter]] = []
    size = 0
    for one in reversed(parameters):
        if not found or size + one.nbytes > BUCKET_BYTES or one.dtype != found[-1][0].dtype:
            found.append([])
            size = 0
        found[-1].append(one)
        size += one.nbytes
    return [Bucket(one) for one in found]


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
        self._free += [one._base for one in tensors if one._base is not None]
