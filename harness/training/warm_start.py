"""Starting from the weights of other trainings: `run.init_from` and `parts.<path>.init_from`.

Only weights come over; everything else begins anew.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.checkpoint.read import find_checkpoint, load
from harness.config.parts import PartConfig
from harness.config.schema import Config
from harness.errors import CheckpointError
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
    weights = rename(
        read_weights(origin, where),
        {own if part.prefix is None else part.prefix: own},
        where,
        f"parts.{path}.prefix",
    )
    return put_in(network, weights, where, own)


def warm_start(network: nn.Module, path: Path, prefixes: Mapping[str, str]) -> str:
    """Put in the weights of `path` whose names the network has; returns what matched and what did
    not. Raises CheckpointError.

    `prefixes`: which weights are taken, by how their names begin, and what stands there instead in
    the network; without any, all as they are.
    """
    where = f"run.init_from: {path}"
    weights = read_weights(path, where)
    return put_in(
        network,
        rename(weights, prefixes, where, "run.init_prefix") if prefixes else weights,
        where,
    )


def rename(
    weights: Mapping[str, Tensor], prefixes: Mapping[str, str], where: str, setting: str
) -> dict[str, Tensor]:
    """The weights whose names begin with one of `prefixes`, under new names.

    Raises CheckpointError for a prefix that no name has, or a clash.
    """
    found: dict[str, Tensor] = {}
    for old, new in prefixes.items():
        taken = {
            new + name.removeprefix(old): tensor
            for name, tensor in weights.items()
            if name.startswith(old)
        }
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


def read_weights(path: Path, where: str) -> dict[str, Tensor]:
    """Weights by name from a run, a checkpoint, or a safetensors file. Raises CheckpointError."""
    if path.is_dir():
        return load(find_checkpoint(path), rank=0, num_ranks=0).model.read()
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{where}: {error}. Give a run, a checkpoint or a safetensors file."
        ) from error


def put_in(network: nn.Module, weights: Mapping[str, Tensor], where: str, within: str = "") -> str:
    """Put in the weights whose names the network has; returns what matched and what did not.

    within: how the names begin of those that were meant. Raises CheckpointError if none matches, or
    one of the same name has another shape or dtype.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(within)}
    common = [name for name in own if name in weights]
    if not common:
        raise CheckpointError(
            f"{where}: none of its {len(weights)} tensors has a name in the network "
            f"({', '.join(list(own)[:3])}, ...)."
        )
    differing = [
        name
        for name in common
        if (own[name].shape, own[name].dtype) != (weights[name].shape, weights[name].dtype)
    ]
    if differing:
        shown = "; ".join(
            f"{name}: {_kind(weights[name])}, the network's is {_kind(own[name])}"
            for name in differing[:5]
        )
        raise CheckpointError(
            f"{where}: {len(differing)} tensors do not fit: {shown}. Make the network's parts "
            "equal, or rename those that differ."
        )
    with torch.no_grad():
        for name in common:
            own[name].copy_(weights[name])
    fresh = [name for name in own if name not in weights]
    unused = [name for name in weights if name not in own]
    return (
        f"{where}: {len(common)} tensors loaded; newly initialised: {some(fresh)}; not used: "
        f"{some(unused)}"
    )


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
