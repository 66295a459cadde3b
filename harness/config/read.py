"""A run's config: read from YAML with overrides, checked as a whole, written back resolved.

Reading checks everything at once: the text (document.py), what files and overrides say together
(reading.py), keys and values (schema.py), and that each component's target exists and takes its
arguments (components.py), which imports the module of the target.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness import components
from harness.components import TARGET, without_stage
from harness.config import reading as config_reading
from harness.config.document import to_yaml
from harness.config.mistakes import explain
from harness.config.reading import Reading, raise_all
from harness.config.schema import Config
from harness.errors import ConfigError
from harness.stopping.settings import StopSettings
from harness.wording import Keys, dotted

_SPLITS = ("train", "val", "test")


# Arguments that the harness passes itself
_GIVEN = {"network": (), "task": (), "optimizer": ("params",), "schedule": ("optimizer",)}


_OF_STOP = re.compile(r"\s*stop\s*[.=]")


def read_config(
    path: Path, overrides: Sequence[str] = (), *, allow: Sequence[str] | None = None
) -> Config:
    """A config file over its bases, with `key=value` overrides.

    Raises ConfigError with all mistakes at once.

    allow: for somebody else's config, such as a checkpoint's: components outside of
    components.ALLOWED and these prefixes are refused, before anything of theirs is imported. None:
    the config is the user's own.
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
        # What is no component the schema has said
        if isinstance(spec, Mapping) and TARGET in spec and not reading.mistaken(keys):
            _check_component(reading, keys, spec, given, allow)
    raise_all(reading.mistakes)
    assert config is not None
    return config


class _StopAlone(BaseModel):
    model_config = ConfigDict(extra="ignore")

    stop: StopSettings


def read_stop(path: Path, overrides: Sequence[str] = ()) -> StopSettings:
    """The stop section of a config alone, without torch.

    Raises ConfigError, also for overrides of anything else: they would have no effect.
    """
    reading = config_reading.read(path, [text for text in overrides if _OF_STOP.match(text)])
    for text in overrides:
        if not _OF_STOP.match(text):
            reading.mistakes.append(
                config_reading.Mistake(
                    f"override {text}",
                    (),
                    "only stop.* has an effect here. Leave it out, or mend the key.",
                )
            )
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
    """A YAML text that `read_config` reads as an equal config from any place: no base, no
    interpolation, defaults written out.
    """
    header = (
        f"# The resolved config of a run of fermarsi {_own_version()}; it can be launched again as "
        "it is.\n"
    )
    return header + to_yaml(_plain(config.model_dump(by_alias=True)))


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
                yield (
                    ("data", name, "treatments", index),
                    without_stage(spec) if isinstance(spec, Mapping) else spec,
                    (),
                )


def _check_component(
    reading: Reading,
    keys: Keys,
    spec: Mapping[str, Any],
    given: Collection[str],
    allow: Sequence[str] | None,
) -> None:
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
    """What YAML can hold.

    What is off or empty is left out, but for arguments of components, where null is a value.
    """
    if isinstance(value, Mapping):
        if TARGET in value:
            return _plain_argument(value)
        plain = {key: _plain(item) for key, item in value.items()}
        return {key: item for key, item in plain.items() if item not in (None, {}, [])}
    return (
        [_plain(item) for item in value]
        if isinstance(value, list | tuple)
        else _plain_argument(value)
    )


def _plain_argument(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_argument(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_argument(item) for item in value]
    text = str(value) if isinstance(value, Path) else value
    # OmegaConf would resolve ${ again: it is written \${, and backslashes before it twice
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text) if isinstance(text, str) else text


def _own_version() -> str:
    try:
        return version("fermarsi")
    except PackageNotFoundError:  # run from a bare checkout
        return "(not installed)"
