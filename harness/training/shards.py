"""How ranks share a network of which none holds all: each has its rows of every parameter, gradient
and moment, and gathers a block's parameters while it is used (FSDP2), also in evaluations: every
forward pass is one of all ranks.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.config.parallel import ParallelConfig, num_replicas_of
from harness.data.source import Batch
from harness.errors import ConfigError
from harness.ranks.mesh import (
    Mesh,
    exchange_between_replicas,
    exchange_gradients,
    give_unused_zeros,
)
from harness.ranks.ranks import Ranks
from harness.ranks.rows import local_of
from harness.training.birth import Birth, spread
from harness.training.block_order import BlockOrder
from harness.training.buffers import Buffers
from harness.training.parallel import agree_on_start, require_gradients
from harness.training.parts import twins_of
from harness.training.recompute import matching, repeated_blocks
from harness.wording import some

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, None: None}
# What waits for a step's last slot
_EXCHANGES = {"step": exchange_gradients, "micro_batch": exchange_between_replicas}


def _alone(_: Batch) -> AbstractContextManager[None]:
    return nullcontext()


class Shards:
    """The network as the training's passes see it, each rank with its own rows."""

    def __init__(
        self,
        birth: Birth,
        accelerator: Accelerator,
        ranks: Ranks,
        settings: ParallelConfig,
        find_unused: bool,
        writes_are_counted: bool = False,
    ) -> None:
        """Called by every rank, before there is an optimizer: its parameters are others then.
        Raises ConfigError.
        """
        network, self._note = birth.network, birth.note
        self.ranks = ranks
        self.averaged_over = ranks.size
        self._network = network
        self._device = accelerator.device
        self._find_unused = find_unused
        self._exchange, self._exchanges = _EXCHANGES[settings.reduce_every], True
        # Of machines with other numbers of processes each would find another one
        num_replicas = ranks.decide(lambda: num_replicas_of(settings, ranks.size, os.environ))
        num_shards = ranks.size // num_replicas

        def choose() -> list[str]:
            if settings.offload == "cpu" and accelerator.device.type == "cpu":
                raise ConfigError(
                    "parallel.offload: cpu has no effect on a machine without GPUs. Remove it."
                )
            names = units_of(network, settings)
            check_network(network, names, num_shards)
            return names

        self.blocks = ranks.together(choose)

        def give(unit: nn.Module) -> None:
            if birth.is_spread:
                spread(unit, ranks, self._device, birth.on_file, num_shards)

        if not birth.is_spread:
            agree_on_start(network, ranks)
        self.mesh = Mesh.open(ranks, num_replicas, accelerator.device)
        self.mesh.shard(
            [*(network.get_submodule(name) for name in self.blocks), network],
            reshard_after_forward=settings.reshard_after_forward,
            params=DTYPES[settings.precision.params],
            reduce=DTYPES[settings.precision.reduce],
            offload=settings.offload == "cpu",
            fill=give,
        )
        if birth.is_spread:
            for module in network.modules():
                for key, tensor in module._buffers.items():
                    module._buffers[key] = None if tensor is None else tensor.to(self._device)
            agree_on_start(network, ranks)
        # Autocast alone: Accelerate would share the network in its own way
        self.model: nn.Module = accelerator.prepare_model(
            network, device_placement=False, evaluation_mode=True
        )
        self._buffers = Buffers(network, ranks, writes_are_counted)
        self._order = BlockOrder(network, self.blocks, ranks) if ranks.size > 1 else None

    def description(self) -> str:
        """What is shared among how many, in words."""
        mesh, note = self.mesh, f"; {self._note}" if self._note else ""
        copies = f" in each of {mesh.num_replicas} groups" if mesh.num_replicas > 1 else ""
        return (
            f"{mesh.num_shards} processes{copies} share the network, and gather "
            f"{some(self.blocks)} while in use, and the rest for a whole pass{note}"
        )

    def begin(self) -> None:
        """After the trial on each rank, before the warm-up of all. Called by every rank."""
        if self._order is not None:
            self._order.fix()

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Inside, backward passes sum gradients over all ranks only if this is the step's last
        slot; with `reduce_every: micro_batch` over those that share the network in any case.
        """
        if last != self._exchanges:
            self._exchange(self._network, last)
            self._exchanges = last
        with self._buffers.slot():
            yield

    def clip(self, parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        """Scale the gradients down to a norm of `limit`, None: leave them. Gives the norm that they
        had, of all ranks' rows; no host wait. Called by every rank.
        """
        gradients = [local_of(one.grad) for one in parameters if one.grad is not None]
        norms = [torch.linalg.vector_norm(one, dtype=torch.float64) for one in gradients]
        # In float64, where squares do not overflow
        square = (
            torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=torch.float64)
        )
        norm = self.mesh.sum_over_shards(square.to(self._device)).sqrt()
        if limit is not None:
            factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
            for one in gradients:
                one.mul_(factor.to(one.device, one.dtype))
        return norm

    @property
    def in_step(self) -> Callable[[Batch], AbstractContextManager[None]]:
        """Around what an evaluation does with a micro-batch: it gathers parameters from all ranks,
        which use the same blocks (`BlockOrder.of_all`).
        """
        return _alone if self._order is None else self._order.of_all

    def state_dict(self) -> dict[str, Tensor]:
        """The network's tensors by name, as a checkpoint holds them."""
        return self._network.state_dict()

    def agree_on_buffers(self) -> None:
        """The same buffers on every rank. Called by every rank."""
        self._buffers.agree()

    def check_gradients(self) -> None:
        """After a first backward pass, the same on all ranks: whether each trained parameter has a
        gradient. From then on one that has none gets zeros. Raises ConfigError.
        """
        require_gradients(self._network.named_parameters(), not self._find_unused)
        give_unused_zeros(self._network)


def units_of(network: nn.Module, settings: ParallelConfig) -> list[str]:
    """The modules whose parameters are gathered together. Raises ConfigError."""
    where = "parallel.shard"
    if settings.shard == "auto":
        return repeated_blocks(network, where)
    names = matching(network, settings.shard, where)
    for name in names:
        module = network.get_submodule(name)
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            raise ConfigError(
                f"{where}: {name} is a {type(module).__name__}, which has no forward pass in which "
                f"its parameters are used. Name the modules in it: [{name}.*]."
            )
    return names


def check_network(network: nn.Module, blocks: Sequence[str], num_shards: int) -> None:
    """Raise ConfigError for a network whose parameters cannot be shared in these units."""
    kinds: dict[str, dict[torch.dtype, str]] = {}
    for name, twins in twins_of(network).items():
        parameter = network.get_parameter(name)
        units = sorted({unit_of(twin, blocks) for twin in twins})
        if len(units) > 1:
            raise ConfigError(
                f"parallel.shard: {' and '.join(twins)} are tied, and lie in separate shards: "
                f"{' and '.join(one or 'the rest of the network' for one in units)}. Leave these "
                "modules out of parallel.shard, so that the rest of the network holds them."
            )
        if parameter.dim() == 0:
            raise ConfigError(
                f"parallel.kind: {name} is a single number, of which no rank can hold rows. Give "
                "it the shape (1,), or use kind: ddp."
            )
        if parameter.requires_grad and not parameter.numel():
            raise ConfigError(
                f"parallel.kind: {name} has no elements, and FSDP2 sums no gradients of such. "
                "Freeze it, e.g. by parts, remove it, or use kind: ddp."
            )
        if not parameter.is_contiguous():
            raise ConfigError(
                f"parallel.kind: {name} is not contiguous in memory, so that it has no rows to "
                "share. Make it contiguous, or use kind: ddp."
            )
        if parameter.requires_grad:
            kinds.setdefault(units[0], {}).setdefault(parameter.dtype, name)
    for unit, found in kinds.items():
        if len(found) > 1:
            raise ConfigError(
                f"parallel.shard: {unit or 'the rest of the network'} has trained parameters of "
                f"several types, whose gradients cannot be summed together: "
                f"{some([f'{name} is {dtype}' for dtype, name in found.items()])}. Let them be of "
                "one type, or name modules of one type each by patterns."
            )
    most = max((one.shape[0] for one in network.parameters()), default=0)
    if most <= -(-most // num_shards) * (num_shards - 1):
        raise ConfigError(
            f"parallel.kind: no parameter has more than {most} rows, and some of {num_shards} "
            "processes that share them would hold nothing. Use fewer processes, kind: ddp, or "
            "kind: hsdp with a larger parallel.replicate."
        )


def unit_of(name: str, blocks: Sequence[str]) -> str:
    """The block that a parameter lies in, "" for the rest of the network."""
    return next((block for block in blocks if name.startswith(f"{block}.")), "")
