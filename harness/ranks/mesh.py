"""Parameters that several ranks share: a mesh of ranks, and tensors of which each has its own rows.

torch.distributed.fsdp and .tensor are known here alone, and imported by those who shard: it takes
seconds.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.ranks.ranks import Ranks
from harness.ranks.rows import is_sharded, is_unit
from harness.ranks.sockets import noted_sockets

try:
    from torch.distributed import set_timeout
except ImportError:  # before torch 2.15
    from torch.distributed.distributed_c10d import _set_pg_timeout as set_timeout

REPLICATE, SHARD = "replicate", "shard"


class Mesh:
    """Ranks in rows of `num_shards`: those of a row share the network, rows hold the same."""

    def __init__(
        self,
        device_mesh: Any,
        num_replicas: int,
        num_shards: int,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.num_replicas = num_replicas
        self.num_shards = num_shards
        self._mesh = device_mesh
        self._ranks = ranks
        self.device = device
        self._group = device_mesh.get_group(SHARD)
        self.shard_index = ranks.rank % num_shards

    @classmethod
    def open(cls, ranks: Ranks, num_replicas: int, device: torch.device) -> "Mesh":
        """All ranks in `num_replicas` rows, which divides their number. Called by every rank."""
        from torch.distributed.device_mesh import init_device_mesh

        if not dist.is_initialized():
            # A rank alone: torch wants a group of one all the same
            backend = "gloo" if device.type == "cpu" else None
            dist.init_process_group(
                backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
            )
        num_shards = ranks.size // num_replicas
        both = num_replicas > 1
        shape = (num_replicas, num_shards) if both else (num_shards,)
        names = (REPLICATE, SHARD) if both else (SHARD,)
        with noted_sockets():
            mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        for name in names:
            # Groups made for the mesh would wait for as long as torch has it
            set_timeout(timedelta(seconds=ranks.timeout_s), mesh.get_group(name))
        return cls(mesh, num_replicas, num_shards, ranks, device)

    def shard(
        self,
        units: Sequence[nn.Module],
        *,
        reshard_after_forward: bool,
        params: torch.dtype | None,
        reduce: torch.dtype | None,
        offload: bool,
        fill: Callable[[nn.Module], None] = lambda _: None,
    ) -> None:
        """Leave each rank its rows of the units' parameters; the last unit holds all others (FSDP2;
        Zhao et al., "PyTorch FSDP", 2023). Called by every rank.

        params, reduce: what passes compute with and gradients are summed in, None: as they are;
        fill: gives a unit that has no values yet all of them, before it is cut.
        """
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

        root = units[-1]
        given: dict[str, Any] = {"mesh": self._mesh}
        if offload:
            given["offload_policy"] = CPUOffloadPolicy()
        for unit in units:
            fill(unit)
            # What leaves the network is as wide as its parameters: losses are summed from it
            output = torch.float32 if unit is root and params is not None else None
            # Named in any case: before torch 2.15 none was that of `params`
            own = (one for one in unit.parameters() if one.requires_grad and not is_sharded(one))
            summed = reduce or next((one.dtype for one in own), None)
            policy = MixedPrecisionPolicy(params, summed, output)
            # Of the root torch keeps the parameters from forward to backward, which follows
            after = None if unit is root and reshard_after_forward else reshard_after_forward
            fully_shard(unit, mp_policy=policy, reshard_after_forward=after, **given)

    def sum_over_shards(self, tensor: Tensor) -> Tensor:
        """Over the ranks that share the network, in place; no host wait on a GPU. Called by every
        rank.
        """
        if self.num_shards > 1:
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def exchange(self, octets: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Bytes to each of the ranks that share the network, `sent` of them one after another, and
        those that it gets from each, on its device; no host wait on a GPU. Called by every rank.
        """
        octets = octets.to(self.device)
        if self.num_shards == 1:
            return octets
        found = octets.new_empty(sum(received))
        with self._ranks.heartbeat:
            dist.all_to_all_single(found, octets, list(received), list(sent), group=self._group)
        return found

    def start_gather(self, mine: Tensor) -> Callable[[], Tensor]:
        """Begin to give (n,) to the ranks that hold the same rows. Gives what waits for theirs, one
        after another in the order of replicas: no host wait on a GPU. Called by every rank.
        """
        whole = mine.new_empty(self.num_replicas * len(mine))
        work = dist.all_gather_into_tensor(
            whole.view(torch.uint8),
            mine.view(torch.uint8),
            group=self._mesh.get_group(REPLICATE),
            async_op=True,
        )

        def finish() -> Tensor:
            if work is not None:
                with self._ranks.heartbeat:
                    work.wait()
            return whole

        return finish


def num_shards_of(tensor: object) -> int:
    """Among how many ranks in a row it is divided."""
    return int(tensor.device_mesh.size(-1)) if is_sharded(tensor) else 1


def whole(tensor: Tensor) -> Tensor:
    """All of its rows; a whole tensor as it is. Called by every rank."""
    found = tensor.detach()
    if not is_sharded(found):
        return found
    # Rows that the host keeps are exchanged on the device
    gathered: Tensor = found.to(found.device_mesh.device_type).full_tensor()
    return gathered


def exchange_gradients(network: nn.Module, on: bool) -> None:
    """Whether backward passes sum gradients over ranks, or keep each rank's own until they do."""
    _root(network).set_requires_gradient_sync(on)


def exchange_between_replicas(network: nn.Module, on: bool) -> None:
    """Whether backward passes also sum over the rows of a mesh what they sum within each, or keep
    each row's sums until they do.
    """
    _root(network).set_requires_all_reduce(on)


def whole_parameters(network: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """Each sharded parameter, and the whole one that passes compute with and that keeps their
    gradients while these are not exchanged. One unit's are gathered at a time. Called by every
    rank, after a first pass.
    """
    found: dict[nn.Parameter, nn.Parameter] = {}
    sharded = dict(network.named_parameters())
    for unit in network.modules():
        if is_unit(unit):
            unit.reshard()
            unit.unshard()
            for name, one in network.named_parameters():
                if not is_sharded(one):
                    found[sharded[name]] = one
            unit.reshard()
    return found


def keeps_wide_gradients_aside() -> bool:
    """Whether torch keeps gradients that are wider than what passes compute with elsewhere than at
    the parameters of `whole_parameters`, while they are not exchanged: before torch 2.15.
    """
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

    return hasattr(FSDPParam, "to_accumulated_grad_if_needed")


def give_unused_zeros(network: nn.Module) -> None:
    """From now on a parameter that a backward pass did not reach has a gradient of zeros, where
    other ranks would wait for it for ever.
    """
    _root(network).set_reduce_scatter_unused_params(True)


def release_parameters(network: nn.Module) -> None:
    """Leave each rank its rows alone, also after a forward pass that no backward pass followed."""
    for module in network.modules():
        if is_unit(module):
            module.reshard()


def _root(network: nn.Module) -> Any:
    return network
