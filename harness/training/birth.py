"""How a network comes to be that ranks will share: rank 0 builds it in the memory of its host, the
others without memory for parameters (on torch's meta device); then its blocks are given to all, one
after the other, each of which is cut into rows before the next.

The others draw all random numbers that rank 0 draws, and what they built is compared with what it
built: where anything differs but values of parameters and buffers, each builds all of it.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from harness.config.parallel import num_replicas_of
from harness.config.schema import Config
from harness.errors import ConfigError
from harness.randomness import capture_random, generators_of, seed_ambient, seed_for
from harness.ranks.ranks import Ranks
from harness.ranks.rows import is_sharded
from harness.training.network_state import attributes_of
from harness.training.on_file import (
    Conversions,
    FileValues,
    deferring,
    is_mapped,
    reads_pretrained,
    values_on_file,
)
from harness.training.parts import twins_of
from harness.training.pretrained import Parts, build_network
from harness.wording import first_line, some

# Of torch.nn.init, what draws nothing for a tensor without memory (torch 2.15)
_PASSED_OVER = ("_no_grad_trunc_normal_", "orthogonal_", "sparse_")

Files = Callable[[], AbstractContextManager[Conversions | None]]


@dataclass(frozen=True)
class Birth:
    """A network before its training, and how its pretrained parts are built without their weights.

    is_spread: whether rank 0 alone has its parameters, on the CPU; on_file: those that no rank has,
    but can read; note: what a user is told.
    """

    network: nn.Module
    kept_parts: Parts
    is_spread: bool = False
    note: str = ""
    on_file: Mapping[nn.Parameter, FileValues] = field(default_factory=dict)


def build_whole(config: Config, kept: Parts) -> Birth:
    """All of it in this process. `kept`: of the checkpoint that the run goes on from. Raises
    ConfigError.
    """
    seed_ambient(seed_for(config.run.seed, "network"))
    return Birth(*build_network(config.network, kept))


def outline(config: Config) -> Birth:
    """The network without memory for its parameters, on the meta device, where its construction
    does without their values; else it had them for a moment. Raises ConfigError.
    """
    try:
        with _without_memory(drawing=False), deferring():
            network = build_whole(config, {}).network
    except ConfigError:
        network = build_whole(config, {}).network
    for one in network.parameters():
        if not one.is_meta:
            _swap(one, torch.empty_like(one, device="meta"))
    return Birth(network, {}, is_spread=True)


def build_shared(config: Config, kept: Parts, ranks: Ranks) -> Birth:
    """The network as `parallel.kind` asks for it, with the same bits in any case. Called by every
    rank. Raises ConfigError.
    """
    if config.parallel.kind == "ddp" or ranks.size == 1:
        return ranks.together(lambda: build_whole(config, kept))

    ways: list[Files] = [nullcontext]
    if reads_pretrained(config.network):
        ways.insert(0, deferring)
    for files in ways:
        born, obstacle, found = ranks.together(partial(_attempt, config, kept, ranks, files))
        reasons = _reasons(born, obstacle, ranks)
        if not reasons:
            assert born is not None
            # Of machines with other numbers of processes each would find another one
            replicas = ranks.decide(
                lambda: num_replicas_of(config.parallel, ranks.size, os.environ)
            )
            on_file = _agreed(born.network, found, ranks, ranks.size // replicas)
            return Birth(born.network, born.kept_parts, True, _note(on_file), on_file)
    whole = ranks.together(lambda: born if born and ranks.is_first() else build_whole(config, kept))
    note = (
        "each process builds the whole network before it keeps its rows, because it cannot be "
        f"built without values ({reasons[0]})"
    )
    return Birth(whole.network, whole.kept_parts, note=note)


def _attempt(
    config: Config, kept: Parts, ranks: Ranks, files: Files
) -> tuple[Birth | None, str, dict[str, FileValues]]:
    """(the network, why it cannot be given to other ranks, what of it is on file); none where it
    cannot be built so.
    """
    try:
        with nullcontext() if ranks.is_first() else _without_memory(), files() as conversions:
            born = build_whole(config, kept)
        found = values_on_file(born.network, conversions) if conversions else {}
        obstacle = conversions.obstacle if conversions else ""
        if ranks.is_first():
            obstacle = obstacle or _obstacle(born.network, found)
        return born, obstacle, found
    except Exception as error:  # whatever a constructor raises without values
        if ranks.is_first() and files is nullcontext:
            raise
        return None, f"{type(error).__name__}: {first_line(error)}", {}


def _reasons(born: Birth | None, obstacle: str, ranks: Ranks) -> list[str]:
    """Why what ranks built cannot be one network, of all ranks. Called by every rank."""
    facts = ranks.together(lambda: facts_of(born.network) if born else {})
    wanted: Mapping[str, str] = ranks.decide(lambda: facts)
    names = sorted(name for name in {*wanted, *facts} if wanted.get(name) != facts.get(name))
    if names and not obstacle:
        obstacle = f"{some(names)} would differ"
    return [one for one in ranks.gather(obstacle) if one]


def _agreed(
    network: nn.Module, found: Mapping[str, FileValues], ranks: Ranks, num_shards: int
) -> dict[nn.Parameter, FileValues]:
    """The parameters of which every rank can read the values that rank 0 would; rank 0 reads the
    others. Called by every rank.
    """
    same = _same_values(found, ranks, num_shards)
    agreed: dict[nn.Parameter, FileValues] = {}
    for name, values in found.items():
        parameter = network.get_parameter(name)
        if name in same:
            agreed[parameter] = values
        elif ranks.is_first() and parameter.is_meta:
            _swap(parameter, values.tensor.to(parameter.dtype))
    return agreed


def _same_values(found: Mapping[str, FileValues], ranks: Ranks, num_shards: int) -> Collection[str]:
    """The names of what has the same values in the files of all ranks, by hashes of all of them:
    the ranks that read rank 0's files share the work there, others hash the rows that they read.
    Called by every rank.
    """
    files = {name: [one.file, *_kind(one.tensor)] for name, one in found.items()}
    everyone = ranks.gather(files)
    wanted = everyone[0]
    names = [
        name
        for name, (_, *kind) in wanted.items()
        if all(kind == one.get(name, [0])[1:] for one in everyone)
    ]
    beside = [rank for rank, one in enumerate(everyone) if one == wanted]
    if len(beside) == ranks.size:
        return names

    def hash_own() -> list[tuple[int, list[str]]]:
        indices: Iterable[int] = [ranks.rank % num_shards]
        if ranks.rank in beside:
            indices = range(num_shards)[beside.index(ranks.rank) :: len(beside)]
        return [
            (one, [found[name].digest_of(one, num_shards) for name in names]) for one in indices
        ]

    hashed = ranks.gather(ranks.together(hash_own))
    of_first = {index: digests for rank in beside for index, digests in hashed[rank]}
    differing = {
        name
        for rank_hashes in hashed
        for index, digests in rank_hashes
        for name, mine, other in zip(names, digests, of_first[index], strict=True)
        if mine != other
    }
    return {*names} - differing


def _note(on_file: Mapping[nn.Parameter, FileValues]) -> str:
    note = "rank 0 builds the network on its host, and the others get their rows block by block"
    read = (
        f", except for {len(on_file)} parameters of which each reads its rows from pretrained files"
    )
    return note + (read if on_file else "")


def spread(
    unit: nn.Module,
    ranks: Ranks,
    device: torch.device,
    on_file: Mapping[nn.Parameter, FileValues],
    num_shards: int,
) -> None:
    """Give a module's parameters that are not shared yet memory on the device, and rank 0's values;
    of those on file, the values of this rank's rows alone. Called by every rank.
    """
    for parameter in unit.parameters():
        if is_sharded(parameter):
            continue
        if parameter in on_file:
            values = torch.empty_like(parameter, device=device)
            rows, own = on_file[parameter].rows_of(ranks.rank % num_shards, num_shards)
            values[rows].copy_(own)
            _swap(parameter, values)
            continue
        if parameter.is_meta:
            _swap(parameter, torch.empty_like(parameter, device=device))
        else:
            _swap(parameter, parameter.detach().to(device))
        if ranks.size > 1 and parameter.numel():
            ranks.broadcast_from(0, parameter.detach().reshape(-1).view(torch.uint8))


def facts_of(network: nn.Module) -> dict[str, str]:
    """A digest of each thing that a constructor decides, but for the values of parameters and
    buffers, and of the generators after it.
    """
    facts: dict[str, Any] = {}
    for name, twins in twins_of(network).items():
        one = network.get_parameter(name)
        facts[name] = [twins, type(one).__name__, one.requires_grad, *_kind(one)]
    facts |= {name: ["buffer", *_kind(one)] for name, one in network.named_buffers()}
    facts |= {f"{name}.{key}": value for (name, key), value in attributes_of(network).items()}
    facts |= {name: [type(one).__qualname__] for name, one in network.named_modules()}
    random = capture_random(generators_of(network=network))
    facts |= {f"the random state {name}": state for name, state in random.items()}
    return {name.lstrip("."): _digest(value) for name, value in facts.items()}


def _kind(tensor: Tensor) -> list[str]:
    if is_lazy(tensor):
        return ["lazy"]
    return [str(tuple(tensor.shape)), str(tensor.stride()), str(tensor.dtype)]


def _digest(value: Any) -> str:
    """Of plain values, tensors and arrays, and collections of these; the same in any process."""
    return hashlib.sha256(_octets(value)).hexdigest()[:16]


def _octets(value: Any) -> bytes:
    if isinstance(value, Tensor):
        kind = f"{value.device.type} {_kind(value)} ".encode()
        if value.is_meta:
            return kind
        return kind + value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes()
    if isinstance(value, Mapping):
        value = [[key, one] for key, one in value.items()]
    if isinstance(value, set):
        value = sorted(value, key=repr)
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return f"{type(value).__name__} {value!r}".encode()
    return b"[%s]" % b",".join(map(_octets, value))


def _obstacle(network: nn.Module, on_file: Collection[str]) -> str:
    """Why its parameters cannot be given to other ranks as they are; "" if they can."""
    for name, one in network.named_parameters():
        if is_lazy(one) or (one.is_meta and name not in on_file):
            return f"{name} has no {'shape' if is_lazy(one) else 'values'} yet"
        if not one.is_contiguous():
            return f"{name} is not contiguous in memory"
    return ""


@contextmanager
def _without_memory(drawing: bool = True) -> Iterator[None]:
    """Inside, parameters lose their memory when modules register them; what else is made, such as
    buffers and tensors on the way, is as ever.

    drawing: whether their random numbers are drawn all the same.
    """
    register = nn.Module.register_parameter
    draws = _Draws()

    def registered(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        # Not classes of their own, whose data may be more than values
        if type(param) is nn.Parameter and not param.is_meta and not is_mapped(param):
            _swap(param, draws.owned(torch.empty_like(param, device="meta")))

    def filled(fill: Any, tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        fill(draws.with_memory(tensor), *args, **options)
        return tensor

    initialisers = {name: getattr(nn.init, name) for name in _PASSED_OVER}
    setattr(nn.Module, "register_parameter", registered)  # noqa: B010 - mypy lets no method be set
    if drawing:
        vars(nn.init).update({name: partial(filled, one) for name, one in initialisers.items()})
    try:
        with draws if drawing else nullcontext():
            yield
    finally:
        vars(nn.init).update(initialisers)
        setattr(nn.Module, "register_parameter", register)  # noqa: B010 - as above


def _swap(parameter: nn.Parameter, values: Tensor) -> None:
    """Other memory for a parameter, on any device, in all modules that have it."""
    fresh = type(parameter)(values, parameter.requires_grad)
    vars(fresh).update(vars(parameter))
    torch.utils.swap_tensors(parameter, fresh)  # type: ignore[no-untyped-call] # torch's


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    """Inside, random numbers are drawn also for tensors that lost their memory, and what was made
    of them, and thrown away, so that generators go on as if it were there.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self._owned: WeakSet[Any] = WeakSet()

    def owned(self, tensor: Tensor) -> Tensor:
        """A tensor that lost its memory."""
        self._owned.add(tensor.untyped_storage())
        return tensor

    def with_memory(self, value: Any) -> Any:
        """In place of such a tensor one with zeros; anything else as it is."""
        return torch.zeros_like(value, device="cpu") if self._is_owned(value) else value

    def _is_owned(self, value: object) -> bool:
        # A constructor's own tensors on the meta device draw nothing on rank 0 either
        return (
            isinstance(value, Tensor) and value.is_meta and value.untyped_storage() in self._owned
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if not any(map(self._is_owned, tree_leaves((args, given)))):
            return func(*args, **given)
        if torch.Tag.nondeterministic_seeded in func.tags:
            real_args, real_given = tree_map(self.with_memory, (args, dict(given)))
            func(*real_args, **real_given)
            given = {key: one for key, one in given.items() if key != "generator"}
        made = func(*args, **given)
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and one.is_meta:
                self.owned(one)
        return made
