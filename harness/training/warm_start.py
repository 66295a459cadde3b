"""Starting from the weights of other trainings: `run.init_from` and `parts.<path>.init_from`.

Only weights come over; everything else begins anew.
"""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from harness.checkpoint.foreign import tensors_of_file
from harness.checkpoint.layout import find_aliases
from harness.checkpoint.read import find_damage, load, look_for_checkpoint
from harness.checkpoint.state import same_bits
from harness.checkpoint.stored import StoredTensors
from harness.config.parts import PartConfig
from harness.config.schema import Config
from harness.errors import CheckpointError
from harness.ranks.ranks import Ranks
from harness.ranks.slowly import together_slowly
from harness.wording import some


def start_weights(network: nn.Module, config: Config, ranks: Ranks) -> list[str]:
    """What a new run starts from: the whole network's weights, then those of its parts, the inner
    ones last; returns what matched.

    Called by every rank. Raises CheckpointError.
    """
    run = config.run
    lines = (
        []
        if run.init_from is None
        else [warm_start(network, run.init_from, run.init_prefix, ranks)]
    )
    for path in sorted(config.parts, key=len):
        part = config.parts[path]
        if part.init_from is not None:
            lines.append(_start_part(network, path, part, part.init_from, ranks))
    return lines


def _start_part(network: nn.Module, path: str, part: PartConfig, origin: Path, ranks: Ranks) -> str:
    where = f"parts.{path}.init_from: {origin}"
    own = f"{path}." if path in dict(network.named_modules(remove_duplicate=False)) else path
    weights, notes = read_weights(origin, where, ranks)
    prefixes = {own if part.prefix is None else part.prefix: own}
    names = rename(weights.keys(), prefixes, where, f"parts.{path}.prefix")
    told = put_in(network, weights.renamed(names), where, own, ranks=ranks)
    return "\n".join([*notes, told])


def warm_start(
    network: nn.Module, path: Path, prefixes: Mapping[str, str], ranks: Ranks | None = None
) -> str:
    """Put in the weights of `path` whose names the network has; returns what matched and what did
    not, below what was skipped.

    `prefixes`: which weights are taken, by how their names begin, and what stands there instead in
    the network; without any, all as they are. ranks: called by every rank. Raises CheckpointError.
    """
    where = f"run.init_from: {path}"
    weights, notes = read_weights(path, where, ranks or Ranks())
    if prefixes:
        names = rename(weights.keys(), prefixes, where, "run.init_prefix")
        weights = weights.renamed(names)
    return "\n".join([*notes, put_in(network, weights, where, ranks=ranks or Ranks())])


def rename(
    weights: Collection[str], prefixes: Mapping[str, str], where: str, setting: str
) -> dict[str, str]:
    """The names of weights that begin with one of `prefixes`, by their new ones.

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


def read_weights(path: Path, where: str, ranks: Ranks) -> tuple[StoredTensors, list[str]]:
    """Weights by name of a run, a checkpoint, or a safetensors file; they are read when they are
    put in. And warnings of the checkpoints that were skipped.

    Called by every rank, each of which verifies a share of a checkpoint's hashes. Raises
    CheckpointError.
    """
    if not ranks.decide(path.is_dir):
        return ranks.together(lambda: tensors_of_file(path, where)), []
    found, skipped = _verified(path, where.removesuffix(f": {path}"), ranks)
    notes = [f"warning: {where}: {found.name} is taken instead: {one}" for one in skipped]
    return ranks.together(lambda: load(found, rank=0, num_ranks=0).model), notes


def _verified(path: Path, setting: str, ranks: Ranks) -> tuple[Path, list[str]]:
    """The checkpoint there that is valid in all its bytes, and why others were skipped."""
    damage: dict[str, list[str]] = {}
    while True:
        name, skipped = ranks.decide(partial(_look, path, setting, damage))
        found = Path(name)
        look = partial(find_damage, found, ranks.rank, ranks.size)
        problems = [one for mine in ranks.gather(together_slowly(ranks, look)) for one in mine]
        if not problems:
            return found, skipped
        damage[str(found)] = sorted(problems)


def _look(path: Path, setting: str, damage: Mapping[str, list[str]]) -> tuple[str, list[str]]:
    try:
        found, skipped = look_for_checkpoint(path, "size", damage)
    except CheckpointError as error:
        raise CheckpointError(f"{setting}: {error}") from error
    return str(found), skipped


def put_in(
    network: nn.Module, weights: StoredTensors, where: str, within: str = "", *, ranks: Ranks
) -> str:
    """Read the weights whose names the network has into its own memory; returns what matched and
    what did not.

    within: how the names begin of those that were meant. Called by every rank. Raises
    CheckpointError if none matches, or one of the same name has another shape or dtype.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(within)}
    common = {name: tensor for name, tensor in own.items() if name in weights}
    tied = find_aliases(common)
    ranks.together(lambda: _check(own, common, tied, weights, where))
    targets = {name: tensor for name, tensor in common.items() if name not in tied}
    weights.fill(targets, ranks)
    fresh = [name for name in own if name not in weights]
    unused = [name for name in weights if name not in own]
    return (
        f"{where}: {len(common)} tensors loaded; newly initialised: {some(fresh)}; not used: "
        f"{some(unused)}"
    )


def _check(
    own: Mapping[str, Tensor],
    common: Mapping[str, Tensor],
    tied: Mapping[str, str],
    weights: StoredTensors,
    where: str,
) -> None:
    if not common:
        raise CheckpointError(
            f"{where}: none of its {len(weights)} tensors has a name in the network "
            f"({', '.join(list(own)[:3])}, ...)."
        )
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in common.items()}
    differing = [name for name, kind in kinds.items() if kind != weights.kind(name)]
    if differing:
        shown = "; ".join(
            f"{name}: {_kind(weights.kind(name))}, the network's is {_kind(kinds[name])}"
            for name in differing[:5]
        )
        raise CheckpointError(
            f"{where}: {len(differing)} tensors do not fit: {shown}. Make the network's parts "
            "equal, or rename those that differ."
        )
    for alias, name in tied.items():
        if not weights.are_one(alias, name) and not same_bits(weights[alias], weights[name]):
            raise CheckpointError(
                f"{where}: {alias} is tied to {name} in the network, and there they differ. Untie "
                "them, or leave one of them out."
            )


def _kind(kind: tuple[object, tuple[int, ...]]) -> str:
    return f"{kind[0]} {kind[1]}"
