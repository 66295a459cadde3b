"""Random numbers by purpose: each is a function of the run's seed and of what it is for, never of
what was drawn before.

Before each forward pass the ambient generators (Python, NumPy, torch on every device) are seeded by
(seed, step, slot), so that dropout and any randomness inside a network are the same on any number
of ranks and after any interruption.
"""

import functools
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.errors import CheckpointError

Generator = torch.Generator | np.random.Generator | random.Random
_GENERATORS = (torch.Generator, np.random.Generator, random.Random)
_OPAQUE = (type, torch.Tensor, np.ndarray, ModuleType, FunctionType, MethodType)
_DEEPEST, _WIDEST = 12, 1000  # how far inside of objects generators are looked for


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for a purpose, e.g. `seed_for(7, "forward", step, slot)`."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_ambient(seed: int) -> None:
    """Seed the generators that code uses without naming one: Python's, NumPy's and torch's on every
    device.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    seed_torch(seed)


class Boundary:
    """Between two steps the ambient generators are those of (seed, step), the same on every rank.

    late: nothing but what asks by `settle` looks at them before they are seeded anew, so that most
    steps need not seed them here.
    """

    def __init__(self, *, late: bool) -> None:
        self._late = late
        self._place: tuple[int, int] | None = None

    def reach(self, seed: int, step: int) -> None:
        """The last passes of a step are over."""
        self._place = seed, step
        if not self._late:
            self.settle()

    def settle(self) -> None:
        """Somebody looks at the generators now."""
        if self._place is not None:
            seed, step = self._place
            self._place = None
            seed_ambient(seed_for(seed, "update", step))


def seed_torch(seed: int) -> None:
    """Seed torch's alone, for what draws from no other, in a third of the time."""
    # torch.manual_seed looks for every kind of device there is: 0.1 ms, a slot
    torch.default_generator.manual_seed(seed)
    module = accelerator_module()
    if module is not None:
        getattr(module, "manual_seed_all", module.manual_seed)(seed)


def seeding_for(network: nn.Module, task: object) -> Callable[[int], None]:
    """What to seed before a forward pass: torch's generators alone where it draws from no other, as
    far as can be known: of modules of torch's and ours without anything of a user's in them.
    """
    known = _is_ours(task) and all(
        type(module).__module__.startswith(("torch.nn.modules.", "harness.networks."))
        and not any(vars(module)[name] for name in _HOOKS)
        and all(name.startswith("_") or _is_inert(value) for name, value in vars(module).items())
        for owner in (network, *modules_of(task, "task").values())
        for module in owner.modules()
    )
    return seed_torch if known else seed_ambient


def draws_nothing(network: nn.Module, task: object) -> bool:
    """Whether an evaluation's forward passes draw from no ambient generator, as far as is known: of
    modules of torch's and ours, whose dropout is off then, without functions in them.
    """
    return (
        seeding_for(network, task) is seed_torch
        and not modules_of(task, "task")  # which nobody puts into evaluation mode
        and not _has_function(task)
        and not any(
            isinstance(module, _ALWAYS_RANDOM) or any(map(_has_function, vars(module).values()))
            for module in network.modules()
        )
    )


def _has_function(value: object) -> bool:
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return True
    inside: Iterable[object] = ()
    if isinstance(value, list | tuple):
        inside = value
    elif isinstance(value, Mapping):
        inside = value.values()
    elif type(value).__module__.startswith("harness.") and not isinstance(value, nn.Module):
        inside = vars(value).values()
    return any(map(_has_function, inside))


_ALWAYS_RANDOM = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_ours(value: object) -> bool:
    """Whether a task, or what it keeps, is ours through and through: a loss, or a head, may be a
    user's. Modules are looked at by themselves.
    """
    if isinstance(value, Mapping):
        return all(map(_is_ours, value.values()))
    if isinstance(value, nn.Module) or _is_inert(value):
        return True
    ours = type(value).__module__.startswith("harness.")
    return ours and all(map(_is_ours, vars(value).values()))


def _is_inert(value: object) -> bool:
    """Whether an attribute of a module draws from no generator but torch's: no object, and no
    function but torch's.
    """
    if isinstance(value, list | tuple):
        return all(map(_is_inert, value))
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return str(value.__module__).startswith("torch.")
    return value is None or isinstance(value, int | float | str | torch.dtype | torch.Tensor)


def accelerator_module() -> Any:
    """The module of the accelerator that this process uses, e.g. torch.cuda; None on the CPU.

    One that is there but not in use does not count: a training on the CPU starts no context on a
    GPU, and a loader's worker, which was forked before or must not use CUDA, none either.
    """
    module = _module_of_build()
    if module is None:
        return None
    begun = getattr(module, "is_initialized", module.is_available)
    return module if begun() else None


@functools.cache
def _module_of_build() -> Any:
    """Of the kind of accelerator that torch was built for."""
    accelerator = torch.accelerator.current_accelerator()
    return None if accelerator is None else torch.get_device_module(accelerator)


@contextmanager
def preserve_random() -> Iterator[None]:
    """Whatever is drawn inside leaves no trace in the ambient generators."""
    python, legacy = random.getstate(), np.random.get_state()
    cpu = torch.get_rng_state()
    module = accelerator_module()
    device = None if module is None else module.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)
        if module is not None:
            module.set_rng_state(device)


def generators_of(**owners: object) -> dict[str, Generator]:
    """The generators that objects keep, in attributes, collections and objects inside of them, by
    dotted name: saved and restored with the ambient ones.

    A network's are named as its modules are: the owner `network` gives no prefix.
    """
    found: dict[str, Generator] = {}
    for owner, value in owners.items():
        for name, leaf in leaves_of(value, owner):
            if isinstance(leaf, _GENERATORS):
                found[name.removeprefix("network.")] = leaf
    return found


def modules_of(owner: object, name: str) -> dict[str, nn.Module]:
    """The outermost modules that an object keeps, by dotted name."""
    return {path: leaf for path, leaf in leaves_of(owner, name) if isinstance(leaf, nn.Module)}


def leaves_of(value: object, name: str) -> Iterator[tuple[str, object]]:
    """Generators and outermost modules inside of an object, each once, by dotted name; inside of a
    module its generators.
    """
    yield from _leaves(value, name, set())


def _leaves(value: object, name: str, seen: set[int]) -> Iterator[tuple[str, object]]:
    if id(value) in seen or name.count(".") > _DEEPEST:
        return
    if isinstance(value, _GENERATORS):
        seen.add(id(value))
        yield name, value
        return
    inside: Iterable[tuple[Any, object]] = ()
    if isinstance(value, nn.Module):
        yield name, value
        inside = [
            (f"{path}.{attribute}".lstrip("."), one)
            for path, module in value.named_modules()
            for attribute, one in vars(module).items()
            if attribute not in ("_modules", "_parameters", "_buffers")
        ]
    elif isinstance(value, Mapping):
        inside = value.items()
    elif isinstance(value, list | tuple):
        inside = enumerate(value[:_WIDEST])
    elif hasattr(value, "__dict__") and not isinstance(value, _OPAQUE):
        inside = vars(value).items()
    seen.add(id(value))
    for key, item in inside:
        yield from _leaves(item, f"{name}.{key}", seen)


def capture_random(own: Mapping[str, Generator]) -> dict[str, torch.Tensor]:
    """The state of all generators as tensors: Python's, NumPy's (legacy), torch's on the CPU and on
    this process's device, and `own`. The host waits.
    """
    version, words, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    assert (version, legacy["bit_generator"]) == (3, "MT19937")
    state = {
        # 624 words and the position among them
        "python.words": torch.from_numpy(np.array(words, dtype=np.int64)),
        "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy.keys": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
        "numpy.position": torch.tensor(
            [legacy["state"]["pos"], legacy["has_gauss"]], dtype=torch.int64
        ),
        "numpy.gauss": torch.tensor([legacy["gauss"]], dtype=torch.float64),
        "torch.cpu": torch.get_rng_state(),
    }
    module = accelerator_module()
    if module is not None:
        state[_key(module)] = module.get_rng_state()
    return state | {f"own.{name}": _state_of(generator) for name, generator in own.items()}


def restore_random(state: Mapping[str, torch.Tensor], own: Mapping[str, Generator]) -> None:
    """The inverse of `capture_random`.

    Raises CheckpointError if a generator's state is missing or does not fit.
    """
    wanted = set(capture_random(own))
    if set(state) != wanted:
        raise CheckpointError(
            f"random state: holds {sorted(state)} where this process has {sorted(wanted)}. Resume "
            "on the kind of device that wrote the checkpoint."
        )
    try:
        gauss = state["python.gauss"].tolist()
        random.setstate((3, tuple(state["python.words"].tolist()), gauss[0] if gauss else None))
        position, has_gauss = state["numpy.position"].tolist()
        keys = state["numpy.keys"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, position, has_gauss, float(state["numpy.gauss"][0])))
        torch.set_rng_state(state["torch.cpu"])
        module = accelerator_module()
        if module is not None:
            module.set_rng_state(state[_key(module)])
        for name, generator in own.items():
            _restore(generator, state[f"own.{name}"])
    except (AttributeError, IndexError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"random state: cannot be restored: {error}. Resume from another checkpoint."
        ) from error


def _key(module: Any) -> str:
    """The name of a device's generator in a checkpoint, e.g. `torch.cuda`."""
    return str(module.__name__)


def _state_of(generator: Generator) -> torch.Tensor:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    kept = (
        generator.getstate()
        if isinstance(generator, random.Random)
        else generator.bit_generator.state
    )
    text = json.dumps(
        kept, default=lambda array: {"dtype": str(array.dtype), "values": array.tolist()}
    )
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _restore(generator: Generator, state: torch.Tensor) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
        return
    kept = json.loads(
        state.numpy().tobytes(),
        object_hook=lambda held: (
            np.array(held["values"], held["dtype"]) if "dtype" in held else held
        ),
    )
    if isinstance(generator, random.Random):
        version, words, gauss = kept
        generator.setstate((version, tuple(words), gauss))
    else:
        generator.bit_generator.state = kept
