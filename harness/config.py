"""A run's config: read from YAML with overrides, checked as a whole, written back resolved.

Reading checks everything at once: the text (yaml_document.py), what files and overrides say together (config_reading.py), keys and values
(schema.py), and that each component's target exists and takes its arguments (components.py), which imports the module of the target.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness import components, config_reading
from harness.components import TARGET, Keys, dotted, without_stage
from harness.config_mistakes import explain
from harness.config_reading import Reading, raise_all
from harness.data_settings import SplitConfig
from harness.errors import ConfigError
from harness.schema import Config, PartConfig
from harness.stop_settings import StopSettings
from harness.tracking_settings import WandbConfig
from harness.yaml_document import to_yaml

__all__ = [
    "Config",
    "PartConfig",
    "SplitConfig",
    "WandbConfig",
    "config_hashes",
    "describe",
    "identity_changes",
    "rate_changes",
    "read_config",
    "read_stop",
    "resolved_yaml",
]

_SPLITS = ("train", "val", "test")
_GIVEN = {"network": (), "task": (), "optimizer": ("params",), "schedule": ("optimizer",)}  # arguments that the harness passes itself
_ABSENT = object()
_OF_STOP = re.compile(r"\s*stop\s*[.=]")


def read_config(path: Path, overrides: Sequence[str] = (), *, allow: Sequence[str] | None = None) -> Config:
    """A config file over its bases, with `key=value` overrides. Raises ConfigError with all mistakes at once.

    allow: for somebody else's config, such as a checkpoint's: components outside of components.ALLOWED and these prefixes are refused, before
    anything of theirs is imported. None: the config is the user's own.
    """
    reading = config_reading.read(path, overrides)
    _name_run(reading)
    reading.interpolate()
    config = None
    try:
        config = Config.model_validate(reading.tree)
    except ValidationError as error:
        explain(error, reading)
    for keys, spec, given in _components(reading.tree):
        if isinstance(spec, Mapping) and TARGET in spec and not reading.mistaken(keys):  # what is no component the schema has said
            _check_component(reading, keys, spec, given, allow)
    raise_all(reading.mistakes)
    assert config is not None
    return config


class _StopAlone(BaseModel):
    model_config = ConfigDict(extra="ignore")

    stop: StopSettings


def read_stop(path: Path, overrides: Sequence[str] = ()) -> StopSettings:
    """The stop section of a config alone, without torch. Raises ConfigError, also for overrides of anything else: they would have no effect."""
    reading = config_reading.read(path, [text for text in overrides if _OF_STOP.match(text)])
    for text in overrides:
        if not _OF_STOP.match(text):
            reading.mistakes.append(config_reading.Mistake(f"override {text}", (), "only stop.* has an effect here. Leave it out, or mend the key."))
    reading.interpolate(["stop"])
    settings = None
    try:
        settings = _StopAlone.model_validate(reading.tree).stop
    except ValidationError as error:
        explain(error, reading)
    raise_all(reading.mistakes)
    assert settings is not None
    return settings


def describe(path: Path, overrides: Sequence[str] = ()) -> str:
    """The resolved config as YAML. Raises ConfigError with all mistakes at once."""
    return resolved_yaml(read_config(path, overrides))


def resolved_yaml(config: Config) -> str:
    """A YAML text that `read_config` reads as an equal config from any place: no base, no interpolation, defaults written out."""
    header = f"# The resolved config of a run of fermarsi {_own_version()}; it can be launched again as it is.\n"
    return header + to_yaml(_plain(config.model_dump(by_alias=True)))


def identity_changes(before: Config, now: Config) -> list[str]:
    """What differs in the keys that identify a run, as "key: before -> now"; everything else may change between launches."""
    old, new = dict(_identity(before)), dict(_identity(now))
    return [
        f"{dotted(keys)}: {_shown(old.get(keys, _ABSENT))} -> {_shown(new.get(keys, _ABSENT))}"
        for keys in [*old, *(keys for keys in new if keys not in old)]
        if _differ(old.get(keys, _ABSENT), new.get(keys, _ABSENT))
    ]


def rate_changes(before: Config, now: Config) -> list[str]:
    """The keys that differ among those that decide the rates at which groups of parameters begin to learn, and which groups there are."""
    old, new = dict(_rates(before)), dict(_rates(now))
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def config_hashes(config: Config) -> dict[str, str]:
    """SHA-256 of what identifies the run, of what decides its course (optimizer, schedule, stop), and of the rest, for a checkpoint's manifest."""
    dump = _plain(config.model_dump(by_alias=True))
    course = {name: dump.pop(name) for name in ("optimizer", "schedule", "train", "stop") if name in dump}
    for path, part in dump.get("parts", {}).items():
        part.pop("freeze", None)  # of the identity
        course |= {f"parts.{path}.{option}": part.pop(option) for option in ("lr", "weight_decay") if option in part}
    identity = [[dotted(keys), value] for keys, value in _identity(config)]
    for name in ("network", "task", "batch"):
        dump.pop(name)
    kinds = {"identity": identity, "course": course, "runtime": dump}
    return {kind: hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest() for kind, value in kinds.items()}


def _name_run(reading: Reading) -> None:
    """Name the run by its config file, and its directory by the run, where they are not given."""
    run = reading.tree.setdefault("run", {})
    if run is None:
        run = reading.tree["run"] = {}
    if isinstance(run, dict):
        if run.get("name") is None:
            run["name"] = reading.path.stem
        if run.get("dir") is None:
            run["dir"] = f"runs/{run['name']}"


def _components(tree: Mapping[str, Any]) -> Iterator[tuple[Keys, Any, Collection[str]]]:
    """Each component of a config with its keys and what the harness gives it."""
    for name, given in _GIVEN.items():
        yield (name,), tree.get(name), given
    data = tree.get("data")
    splits = data if isinstance(data, Mapping) else {}
    for name in _SPLITS:
        split = splits.get(name)
        if isinstance(split, Mapping):
            yield ("data", name, "source"), split.get("source"), ()
            treatments = split.get("treatments")
            for index, spec in enumerate(treatments if isinstance(treatments, list) else []):
                yield ("data", name, "treatments", index), without_stage(spec) if isinstance(spec, Mapping) else spec, ()


def _check_component(reading: Reading, keys: Keys, spec: Mapping[str, Any], given: Collection[str], allow: Sequence[str] | None) -> None:
    if allow is not None:
        try:
            components.allowed(spec, dotted(keys), allow)
        except ConfigError as error:
            reading.mistakes.append(config_reading.Mistake(reading.place(keys), (), str(error)))
            return
    for inside, message in components.find_problems(spec, given):
        if not reading.mistaken((*keys, *inside)):
            reading.add((*keys, *inside), message)


def _plain(value: Any) -> Any:
    """What YAML can hold. What is off or empty is left out, but for arguments of components, where null is a value."""
    if isinstance(value, Mapping):
        if TARGET in value:
            return _plain_argument(value)
        plain = {key: _plain(item) for key, item in value.items()}
        return {key: item for key, item in plain.items() if item not in (None, {}, [])}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else _plain_argument(value)


def _plain_argument(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_argument(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_argument(item) for item in value]
    text = str(value) if isinstance(value, Path) else value
    # OmegaConf would resolve ${ again: it is written \${, and backslashes before it twice
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text) if isinstance(text, str) else text


def _identity(config: Config) -> Iterator[tuple[Keys, Any]]:
    """Keys and values, down to the last, of what identifies a run."""
    dump = config.model_dump(by_alias=True)
    yield from _leaves({name: dump["run"][name] for name in ("seed", "exactness")}, ("run",))
    yield from _leaves({name: dump["data"][name] for name in ("train", "val")}, ("data",))
    yield from _leaves({name: dump[name] for name in ("network", "task", "batch")}, ())
    yield from _leaves({TARGET: dump["optimizer"][TARGET]}, ("optimizer",))
    frozen = [path for path, part in config.parts.items() if part.freeze]
    for path, part in config.parts.items():  # one that is not frozen says something only inside of a frozen one
        if part.freeze or (part.freeze is False and any(path.startswith(f"{other}.") for other in frozen)):
            yield ("parts", path, "freeze"), part.freeze


def _rates(config: Config) -> Iterator[tuple[str, Any]]:
    yield "optimizer.lr", config.optimizer.get("lr")
    for path, part in config.parts.items():
        if part.lr is not None:
            yield f"parts.{path}.lr", part.lr
        if part.weight_decay is not None:
            yield f"parts.{path}.weight_decay", True  # whatever it is, it makes a group


def _leaves(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*keys, key))
    elif isinstance(value, list | tuple) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, (*keys, index))
    else:
        yield keys, value.replace(":", ".") if keys[-1] == TARGET else value


def _differ(before: Any, now: Any) -> bool:
    return bool(before != now and (before == before or now == now))  # NaN is the same as NaN


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)


def _own_version() -> str:
    try:
        return version("fermarsi")
    except PackageNotFoundError:  # run from a bare checkout
        return "(not installed)"
