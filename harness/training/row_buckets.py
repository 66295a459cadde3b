"""Gradients of sharded parameters in buckets, and their norms, with the same bits on any number of
ranks (slot_sums.py).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from harness.ranks.mesh import Mesh
from harness.ranks.rows import local_of, num_rows
from harness.training.buckets import Partial, Scratch, fill_missing
from harness.training.norms import Norms


class RowBucket:
    """Each rank has the sums of its rows' gradients; those that share no rows share the work."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        sharded: Mapping[nn.Parameter, nn.Parameter],
        mesh: Mesh,
        dtype: torch.dtype,
    ) -> None:
        """parameters: whole ones, which passes give gradients in `dtype`; sharded: each one's that
        the optimizer knows.
        """
        self.parameters = list(parameters)
        self._mesh = mesh
        self._sharded = [sharded[one] for one in parameters]
        self._kind = torch.empty(0, dtype=dtype, device=parameters[0].device)
        # Of each parameter the elements of a rank, as torch.chunk cuts rows, filled up
        self._sizes = [
            -(-one.shape[0] // mesh.num_shards) * one.shape[1:].numel() for one in parameters
        ]
        self.width = -(-sum(self._sizes) // mesh.num_replicas)
        self._padding = mesh.num_replicas * self.width - sum(self._sizes)
        self._made: tuple[list[Tensor], list[Tensor]] | None = None

    def _gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """Those of the sharded parameters, and the rows of each; the same at every step."""
        if self._made is None:
            made = [torch.zeros_like(one, requires_grad=False) for one in self._sharded]
            self._made = made, [local_of(one) for one in made]
        return self._made

    def lay_out(self, sums: Sequence[Partial], scratch: Scratch) -> tuple[Tensor, list[Tensor]]:
        """As `Bucket` has it: of each rank's rows, which several may hold, its chunk."""
        shards, replicas = self._mesh.num_shards, self._mesh.num_replicas
        taken = scratch.take(self._kind, shards * replicas * len(sums) * self.width)
        rows = taken.view(replicas, shards, len(sums), self.width)
        if len(sums) == replicas == 1:
            self._write(sums[0], taken.view(shards, -1))
            return rows.view(shards, -1), [taken]
        beside = scratch.take(self._kind, shards * replicas * self.width)
        by_shard = beside.view(shards, replicas, self.width)
        for number, one in enumerate(sums):
            self._write(one, beside.view(shards, -1))
            rows[:, :, number].copy_(by_shard.transpose(0, 1))
        scratch.give_back([beside])
        return rows.view(shards * replicas, -1), [taken]

    def _write(self, sums: Partial, by_shard: Tensor) -> None:
        """Each rank's rows of all parameters one after another: (S, n)."""
        given = [
            fill_missing(self._kind.new_empty(parameter.shape)) if one is None else one
            for parameter, one in zip(self.parameters, sums.tensors, strict=True)
        ]
        if self._padding:
            given.append(self._kind.new_zeros(len(by_shard), self._padding))
        torch._chunk_cat(given, 0, len(by_shard), out=by_shard)

    def place(self, total: Tensor) -> Callable[[], object]:
        """As `Bucket` has it: ranks with the same rows get each other's chunks."""
        if self._mesh.num_replicas == 1:
            self._take_rows(total)
            return lambda: None
        finish = self._mesh.start_gather(total.clone())
        return lambda: self._take_rows(finish())

    def _take_rows(self, mine: Tensor) -> None:
        rows = self._gradients()[1]
        # Without the padding
        pieces = torch.split(mine[: sum(self._sizes)], self._sizes)
        there = [one[: row.numel()].view(row.shape) for one, row in zip(pieces, rows, strict=True)]
        torch._foreach_copy_(rows, there)

    def give(self, used: set[nn.Parameter] | None) -> None:
        """As `Bucket` has it."""
        gradients = self._gradients()[0]
        for whole, one, gradient in zip(self.parameters, self._sharded, gradients, strict=True):
            one.grad = gradient if used is None or whole in used else None

    def give_alone(self, sums: Partial) -> None:
        """As `Bucket` has it."""
        rows = self._gradients()[1]
        there = [(row, one) for row, one in zip(rows, sums.tensors, strict=True) if one is not None]
        if there:
            torch._foreach_copy_([row for row, _ in there], [one for _, one in there])
        pairs = zip(self.parameters, sums.tensors, strict=True)
        self.give({whole for whole, one in pairs if one is not None})


class RowNorms:
    """Norms of gradients of which each rank has some rows. One rank gets all rows of a gradient,
    and takes its norm as it is taken of a whole one: the same bits on any number of ranks.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._norms = Norms()
        self._shapes: list[torch.Size] = []
        self._owned: list[list[int]] = []
        self._own = torch.empty(0)

    def of(self, gradients: Sequence[Tensor]) -> Tensor:
        """(n,) norms of sharded gradients, on the ranks' device; no host wait on a GPU. Called by
        every rank that shares them.
        """
        rows = [local_of(one) for one in gradients]
        shapes = [one.shape for one in gradients]
        if shapes != self._shapes:
            self._plan(shapes)
        wholes = self._gather(rows) if self._mesh.num_shards > 1 else rows
        wide = torch.float64 if len({one.dtype for one in rows}) > 1 else rows[0].dtype
        found = torch.zeros(len(rows), dtype=wide, device=self._mesh.device)
        if wholes:
            alike = [one.to(found.device, wide) for one in wholes]
            found[self._own.to(found.device)] = self._norms.of(alike)
        return self._mesh.sum_over_shards(found)

    def _gather(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """The gradients whose norms this rank takes, whole."""
        mesh, shapes = self._mesh, self._shapes
        order = [index for owned in self._owned for index in owned]
        octets = [rows[index].reshape(-1).view(torch.uint8) for index in order]
        row_bytes = [one.shape[1:].numel() * one.element_size() for one in rows]
        counts = [sum(rows[index].nbytes for index in owned) for owned in self._owned]
        mine = self._owned[mesh.shard_index]
        pieces = [
            [
                num_rows(shapes[index][0], shard, mesh.num_shards) * row_bytes[index]
                for index in mine
            ]
            for shard in range(mesh.num_shards)
        ]
        received = mesh.exchange(torch.cat(octets), counts, [sum(one) for one in pieces])
        split = torch.split(received, [size for sizes in pieces for size in sizes])
        return [
            torch.cat(split[number :: len(mine)]).view(rows[index].dtype).view(shapes[index])
            for number, index in enumerate(mine)
        ]

    def _plan(self, shapes: Sequence[torch.Size]) -> None:
        """The largest first, each to the rank that has the least so far; of a rank alone as they
        come.
        """
        self._shapes = list(shapes)
        self._owned = [[] for _ in range(self._mesh.num_shards)]
        loads = [0] * self._mesh.num_shards
        for index in sorted(range(len(shapes)), key=lambda one: (-shapes[one].numel(), one)):
            least = loads.index(min(loads))
            self._owned[least].append(index)
            loads[least] += shapes[index].numel()
        alone = self._mesh.num_shards == 1
        own = range(len(shapes)) if alone else self._owned[self._mesh.shard_index]
        self._own = torch.tensor(list(own), dtype=torch.int64)
