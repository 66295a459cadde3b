"""`fermarsi describe`: the shapes of a micro-batch in a network, and the memory that training it
takes on each rank.

Everything is measured: from one real forward and backward pass and one optimizer step.
"""

import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness import components
from harness.config.parallel import ParallelConfig
from harness.config.read import read_config
from harness.config.schema import Config
from harness.data.delivery import to_device
from harness.data.preparing import Feedback, Preparation, Sources, fit, open_splits
from harness.data.sampling import fitting_world_sizes
from harness.data.source import Batch
from harness.data.split import Split
from harness.randomness import preserve_random, seed_ambient, seed_for
from harness.ranks.ranks import Ranks
from harness.tasks.task import Task
from harness.training.engine import Engine
from harness.training.items import Count
from harness.training.parallel import accelerator_for

COLUMNS = ("module", "kind", "shapes", "trained", "frozen", "weights", "gradients", "optimizer")


# Of a table in a file or a pipe
WIDTH = 160


@dataclass
class Row:
    """A module: its own parameters and their memory, without those of modules inside it that have
    rows of their own. Buffers count as weights.
    """

    name: str
    kind: str
    calls: int = 0
    takes: Any = None
    gives: Any = None
    trained: int = 0
    frozen: int = 0
    weight_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0

    def add(self, other: "Row") -> None:
        """Add another row's figures."""
        for figure in ("trained", "frozen", "weight_bytes", "gradient_bytes", "optimizer_bytes"):
            setattr(self, figure, getattr(self, figure) + getattr(other, figure))

    def cells(self) -> tuple[str, ...]:
        """In the order of COLUMNS."""
        label = "  " * self.name.count(".") + self.name.rpartition(".")[2]
        shapes = f"{_shape_text(self.takes)} -> {_shape_text(self.gives)}" if self.calls else ""
        if self.calls > 1:
            shapes += f", {self.calls} times"
        sizes = (self.weight_bytes, self.gradient_bytes, self.optimizer_bytes)
        counts = [f"{count:,}" if count else "" for count in (self.trained, self.frozen)]
        return label, self.kind, shapes, *counts, *(size_text(one) if one else "" for one in sizes)


@dataclass(frozen=True)
class Description:
    """`total`: of the whole network, which each rank holds or, by `kind`, ranks share.

    `activation_bytes`: of a micro-batch, what its forward pass keeps for the backward pass;
    `average_bytes`: of the average that train.ema keeps; `unreached`: trained parameters that no
    gradient reaches.
    """

    rows: Sequence[Row]
    total: Row
    activation_bytes: int
    average_bytes: int
    unreached: Sequence[str]
    micro_size: int
    num_slots: int
    world_sizes: Sequence[int] = field(default=())
    kind: str = "ddp"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def page(self) -> Iterator[str | Table]:
        """A table of the modules, and remarks."""
        table = Table()
        for index, name in enumerate(COLUMNS):
            table.add_column(
                name, justify="right" if index > 2 else "left", overflow="fold", no_wrap=index == 0
            )
        for row in self.rows:
            table.add_row(*row.cells())
        table.add_section()
        table.add_row(*self.total.cells())
        yield table
        total = self.total
        whole = total.weight_bytes + total.gradient_bytes + total.optimizer_bytes
        average = (
            f" and an average of {size_text(self.average_bytes)}" if self.average_bytes else ""
        )
        yield (
            f"each process holds all {size_text(whole)}{average}, whatever the number of processes"
            if self.kind == "ddp"
            else f"{size_text(whole)}{average} are shared among the processes of parallel.kind: "
            f"{self.kind}; besides its share each holds the block in use"
        )
        yield (
            f"between forward and backward pass it also keeps {size_text(self.activation_bytes)} "
            f"of activations, {size_text(round(self.activation_bytes / self.micro_size))} a sample;"
            " train.recompute keeps less"
        )
        sizes = ", ".join(map(str, self.world_sizes))
        yield (
            f"a step is {self.num_slots} micro-batches of {self.micro_size} samples: launch "
            f"{sizes} processes"
        )
        if self.unreached:
            yield (
                f"no gradient reaches {', '.join(self.unreached)}: several processes cannot train "
                "this network; freeze these parameters, e.g. with parts"
            )


def page_width() -> int | None:
    """The terminal's width (None), or enough for all columns if there is no terminal."""
    return None if sys.stdout.isatty() else WIDTH


def describe_network(
    path: Path, overrides: Sequence[str] = (), depth: int | None = None
) -> Description:
    """The network of a config, down to `depth` levels of modules. Raises HarnessError."""
    asked = read_config(path, overrides)
    config = asked.model_copy(update={"parallel": ParallelConfig()})  # measured as a whole
    task: Task = components.build(config.task, "task")
    batch = samples_of(training_split(config, task), config.batch.micro_size)
    accelerator = accelerator_for(config)
    engine = Engine(config, accelerator, task, batch)
    engine.shard(Ranks())
    engine.open()
    engine.wrap(Ranks())
    rows = {
        name: Row(name, type(module).__name__) for name, module in engine.network.named_modules()
    }
    seed_ambient(seed_for(config.run.seed, "forward", 0, 0))
    batch = to_device(batch, engine.device)
    with preserve_random(), LiveMemory() as memory:
        loss = task.loss_sum(task.forward(engine.sharing.model, batch), batch)
        activation_bytes = memory.live_bytes
    del loss
    with _record_shapes(engine.network, rows):
        one = Count(torch.ones((), dtype=torch.int64, device=engine.device), 1)
        engine.forward_backward(batch, one)
    named = list(engine.network.named_parameters())
    gradients = {parameter: bytes_of(parameter.grad) for _, parameter in named}
    unreached = [name for name, one in named if one.requires_grad and one.grad is None]
    engine.update()
    for name, parameter in named:
        row = rows[name.rpartition(".")[0]]
        row.trained += parameter.numel() * parameter.requires_grad
        row.frozen += parameter.numel() * (not parameter.requires_grad)
        row.weight_bytes += bytes_of(parameter)
        row.gradient_bytes += gradients[parameter]
        row.optimizer_bytes += bytes_of(engine.optimizer.state.get(parameter))
    for name, buffer in engine.network.named_buffers():
        rows[name.rpartition(".")[0]].weight_bytes += bytes_of(buffer)
    state = engine.optimizer.state
    shared = [state[owner] for owner in state if not isinstance(owner, Tensor)]
    total = Row("", "total", optimizer_bytes=bytes_of(shared))
    for row in rows.values():
        total.add(row)
    slots = config.batch.size // config.batch.micro_size
    return Description(
        _fold(rows, depth),
        total,
        activation_bytes,
        0 if engine.stepper.average is None else bytes_of(engine.stepper.average.tensors),
        unreached,
        config.batch.micro_size,
        slots,
        fitting_world_sizes(slots),
        asked.parallel.kind,
    )


def training_split(config: Config, task: Task) -> Split:
    """The samples to train with. Raises HarnessError."""
    sources = Sources(config.data)
    prepared = Preparation({}, {}, fit(config.data, sources, Feedback()))
    return open_splits(config.data, ("train",), sources, prepared, task.check)["train"]


def samples_of(split: Split, count: int) -> Batch:
    """Its first ones, without augmentation."""
    indices = np.arange(min(len(split), count), dtype=np.int64)
    return split.fetch(indices, indices.astype(np.uint64), 0, training=False)


@contextmanager
def _record_shapes(network: nn.Module, rows: Mapping[str, Row]) -> Iterator[None]:
    """Record in `rows` the shapes that each module takes and returns in its first call."""

    def note(row: Row, args: Any, kwargs: Any, output: Any) -> None:
        if row.calls == 0:
            taken = _shapes([*args, *kwargs.values()]) or []
            row.takes = taken[0] if len(taken) == 1 else taken
            row.gives = _shapes(output)
        row.calls += 1

    hooks = [
        module.register_forward_hook(
            lambda _, args, kwargs, output, row=rows[name]: note(row, args, kwargs, output),
            with_kwargs=True,
        )
        for name, module in network.named_modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    """The memory of the tensors that were made inside and are still alive, on any device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.live_bytes = 0
        self._seen: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before = [one.untyped_storage() for one in tree_leaves(args) if isinstance(one, Tensor)]
        for storage in before:  # of what was there already
            self._seen.setdefault(storage, 0)
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and (storage := one.untyped_storage()) not in self._seen:
                self._seen[storage] = storage.nbytes()
                self.live_bytes += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        return made

    def _forget(self, size_bytes: int) -> None:
        self.live_bytes -= size_bytes


def _fold(rows: Mapping[str, Row], depth: int | None) -> list[Row]:
    """Rows down to a depth; deeper modules are counted with the module that contains them."""
    shown: dict[str, Row] = {}
    for name, row in rows.items():
        above = ".".join(name.split(".")[:depth])
        if above == name:
            shown[name] = row
        else:
            shown[above].add(row)
    return list(shown.values())


def _shapes(value: Any) -> Any:
    """The shapes of the tensors in a value, as lists in the structure of the value; None if there
    are none.
    """
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, Mapping):
        return {
            str(key): shapes for key, item in value.items() if (shapes := _shapes(item)) is not None
        } or None
    if isinstance(value, list | tuple):
        return [shapes for item in value if (shapes := _shapes(item)) is not None] or None
    return None


def _shape_text(shapes: Any) -> str:
    if isinstance(shapes, Mapping):
        return ", ".join(f"{name}: {_shape_text(shape)}" for name, shape in shapes.items())
    if isinstance(shapes, list) and not all(isinstance(length, int) for length in shapes):
        return ", ".join(map(_shape_text, shapes))
    return "" if shapes is None else f"({', '.join(map(str, shapes))})"


def bytes_of(value: Any) -> int:
    """The size of all tensors in a value, nested ones included."""
    return sum(one.numel() * one.element_size() for one in tensors_in(value))


def tensors_in(value: Any) -> list[Tensor]:
    """All in a value, nested ones included."""
    return [one for one in tree_leaves(value) if isinstance(one, Tensor)]


def size_text(size_bytes: int) -> str:
    """`1.2 MB`; units of 1000."""
    size, units = float(size_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:,.0f} {units[0]}" if units[0] == "B" or size >= 100 else f"{size:.3g} {units[0]}"
