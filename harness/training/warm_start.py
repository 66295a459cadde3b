"""Starting from the weights of other trainings: `run.init_from` and `parts.<path>.init_from`.

Only weights come over; everything else begins anew.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from harness.checkpoint.format import Spec, known_dtype
from harness.checkpoint.read import find_checkpoint, load
from harness.config.parts import PartConfig
from harness.config.schema import Config
from harness.errors import CheckpointError
from harness.ranks.rows import local_of, own_range
from harness.wording import some


def start_weights(network: nn.Module, config: Config) -> list[str]:
    """What a new run starts from: the whole network's weights, then those of its parts, the inner
    ones last; returns what matched.

    Raises CheckpointError.
    """
    lines = (
        []
        if config.run.init_from is None
        else [warm_start(network, config.run.init_from, config.run.init_prefix)]
    )
    for path in sorted(config.parts, key=len):
        part = config.parts[path]
        if part.init_from is not None:
            lines.append(_start_part(network, path, part, part.init_from))
    return lines


def _start_part(network: nn.Module, path: str, part: PartConfig, origin: Path) -> str:
    where = f"parts.{path}.init_from: {origin}"
    own = f"{path}." if path in dict(network.named_modules(remove_duplicate=False)) else path
    weights = read_weights(origin, where)
    prefixes = {own if part.prefix is None else part.prefix: own}
    names = rename(weights, prefixes, where, f"parts.{path}.prefix")
    return put_in(network, weights, names, where, own)


def warm_start(network: nn.Module, path: Path, prefixes: Mapping[str, str]) -> str:
    """Put in the weights of `path` whose names the network has; returns what matched and what did
    not. Raises CheckpointError.

    `prefixes`: which weights are taken, by how their names begin, and what stands there instead in
    the network; without any, all as they are.
    """
    where = f"run.init_from: {path}"
    weights = read_weights(path, where)
    names = rename(weights, prefixes or {"": ""}, where, "run.init_prefix")
    return put_in(network, weights, names, where)


def rename(
    weights: Iterable[str], prefixes: Mapping[str, str], where: str, setting: str
) -> dict[str, str]:
    """By their new names, the names that begin with one of `prefixes`.

    Raises CheckpointError for a prefix that no name has, or a clash.
    """
    found: dict[str, str] = {}
    for old, new in prefixes.items():
        taken = {new + name.removeprefix(old): name for name in weights if name.startswith(old)}
        clashing = sorted(found.keys() & taken.keys())
        if not taken or clashing:
            problem = (
                f"two weights would be called {clashing[0]}"
                if clashing
                else f"none of its names begins with {old!r} ({some(list(weights))})"
            )
            raise CheckpointError(
                f"{where}: {setting}: {problem}. Look at the names with `fermarsi export` or "
                "safetensors."
            )
        found |= taken
    return found


class Weights(Protocol):
    """Tensors by name, each read into where it stays; of a sharded one the rows of this rank."""

    def __iter__(self) -> Iterator[str]: ...

    def kind(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """The dtype and shape of one; nothing is read."""

    def fill(self, targets: Mapping[str, Tensor]) -> None:
        """Read some into tensors of their dtypes and shapes."""


class SafetensorsFile:
    """The tensors of a safetensors file. Raises OSError and SafetensorError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            self._specs = {
                name: Spec(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()
            }
        unknown = [one for one in self._specs.values() if not known_dtype(one.dtype)]
        if unknown:
            raise SafetensorError(f"{path}: tensors of {unknown[0].dtype}, which torch lacks")

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def kind(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        return self._specs[name].torch_dtype, self._specs[name].shape

    def fill(self, targets: Mapping[str, Tensor]) -> None:
        with safe_open(self._path, "pt") as file, torch.no_grad():
            for name, target in targets.items():
                rows = own_range(target)
                local_of(target).copy_(
                    file.get_tensor(name)
                    if rows is None
                    else file.get_slice(name)[rows[0] : rows[1]]
                )


def read_weights(path: Path, where: str) -> Weights:
    """The weights of a run, a checkpoint, or a safetensors file. Raises CheckpointError."""
    if path.is_dir():
        return load(find_checkpoint(path), rank=0, num_ranks=0).model
    try:
        return SafetensorsFile(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{where}: {error}. Give a run, a checkpoint or a safetensors file."
        ) from error


def put_in(
    network: nn.Module, weights: Weights, names: Mapping[str, str], where: str, within: str = ""
) -> str:
    """Read the weights into the tensors of the network that have their new `names`, one at a time;
    returns what matched and what did not.

    within: how the names begin of those that were meant. Raises CheckpointError if none matches, or
    one of the same name has another shape or dtype.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(within)}
    common = [name for name in own if name in names]
    if not common:
        raise CheckpointError(
            f"{where}: none of its {len(names)} tensors has a name in the network "
            f"({', '.join(list(own)[:3])}, ...)."
        )
    differing = [
        name
        for name in common
        if (own[name].dtype, tuple(own[name].shape)) != weights.kind(names[name])
    ]
    if differing:
        shown = "; ".join(
            f"{name}: {_kind(*weights.kind(names[name]))}, the network's is "
            f"{_kind(own[name].dtype, tuple(own[name].shape))}"
            for name in differing[:5]
        )
        raise CheckpointError(
            f"{where}: {len(differing)} tensors do not fit: {shown}. Make the network's parts "
            "equal, or rename those that differ."
        )
    for name in common:
        weights.fill({names[name]: own[name]})
    fresh = [name for name in own if name not in names]
    unused = [name for name in names if name not in own]
    return (
        f"{where}: {len(common)} tensors loaded; newly initialised: {some(fresh)}; not used: "
        f"{some(unused)}"
    )


def _kind(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{dtype} {shape}"
