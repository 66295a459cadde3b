"""Tensors of which each rank holds some rows, as FSDP2 shards parameters: whose rows are which."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from harness.errors import CheckpointError

# [first, last) of each rank; equal where it has none. Replicas have the same.
Rows = tuple[tuple[int, int], ...]
_UNIT = "FSDPModule"  # the class that torch adds to those of a module


def rows_of(tensor: object, where: str = "a tensor") -> Rows | None:
    """The rows of a sharded tensor that each rank holds; None if each holds all of it. A pure
    function of its shape, mesh and placements, the same on all ranks.

    Raises CheckpointError for one that is not cut between rows.
    """
    if not is_sharded(tensor) or all(one.is_replicate() for one in tensor.placements):
        return None
    if tensor.numel() == 0:
        return None
    cut = []
    for one in tensor.placements:
        # Not the interleaved rows of tensor parallelism, which are of a class of their own
        is_cut = type(one).__name__ == "Shard" and one.dim == 0
        if not (is_cut or one.is_replicate()):
            raise CheckpointError(
                f"{where}: placed as {tensor.placements} over ranks: a checkpoint holds tensors "
                "that are cut between rows, Shard(0), or whole on each rank. Shard it so."
            )
        cut.append(is_cut)
    ranks = tuple(tensor.device_mesh.mesh.flatten().tolist())
    mesh_shape = tuple(tensor.device_mesh.shape)
    return cut_rows(tensor.shape[0], mesh_shape, tuple(cut), ranks, dist.get_world_size())


def own_range(tensor: object) -> tuple[int, int] | None:
    """The rows of a sharded tensor that this rank holds; None if it holds all of it."""
    rows = rows_of(tensor)
    return None if rows is None else rows[dist.get_rank()]


def num_rows(of_all: int, shard: int, num_shards: int) -> int:
    """How many of a tensor's rows one of the ranks has that share it, as torch.chunk has it."""
    count = -(-of_all // num_shards)
    return max(0, min(count, of_all - shard * count))


def local_of(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: its rows where it is sharded, in their own memory."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        local: Tensor = tensor.to_local()
        return local


def empty_beside(
    parameter: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A tensor without values for an optimizer's state of another shape than its parameter's: whole
    on each rank of a sharded one's, whose kernels take no plain tensors beside it but scalars.
    """
    made = torch.empty(shape, dtype=dtype, device=device)
    if not is_sharded(parameter) or made.dim() == 0:
        return made
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh
    whole: Tensor = DTensor.from_local(made, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole


def class_of(module: object) -> type[Any]:
    """The class that a module was made of: sharding puts it into one of its own."""
    classes = type(module).__mro__
    names = [one.__name__ for one in classes]
    return classes[names.index(_UNIT) + 1] if _UNIT in names else classes[0]


def is_unit(module: object) -> TypeGuard[Any]:
    """Whether ranks gather its parameters together (FSDP2)."""
    return any(one.__name__ == _UNIT for one in type(module).__mro__)


def is_sharded(tensor: object) -> TypeGuard[Any]:
    """Whether it is one tensor of several ranks (a DTensor)."""
    return hasattr(tensor, "device_mesh")  # without an import of DTensor, which takes a second


@lru_cache(maxsize=65536)
def cut_rows(
    num_rows: int,
    mesh_shape: tuple[int, ...],
    cut: tuple[bool, ...],
    ranks: tuple[int, ...],
    num_ranks: int,
) -> Rows:
    """The rows of each rank where those axes of a mesh are `cut` and the others have replicas: as
    torch.chunk has it, ceil(n / k) each, fewer at the end. `ranks`: of the mesh, row by row.
    """
    found = [(0, 0)] * num_ranks
    for index, rank in enumerate(ranks):
        first, last, stride = 0, num_rows, len(ranks)
        for length, cuts in zip(mesh_shape, cut, strict=True):
            stride //= length
            if cuts:
                count = -(-(last - first) // length)
                begin = min(last, first + index // stride % length * count)
                first, last = begin, min(last, begin + count)
        found[rank] = (first, last)
    return tuple(found)
