"""A config made in Python: sections as mappings, components as classes or objects."""

import copyreg
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from harness import components
from harness.components import SOURCE, TARGET
from harness.config.document import to_yaml
from harness.config.read import read_config
from harness.config.reading import PYTHON
from harness.config.schema import Config as ReadConfig
from harness.data.code import is_of_user
from harness.data.notebook import MAIN, digest_of, is_of_main
from harness.errors import ConfigError
from harness.objects import TAKE, Objects, present
from harness.wording import Keys, dotted

Overrides = Mapping[str, Any] | Sequence[str]
Section = Mapping[str, Any]
Component = Mapping[str, Any] | type | Callable[..., Any] | object

_COMPONENTS = ("network", "task", "optimizer", "schedule")
_NEAR = 4  # levels, of which each object takes two, for itself and its __dict__
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Config:
    """Everything that describes a run, section by section, as in YAML (docs/config.md).

    A component is `{"_target_": Class, ...}` with its arguments, or with the dotted path as in
    YAML; a class alone, which is called without arguments; or an object: a network, a source. What
    is defined in a notebook, and objects, train in this process alone; they are known in
    config.yaml by name and a digest of their code, and a run goes on only with the same. An object
    stays as it is: a copy of a network is trained.

    base: a YAML config that the sections are merged over. Raises ConfigError for a class that
    config.yaml cannot name.
    """

    def __init__(
        self,
        *,
        base: str | PathLike[str] | None = None,
        run: Section | None = None,
        data: Section | None = None,
        network: Component | None = None,
        parts: Section | None = None,
        task: Component | None = None,
        batch: Section | None = None,
        optimizer: Component | None = None,
        schedule: Component | None = None,
        train: Section | None = None,
        stop: Section | None = None,
        checkpoint: Section | None = None,
        evaluation: Section | None = None,
        interrupt: Section | None = None,
        log: Section | None = None,
        tracking: Section | None = None,
    ) -> None:
        sections = dict(locals())
        self.base = None if base is None else Path(base)
        self.objects = Objects()
        self.tree: dict[str, Any] = {
            name: plain(value, (name,), self.objects)
            for name, value in sections.items()
            if name not in ("self", "base") and value is not None
        }
        if base is None:
            self.tree["run"] = {"name": "run", **self.tree.get("run", {})}

    def read(self, overrides: Overrides = ()) -> ReadConfig:
        """Checked as a whole. Raises ConfigError with all mistakes at once."""
        return read_config(self.base or PYTHON, texts(overrides, self.objects), over=self.tree)

    def require_importable(self, why: str) -> None:
        """Raise ConfigError if only this process has some of it."""
        main = [spec for spec in components.components_in(self.tree) if SOURCE in spec]
        mine = [*(at for at, *_ in self.objects), *(str(spec[TARGET]) for spec in main)]
        if mine:
            raise ConfigError(
                f"{', '.join(mine)}: {why}, and only this process has what is an object or defined "
                "in a notebook or script. Put the class into a module, and give it with its "
                'arguments: {"_target_": my_module.Net, "width": 64}.'
            )


def plain(value: Any, keys: Keys, objects: Objects) -> Any:
    """A value as YAML could hold it; what it could not goes to `objects`, by its keys. Raises
    ConfigError for one that contains itself, or is nested too deeply.
    """
    try:
        return _plain(value, keys, objects)
    except RecursionError as error:
        raise ConfigError(
            f"{dotted(keys)}: it contains itself, or is nested too deeply for a config. Give it in "
            "an object of your own."
        ) from error


def _plain(value: Any, keys: Keys, objects: Objects) -> Any:
    if isinstance(value, Mapping):
        found = {name: _plain(item, (*keys, name), objects) for name, item in value.items()}
        target = value.get(TARGET)
        return {**found, **_named(target, keys)} if callable(target) else found
    if isinstance(value, list | tuple):
        return [_plain(item, (*keys, index), objects) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PathLike):
        return str(value)
    if keys[-1] == TARGET:
        return None  # see above
    if _is_component(keys) and isinstance(value, type | FunctionType):
        return _named(value, keys)
    kind = value if isinstance(value, type) else type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    key = (dotted(keys), name, _source_of(value, kind), _state_of(value))
    objects[key] = value
    return {TARGET: TAKE, **dict(zip(("at", "name", "source", "state"), key, strict=True))}


def texts(overrides: Overrides, objects: Objects) -> list[str]:
    """Overrides as `key=value`."""
    if not isinstance(overrides, Mapping):
        return [overrides] if isinstance(overrides, str) else list(overrides)
    values = {key: plain(value, tuple(key.split(".")), objects) for key, value in overrides.items()}
    return [f"{key}={to_yaml(value, flow=True)}" for key, value in values.items()]


def source_of_config(
    config: "str | PathLike[str] | Config", overrides: Overrides
) -> tuple[Callable[[], ReadConfig], Objects]:
    """How a config is read, and the objects that it names."""
    if isinstance(config, Config):
        return lambda: config.read(overrides), config.objects
    path, objects = Path(config), Objects()
    changes = texts(overrides, objects)
    return lambda: read_config(path, changes), objects


def reading(config: "str | PathLike[str] | Config", overrides: Overrides) -> ReadConfig:
    """The config, checked. Raises ConfigError."""
    read, objects = source_of_config(config, overrides)
    with present(objects):
        return read()


def _is_component(keys: Keys) -> bool:
    """Whether a component stands there, so that a class means what it makes."""
    if keys[0] == "data":
        return keys[-1] == "source" or keys[-2] == "treatments"
    return len(keys) == 1 and keys[0] in _COMPONENTS


def _named(target: Any, keys: Keys) -> dict[str, Any]:
    """The component of a class or function. Raises ConfigError if no path leads to it."""
    module, name = str(target.__module__), str(getattr(target, "__qualname__", ""))
    names = module.split(".")
    for count in range(1, len(names) + 1):
        path = ".".join([*names[:count], name])
        try:
            if components.find(path) is target:
                own = {SOURCE: digest_of(target)} if is_of_main(target) else {}
                return {TARGET: path, **own}
        except ConfigError:
            continue
    raise ConfigError(
        f"{dotted(keys)}: {module}.{name} leads to nothing, or to another class. Define the class "
        "at the top of a module or in a cell, not inside of a function; run the cell again that "
        "makes the config if the class has changed since."
    )


def _source_of(value: Any, kind: Any) -> str:
    """A digest of the code of an object's class, and of those of the modules in a network."""
    kinds = {type(one) for one in value.modules()} if hasattr(value, "modules") else {kind}
    found = sorted((f"{one.__module__}.{one.__qualname__}", digest_of(one)) for one in kinds)
    return _digest([one for one in found if one[1]])


def _state_of(value: Any) -> str:
    """A digest of what tells an object from another of its class: of a network the structure, whose
    weights change, of others what they hold.
    """
    if hasattr(value, "state_dict") and hasattr(value, "modules"):
        shapes = [
            [name, str(one.dtype), list(one.shape)] for name, one in value.state_dict().items()
        ]
        return _digest([_ADDRESS.sub("", repr(value)), shapes])
    try:
        return _digest(_held(value))
    except RecursionError as error:
        raise ConfigError(
            f"{type(value).__qualname__}: what it holds is nested too deeply to be told from "
            "another. Give a class and its arguments instead of the object."
        ) from error


def _held(value: Any, within: tuple[int, ...] = ()) -> Any:
    """What a value holds, as JSON. `within`: the objects that lead to it, of which one that holds
    itself is told by its distance; those of libraries hold much that a process has for itself, and
    count by their text from the fifth on.
    """
    if id(value) in within:
        return ["within", len(within) - within.index(id(value))]
    within = (*within, id(value))
    kind = str(getattr(value, "dtype", ""))
    if hasattr(value, "detach"):
        value = value.detach().cpu().to_dense()
        if kind.startswith(("torch.bfloat16", "torch.float8")):  # which NumPy has not
            value = value.float()
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        # Of a frame
        labels = [_held(getattr(value, name, ()), within) for name in ("columns", "index")]
        array = np.asarray(value)
        if array.dtype == object and array.shape:
            return [labels, list(array.shape), [_held(one, within) for one in array.ravel()]]
        if array.dtype != object:
            found = hashlib.sha256(array.tobytes()).hexdigest()
            return [labels, kind or str(array.dtype), list(array.shape), found]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_held(item, within)) for item in value)
    if isinstance(value, Mapping):
        return [[str(name), _held(item, within)] for name, item in value.items()]
    if isinstance(value, list | tuple):
        return [_held(item, within) for item in value]
    own = not isinstance(value, type) and _is_of_user(type(value).__module__.partition(".")[0])
    if hasattr(value, "__dict__") and not isinstance(value, type) and (own or len(within) <= _NEAR):
        return [type(value).__qualname__, _held(vars(value), within)]
    if own and (slots := copyreg._slotnames(type(value))):  # type: ignore[attr-defined]  # as pickle
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        return [type(value).__qualname__, _held(held, within)]
    return _ADDRESS.sub("", repr(value))


@cache
def _is_of_user(top: str) -> bool:
    return top == MAIN or is_of_user(top)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
