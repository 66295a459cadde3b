"""A run's config: read from YAML with overrides, checked as a whole, written back resolved.

Reading checks everything at once: the text (document.py), what files and overrides say together
(reading.py), keys and values (schema.py), and that each component's target exists and takes its
arguments (components.py), which imports the module of the target.
"""

import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from harness import components
from harness.components import TARGET, without_stage
from harness.config import reading, trust
from harness.config.document import to_yaml
from harness.config.mistakes import explain
from harness.config.reading import Draft, raise_all
from harness.config.schedules import find_schedule_mistakes
from harness.config.schema import Config, RunConfig
from harness.config.stops import MetricsOf, misfits
from harness.data.notebook import find_change
from harness.data.settings import SPLITS
from harness.errors import ConfigError
from harness.hidden import Reference
from harness.tracking.settings import BACKEND_METHODS
from harness.wording import Keys, Mistake, dotted, own_version

# Arguments that the harness passes itself
_GIVEN = {"network": (), "task": (), "optimizer": ("params",), "schedule": ("optimizer",)}

M = TypeVar("M", bound=BaseModel)


def read_config(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    allow: Sequence[str] | None = None,
    network: Mapping[Keys, Any] | None = None,
    over: Mapping[Any, Any] | None = None,
    metrics_of: MetricsOf | None = None,
) -> Config:
    """A config file over its bases, with `key=value` overrides; `over` as in `reading.read`.

    Raises ConfigError with all mistakes at once.

    allow: for somebody else's config, such as a checkpoint's: components that trust.py does not
    allow and that are not under these prefixes are refused, before anything of theirs is imported,
    and trackers, which nothing makes of it, are not looked at; no other file is read for it and
    nothing is interpolated. None: the config is the user's own. network: other components for some
    of the network's, by the keys that lead to them. metrics_of: with it, what of the stop settings
    does not fit the metrics is told beside other mistakes; without any, whoever knows them tells.
    """
    draft = _read(path, overrides, stored=allow is not None, over=over)
    if network:
        draft.tree["network"] = components.replaced(draft.tree.get("network"), network)
    config = _validate(Config, draft)
    for keys, spec, given in _components(draft.tree):
        # What is no component the schema has said
        if isinstance(spec, Mapping) and TARGET in spec and not draft.has_mistake(keys):
            if keys[0] != "tracking":
                _check_component(draft, keys, spec, given, allow)
                if keys == ("schedule",) and config is not None:
                    _check_schedule(draft, spec, config)
            elif allow is None:
                _check_tracker(draft, keys, spec)
    if draft.mistakes and allow is None:
        draft.mistakes += list(misfits(draft, metrics_of))
    raise_all(draft.mistakes)
    assert config is not None
    return config


def read_stored(path: Path) -> Config:
    """The stored config of a run, perhaps somebody else's, for comparison: its components are
    neither checked nor imported. Raises ConfigError.
    """
    draft = _read(path, (), stored=True)
    config = _validate(Config, draft)
    raise_all(draft.mistakes)
    assert config is not None
    return config


def _read(
    path: Path,
    overrides: Sequence[str],
    *,
    stored: bool,
    over: Mapping[Any, Any] | None = None,
) -> Draft:
    """The whole of a config, resolved, not yet validated."""
    draft = reading.read(path, overrides, stored=stored, over=over)
    _name_run(draft)
    if stored:
        draft.take_literally()
    else:
        draft.interpolate()
    _name_losses(draft.tree.get("task"))
    return draft


def read_section(
    path: Path,
    section: type[M],
    overrides: Sequence[str] = (),
    *,
    alone: bool = True,
    stored: bool = False,
) -> M:
    """One section of a config by its class, e.g. StopSettings: without torch, and without checking
    the others. Raises ConfigError with all mistakes at once.

    alone: overrides of other sections, which have no effect, are mistakes. stored: the config was
    stored by a run, perhaps somebody else's.
    """
    name, info = next(item for item in Config.model_fields.items() if item[1].annotation is section)
    own = re.compile(rf"\s*{name}\s*[.=]")
    foreign = [text for text in overrides if alone and not own.match(text)]
    taken = [text for text in overrides if text not in foreign]
    draft = reading.read(path, taken, stored=stored, links=not stored)
    message = f"only {name}.* has an effect here. Remove it, or fix the key."
    draft.mistakes += [Mistake((), message, f"override {text}") for text in foreign]
    _name_run(draft)
    if stored:
        draft.take_literally([name])
    else:
        draft.interpolate([name])
    field: Any = {name: (section, info)}
    model = create_model("Section", __config__=ConfigDict(extra="ignore"), **field)
    found = _validate(model, draft)
    raise_all(draft.mistakes)
    value: M = getattr(found, name)
    return value


def run_directory(path: Path, overrides: Sequence[str] = ()) -> Path:
    """The run directory of a config, for launch/slurm.sbatch. Raises ConfigError."""
    return read_section(path, RunConfig, overrides, alone=False).dir


def read_values(path: Path, overrides: Sequence[str] = ()) -> Mapping[str, Any]:
    """The config stored by a run, as unchecked plain values. Raises ConfigError."""
    draft = reading.read(path, overrides, stored=True, links=False)
    draft.take_literally()
    raise_all(draft.mistakes)
    return draft.tree


def resolved_yaml(config: Config) -> str:
    """A YAML text that `read_config` reads as an equal config from any directory: no base, no
    interpolation, defaults written out.
    """
    return (
        f"# The resolved config of a run of fermarsi {own_version()}; it can be launched again as "
        f"is.\n{to_yaml(plain(config.model_dump(by_alias=True)))}"
    )


def _validate(model: type[M], draft: Draft) -> M | None:
    """The draft as a model; None, and the mistakes noted in it, if it is not one."""
    try:
        return model.model_validate(draft.tree)
    except ValidationError as error:
        explain(error, draft)
        return None


def _name_run(draft: Draft) -> None:
    """Name the run by its config file, and its directory by the run, where they are not given."""
    run = draft.tree.setdefault("run", {})
    if run is None:
        run = draft.tree["run"] = {}
    if isinstance(run, dict):
        if run.get("name") is None:
            run["name"] = draft.path.stem
        if run.get("dir") is None:
            run["dir"] = f"runs/{run['name']}"


def _name_losses(task: Any) -> None:
    """Let `loss: mine.pinball` of our tasks mean the function, or an instance of the class."""
    for one in components.components_in(task):
        loss = one.get("loss")
        ours = components.target_of(one).startswith("harness.tasks.")
        if ours and isinstance(loss, str) and isinstance(one, dict):
            one["loss"] = {TARGET: loss}


def _components(tree: Mapping[str, Any]) -> Iterator[tuple[Keys, Any, Collection[str]]]:
    """Each component of a config with its keys and the arguments that the harness passes."""
    for name, given in _GIVEN.items():
        yield (name,), tree.get(name), given
    data = tree.get("data")
    splits = data if isinstance(data, Mapping) else {}
    for name in SPLITS:
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
    tracking = tree.get("tracking")
    backends = tracking.get("backends") if isinstance(tracking, Mapping) else None
    for index, spec in enumerate(backends if isinstance(backends, list) else []):
        yield ("tracking", "backends", index), spec, ("run",)


def _check_component(
    draft: Draft,
    keys: Keys,
    spec: Mapping[str, Any],
    given: Collection[str],
    allow: Sequence[str] | None,
) -> None:
    if allow is not None:
        try:
            trust.check_code(spec, dotted(keys), allow)
        except ConfigError as error:
            draft.mistakes.append(Mistake((), str(error), draft.origin(keys)))
            return
    for inner, nested in [((), spec), *components.inside(spec, ())]:
        if TARGET in nested and (change := _change_of(nested)) is not None:
            draft.add((*keys, *inner), change)
    inherit = given if keys[0] == "schedule" else ()
    for mistake in components.find_mistakes(spec, given, inherit):
        if not draft.has_mistake((*keys, *mistake.keys)):
            draft.add((*keys, *mistake.keys), mistake.message)


def _change_of(spec: Mapping[Any, Any]) -> str | None:
    try:
        change = find_change(spec)
    except ConfigError as error:
        return str(error)
    return None if change is None else f"{change}."


def _check_schedule(draft: Draft, spec: Mapping[str, Any], config: Config) -> None:
    budget = config.stop.budget
    for mistake in find_schedule_mistakes(spec, None if budget is None else budget.steps):
        if not draft.has_mistake(("schedule", *mistake.keys)):
            draft.add(("schedule", *mistake.keys), mistake.message)


def _check_tracker(draft: Draft, keys: Keys, spec: Mapping[str, Any]) -> None:
    _check_component(draft, keys, spec, ("run",), None)
    if not draft.has_mistake(keys) and inspect.isclass(target := components.find(spec[TARGET])):
        lacks = [name for name in BACKEND_METHODS if not hasattr(target, name)]
        if lacks:
            draft.add(
                (*keys, TARGET),
                f"{spec[TARGET]} has no {', '.join(lacks)}. A tracker has the methods "
                f"{', '.join(BACKEND_METHODS)} (docs/tracking.md).",
            )


def plain(value: Any) -> Any:
    """What YAML can hold.

    Empty and null values are left out, except in arguments of components, where null is a value.
    """
    if isinstance(value, Mapping):
        if TARGET in value:
            return _plain_argument(value)
        items = {key: plain(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item not in (None, {}, [])}
    return (
        [plain(item) for item in value]
        if isinstance(value, list | tuple)
        else _plain_argument(value)
    )


def _plain_argument(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_argument(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_argument(item) for item in value]
    if isinstance(value, Reference):
        return str(value)
    text = str(value) if isinstance(value, Path) else value
    # OmegaConf would resolve ${ again: it is written \${, and backslashes before it twice
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text) if isinstance(text, str) else text
