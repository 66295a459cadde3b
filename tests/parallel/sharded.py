"""A network whose every value is known from its name, shared among ranks in each way that there is,
with the optimizer's state; and what must be found of it.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from harness.checkpoint import layout, plan
from harness.checkpoint.retention import Retention
from harness.checkpoint.settings import ModelLayout
from harness.checkpoint.stage import Snapshot
from harness.checkpoint.state import optimizer_tensors, restore_network, restore_optimizer
from harness.ranks.ranks import Ranks
from harness.ranks.rows import cut_rows, empty_beside, local_of, own_range
from tests.checkpoint.examples import loaded_from, snapshot, store_in

WAYS = ("ddp", "fsdp", "hsdp")


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.narrow(torch.relu(self.wide(x))))


class Network(nn.Module):
    """Rows that no number of ranks divides, fewer of them than ranks, or none, two dtypes, tied
    weights and buffers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(13, 30, bias=False)
        self.blocks = nn.ModuleList([Block(30, 50), Block(30, 7)])
        self.low = nn.Linear(30, 5, dtype=torch.bfloat16)
        self.one = nn.Linear(30, 1)
        self.head = nn.Linear(13, 30, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.zeros(11, 3))
        self.one.weight.requires_grad_(False)
        # PrimeIntellect-ai/prime-rl#3252
        self.none = nn.Parameter(torch.empty(0, 3), requires_grad=False)


def made(way: str) -> nn.Module:
    """The network, shared that way among the ranks of this job; "ddp": a copy each."""
    network = Network()
    if way != "ddp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        size = Ranks.join().size
        shape = (size,) if way == "fsdp" else (2, size // 2)
        names = ("shard",) if way == "fsdp" else ("replicate", "shard")
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        for module in (*network.blocks, network.low):
            fully_shard(module, mesh=mesh)
        fully_shard(network, mesh=mesh)
    return network


def names_of(network: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in network.named_parameters()}


def optimizer_of(network: nn.Module) -> AdamW:
    return AdamW([one for one in network.parameters() if one.requires_grad])


def expected(name: str, kind: Tensor) -> Tensor:
    """The whole of the tensor of that name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(0, 120, kind.shape, generator=generator).to(kind.dtype)


def own_part(name: str, tensor: Tensor) -> Tensor:
    """What this rank must hold of it."""
    rows, whole = own_range(tensor), expected(name, tensor)
    return whole if rows is None else whole[rows[0] : rows[1]]


def put_values(tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            local_of(tensor).copy_(own_part(name, tensor))


def state_of(network: nn.Module, optimizer: AdamW) -> tuple[dict[str, Tensor], Any]:
    """(all tensors by name, the optimizer's rest)."""
    moments, rest = optimizer_tensors(optimizer, names_of(network))
    return {**network.state_dict(), **moments}, rest


def taken(way: str, step: int = 1) -> Snapshot:
    """The state of a network that is shared that way."""
    network = made(way)
    optimizer = optimizer_of(network)
    for one in optimizer.param_groups[0]["params"]:
        optimizer.state[one] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(one, dtype=torch.float32),
            "exp_avg_sq": torch.zeros_like(one),
            # Of another shape than the parameter, and so not cut
            "row_var": empty_beside(one, (len(one), 1), torch.float64, one.device),
        }
    moments, rest = optimizer_tensors(optimizer, names_of(network))
    model = network.state_dict()
    put_values({name: one for name, one in model.items() if not name.startswith("head")})
    put_values(moments)
    rng = {"torch": torch.arange(8, dtype=torch.uint8) + Ranks.join().rank}
    return snapshot(step, model=model, optimizer=moments, rng=rng, trainer={"optimizer": rest})


def in_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors cut between rows among the ranks of this job; what is tied stays so, and scalars
    whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    size = Ranks.join().size
    mesh = init_device_mesh("cpu", (size,))
    made: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if tensor.dim() and id(tensor) not in made:
            first, last = cut_rows(len(tensor), (size,), (True,), tuple(range(size)), size)[
                mesh.get_rank()
            ]
            made[id(tensor)] = DTensor.from_local(
                tensor[first:last].clone(),
                mesh,
                [Shard(0)],
                run_check=False,
                shape=tensor.shape,
                stride=tensor.stride(),
            )
    return {name: made.get(id(tensor), tensor) for name, tensor in tensors.items()}


def save_rows(directory: Path, steps: Sequence[int], model_layout: ModelLayout = "rows") -> None:
    """The steps of tests/checkpoint/examples.py, each rank with its rows."""
    ranks = Ranks.join(20.0)
    retention = Retention(keep_last=100)
    store = store_in(directory, ranks, retention, model_layout=model_layout)
    for step in steps:
        state = snapshot(step)
        rows = {"model": in_rows(state.model), "optimizer": in_rows(state.optimizer)}
        store.save(replace(state, **rows), None)
    store.close()
    assert [one.error for one in store.reports()] == [None] * len(steps)


def save(directory: Path, way: str, model_layout: ModelLayout = "whole") -> int:
    """Save it through the store; how many bytes this rank keeps for it."""
    layout.CUT_BYTES, plan._SHARD_BYTES = 256, 4096
    store = store_in(directory, Ranks.join(20.0), model_layout=model_layout)
    store.save(taken(way), None)
    store.wait()
    size_bytes = store._stage._memory.octets.numel()
    store.close()
    assert [one.error for one in store.reports()] == [None]
    return size_bytes


def wrong_after_load(path: Path, way: str) -> list[str]:
    """The names of what this rank does not hold to the bit, once it has read a checkpoint into a
    network that is shared that way.
    """
    ranks = Ranks.join(20.0)
    network, loaded = made(way), loaded_from(path, ranks.rank, ranks.size)
    with torch.no_grad():
        for one in (*network.parameters(), *network.buffers()):
            local_of(one).fill_(7)
    optimizer = optimizer_of(network)
    restore_network(network, loaded, ranks)
    rest = loaded.trainer["optimizer"]
    restore_optimizer(optimizer, names_of(network), loaded.optimizer, rest, ranks)
    return [*differing(state_of(network, optimizer)[0])]


def differing(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in tensors.items():
        local, wanted = local_of(tensor), own_part(name.replace("head", "embed"), tensor)
        if local.dtype != wanted.dtype or not torch.equal(local, wanted):
            yield name
