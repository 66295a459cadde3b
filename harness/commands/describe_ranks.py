"""`fermarsi describe --ranks N`: the memory that training takes on each of N processes.

Nothing of it is needed here: the network is built and run without memory for its tensors (torch's
meta device and fake tensors), so that networks larger than this machine can be described.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness import components
from harness.commands.describe import (
    LiveMemory,
    bytes_of,
    samples_of,
    size_text,
    tensors_in,
    training_split,
)
from harness.config.parallel import ParallelConfig, num_replicas_of
from harness.config.read import read_config
from harness.config.schema import Config
from harness.data.sampling import fitting_world_sizes
from harness.errors import ConfigError
from harness.randomness import preserve_random
from harness.ranks.ranks import Ranks
from harness.tasks.task import Task
from harness.training.birth import outline
from harness.training.engine import Engine, explain_errors
from harness.training.parallel import accelerator_for
from harness.training.parts import training_mode
from harness.training.shards import check_network, unit_of, units_of
from harness.wording import some

_MOST_RANKS = 4096


@dataclass(frozen=True)
class RankMemory:
    """Of each of `ranks` processes, the one with the most rows; without what libraries and
    allocators take.

    gathered_bytes: of other processes' rows, while they are used; activation_bytes: what the
    forward pass of a micro-batch keeps for its backward pass; host_bytes: what is not counted
    elsewhere, because it stays in the memory of the host; memory_bytes: what a process may have, if
    that is known; largest_micro_size: that fits into it, None if none does.
    """

    ranks: int
    kind: str
    micro_size: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    average_bytes: int
    gathered_bytes: int
    activation_bytes: int
    host_bytes: int = 0
    memory_bytes: int | None = None
    largest_micro_size: int | None = None
    advice: Sequence[str] = ()

    @property
    def total_bytes(self) -> int:
        return sum(size for name, size in vars(self).items() if name in _COUNTED)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total_bytes": self.total_bytes}

    def page(self) -> Iterator[str | Table]:
        """A table of what takes memory, and whether it fits."""
        table = Table("each process holds", "")
        table.columns[1].justify = "right"
        for name, label in _COUNTED.items():
            table.add_row(label, size_text(getattr(self, name)))
        table.add_section()
        table.add_row("together", size_text(self.total_bytes))
        yield table
        yield (
            f"{self.ranks} processes, parallel.kind: {self.kind}, micro-batches of "
            f"{self.micro_size} samples; libraries and the allocator take more"
        )
        if self.host_bytes:
            yield f"parallel.offload: cpu leaves {size_text(self.host_bytes)} more to its host"
        if self.memory_bytes is not None:
            fits = (
                "no batch.micro_size fits"
                if self.largest_micro_size is None
                else f"the largest batch.micro_size that fits is {self.largest_micro_size}"
            )
            yield f"of {size_text(self.memory_bytes)}: {fits}"
        yield from self.advice


_COUNTED = {
    "parameter_bytes": "parameters and buffers",
    "gradient_bytes": "gradients",
    "optimizer_bytes": "state of the optimizer",
    "average_bytes": "averages of train.ema",
    "gathered_bytes": "rows of others, while in use",
    "activation_bytes": "activations of a micro-batch",
}


def describe_ranks(
    path: Path, overrides: Sequence[str], num_ranks: int, memory_gb: float | None = None
) -> RankMemory:
    """What each of so many processes needs with this config; memory_gb: what it may have, by
    default the memory of this machine's GPU, if it has one. Raises HarnessError.
    """
    config = read_config(path, overrides)
    slots = config.batch.size // config.batch.micro_size
    if slots % num_ranks:
        raise ConfigError(
            f"--ranks: {num_ranks} processes cannot share {slots} micro-batches evenly. Give one "
            f"of {some(list(map(str, fitting_world_sizes(slots))))}, or another batch.size."
        )
    memory_bytes = None if memory_gb is None else int(memory_gb * 1e9)
    if memory_bytes is None and torch.cuda.is_available():
        memory_bytes = torch.cuda.get_device_properties(0).total_memory
    outlined = _Outlined(config, num_ranks)
    found = replace(
        outlined.memory_of(num_ranks, config.batch.micro_size), advice=tuple(outlined.remarks())
    )
    if memory_bytes is None:
        return found
    largest = outlined.largest_size(num_ranks, memory_bytes)
    advice = [] if largest else [*outlined.advice(num_ranks, memory_bytes)]
    return replace(
        found,
        memory_bytes=memory_bytes,
        largest_micro_size=largest,
        advice=(*found.advice, *advice),
    )


class _Outlined:
    """A network without memory, and what it would take."""

    def __init__(self, config: Config, num_ranks: int) -> None:
        """Raises HarnessError, also for a network that so many processes cannot share."""
        self._config, self._settings = config, config.parallel
        train = config.train.model_copy(update={"compile": False})
        plain = config.model_copy(update={"parallel": ParallelConfig(), "train": train})
        self._task: Task = components.build(config.task, "task")
        self._accelerator = accelerator_for(config)
        self._split = training_split(config, self._task)
        batch = samples_of(self._split, 1)
        self._engine = Engine(plain, self._accelerator, self._task, batch, outline(plain))
        self._network = self._engine.network
        self._blocks: list[str] = []
        if self._is_sharded:
            self._blocks = units_of(self._network, self._settings)
            num_shards = num_ranks // num_replicas_of(self._settings, num_ranks, {})
            check_network(self._network, self._blocks, num_shards)
        self._engine.shard(Ranks())
        self._engine.open()
        self._parameters = dict(self._network.named_parameters())
        self._state = self._optimizer_state()
        self._activations: dict[int, int] = {}
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self._dtype = torch.bfloat16 if self._settings.precision.params else None
        _swap_for_fakes(self._network, self._fakes, self._dtype)

    @property
    def _is_sharded(self) -> bool:
        return self._settings.kind != "ddp"

    def memory_of(self, num_ranks: int, micro_size: int, slots: int | None = None) -> RankMemory:
        """Of one of so many processes; slots: of a step on each, None: as the batch has them."""
        held = self._held(num_ranks, micro_size, slots)
        return replace(held, activation_bytes=self._activation_bytes(micro_size))

    def largest_size(
        self, num_ranks: int, memory_bytes: int, slots: int | None = None
    ) -> int | None:
        """Of micro-batches that so many processes can share evenly, the largest that fits."""
        size = self._config.batch.size
        sizes = (one for one in range(size, 0, -1) if size % (one * num_ranks) == 0)
        fits = (
            one
            for one in sizes
            if self._may_fit(num_ranks, one, memory_bytes, slots)
            and self.memory_of(num_ranks, one, slots).total_bytes <= memory_bytes
        )
        return next(fits, None)

    def _may_fit(
        self, num_ranks: int, micro_size: int, memory_bytes: int, slots: int | None
    ) -> bool:
        """Whether there is room for two thirds of the activations that it would have if they grew
        with the micro-batch, as most do.
        """
        known = self._config.batch.micro_size
        expected = self._activation_bytes(known) * micro_size / known * 2 / 3
        return self._held(num_ranks, micro_size, slots).total_bytes + expected <= memory_bytes

    def remarks(self) -> Iterator[str]:
        """What takes memory without need."""
        is_cast = self._is_sharded and self._config.train.precision != "no"
        if is_cast and not self._engine.recomputed:
            yield (
                f"train.precision: {self._config.train.precision} keeps a copy of all weights from "
                "forward to backward pass on each process (counted as activations): with sharded "
                "networks set train.recompute: auto, which keeps that of one block, or "
                "parallel.precision: {params: bf16} instead"
            )

    def advice(self, num_ranks: int, memory_bytes: int) -> Iterator[str]:
        """What to change where nothing fits."""
        if not self._engine.recomputed:
            yield "train.recompute: auto keeps fewer activations, with the same bits"
        if not self._is_sharded:
            yield "parallel.kind: fsdp leaves each process its rows alone"
            return
        is_elastic = self._config.run.exactness == "elastic"
        at_step = self._settings.reduce_every == "step" and not is_elastic
        # Of one slot no whole gradients are kept either
        if at_step and (size := self.largest_size(num_ranks, memory_bytes, slots=1)):
            yield (
                "parallel.reduce_every: micro_batch keeps no whole gradients, with more exchanges: "
                f"then a batch.micro_size of {size} fits"
            )
        most = max(map(len, self._parameters.values()))
        counts = range(num_ranks, min(most, _MOST_RANKS) + 1, num_ranks)
        room = (one for one in counts if self._held(one, 1, 1).total_bytes < memory_bytes)
        enough = next(room, None)
        if enough is None:
            yield "no number of processes is enough: what is gathered must shrink (parallel.shard)"
        elif enough > num_ranks:
            how = ", with a micro-batch each in a step" if at_step else ""
            yield f"{enough} processes have room for their rows{how}"
        elif at_step and self._config.batch.size > num_ranks:
            yield (
                f"a batch.size of {num_ranks} samples, one micro-batch a process, would need no "
                "whole gradients"
            )
        if self._settings.precision.params is None:
            yield "parallel.precision: {params: bf16} gathers half as much"
        if self._settings.offload == "none":
            yield "parallel.offload: cpu leaves rows and the optimizer's state to the host (GPUs)"

    def _held(self, num_ranks: int, micro_size: int, slots: int | None = None) -> RankMemory:
        """Without activations; slots: of a step on each rank, as the batch has them."""
        shards = 1
        if self._is_sharded:
            shards = num_ranks // num_replicas_of(self._settings, num_ranks, {})
        slots = slots or self._config.batch.size // micro_size // num_ranks
        named = self._parameters.values()
        trained = [one for one in named if one.requires_grad]
        own_gradients = sum(_share(one, one.nbytes, shards) for one in trained)
        # Summed over ranks with the step's last slot, or that of the rest at the end of a pass
        whole, offloads = 0, self._settings.offload == "cpu"
        if shards > 1 or offloads:
            is_kept = slots > 1 and self._settings.reduce_every == "step"
            kept = trained if is_kept else self._units().get("", [])
            whole = sum(one.nbytes for one in kept if one.requires_grad)
        ema = self._config.train.ema
        buffers = sum(one.nbytes for one in self._network.buffers())
        held = RankMemory(
            ranks=num_ranks,
            kind=self._settings.kind,
            micro_size=micro_size,
            parameter_bytes=sum(_share(one, one.nbytes, shards) for one in named) + buffers,
            gradient_bytes=own_gradients + whole,
            optimizer_bytes=sum(_share(one, size, shards) for one, size in self._state),
            average_bytes=0
            if ema is None
            else sum(_share(one, one.numel() * max(4, one.itemsize), shards) for one in trained),
            gathered_bytes=self._gathered_bytes() if shards > 1 or offloads else 0,
            activation_bytes=0,
        )
        if not offloads:
            return held
        return replace(
            held,
            parameter_bytes=buffers,
            gradient_bytes=whole,
            optimizer_bytes=0,
            average_bytes=0,
            host_bytes=held.total_bytes - held.gathered_bytes - buffers - whole,
        )

    def _gathered_bytes(self) -> int:
        """The rest of the network for a pass, and a block in use, the next one, and the first one's
        gradients; or all, where nothing is given back after the forward pass.
        """
        width = 2 if self._settings.precision.params == "bf16" else None
        sizes = {
            unit: sum(one.numel() * (width or one.itemsize) for one in inside)
            for unit, inside in self._units().items()
        }
        rest = sizes.pop("", 0)
        if not self._settings.reshard_after_forward:
            return rest + sum(sizes.values()) + max(sizes.values(), default=0)
        return rest + 3 * max(sizes.values(), default=0)

    def _units(self) -> dict[str, list[Tensor]]:
        """The parameters that are gathered together, by block; "" for the rest of the network."""
        found: dict[str, list[Tensor]] = {}
        for name, one in self._parameters.items():
            found.setdefault(unit_of(name, self._blocks), []).append(one)
        return found

    def _optimizer_state(self) -> list[tuple[Tensor, int]]:
        """Bytes, with the parameter whose rows they are shared with; found by a step."""
        optimizer = self._engine.optimizer
        for group in optimizer.param_groups:
            group.update({key: False for key in ("fused", "foreach") if key in group})
            for one in group["params"]:
                one.grad = torch.empty_like(one)
        optimizer.step()
        found = []
        for one, state in optimizer.state.items():
            alike = [value for value in tensors_in(state) if value.shape == one.shape]
            found.append((one, sum(value.nbytes for value in alike)))
            found.append((torch.empty(1), bytes_of(state) - sum(value.nbytes for value in alike)))
        for group in optimizer.param_groups:
            for one in group["params"]:
                one.grad = None
        return found

    def _activation_bytes(self, micro_size: int) -> int:
        if micro_size not in self._activations:
            self._activations[micro_size] = self._measure(micro_size)
        return self._activations[micro_size]

    def _measure(self, micro_size: int) -> int:
        batch = samples_of(self._split, micro_size)
        num_samples = min(len(self._split), micro_size)
        training_mode(self._network, self._config.parts)
        fakes = self._fakes
        with preserve_random(), fakes, explain_errors("network", "a pass without values", batch):
            given = {
                key: self._cast(fakes.from_tensor(one)) if isinstance(one, Tensor) else one
                for key, one in batch.items()
            }
            with LiveMemory() as memory, self._accelerator.autocast():
                outputs = self._task.forward(self._network, given)
                self._task.fit_to(outputs)
                loss = self._task.loss_sum(outputs, given)
                del outputs
                size_bytes: int = memory.live_bytes
            del loss
        return size_bytes * micro_size // num_samples

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if self._dtype and tensor.is_floating_point() else tensor


def _share(parameter: Tensor, size_bytes: int, num_shards: int) -> int:
    """Of the rank with the most rows."""
    rows = parameter.shape[0] if parameter.dim() else 1
    return size_bytes * -(-rows // num_shards) // max(1, rows)


def _swap_for_fakes(network: nn.Module, fakes: FakeTensorMode, dtype: torch.dtype | None) -> None:
    """Tensors that are computed with in shapes and types alone; dtype: of parameters, None: their
    own.
    """
    made: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for key, one in module._parameters.items():
            if one is not None and id(one) not in made:
                with fakes:
                    kind = dtype if dtype and one.is_floating_point() else one.dtype
                    empty = torch.empty_strided(one.shape, one.stride(), dtype=kind)
                made[id(one)] = nn.Parameter(empty, one.requires_grad)
            module._parameters[key] = None if one is None else made[id(one)]
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else fakes.from_tensor(buffer)
