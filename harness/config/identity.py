"""What may change of a config between the launches of a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.components import TARGET
from harness.config.read import plain
from harness.config.schema import Config
from harness.data.content import digest
from harness.wording import Keys, dotted

_ABSENT = object()
_COURSE = ("optimizer", "schedule", "parts", "train", "parallel", "stop", "evaluation")


def identity_changes(before: Config, now: Config) -> list[str]:
    """What differs in the keys that identify a run, as "key: before -> now"; everything else may
    change between launches.
    """
    return _differences(dict(_identity(before)), dict(_identity(now)))


def _differences(old: Mapping[Keys, Any], new: Mapping[Keys, Any]) -> list[str]:
    return [
        f"{dotted(keys)}: {_text_of(old.get(keys, _ABSENT))} -> {_text_of(new.get(keys, _ABSENT))}"
        for keys in [*old, *(keys for keys in new if keys not in old)]
        if _differ(old.get(keys, _ABSENT), new.get(keys, _ABSENT))
    ]


def course_changes(before: Config, now: Config, also: tuple[str, ...] = ()) -> list[str]:
    """What differs in the keys that decide how a run goes on, and in `also`, as "key: before ->
    now".
    """
    old, new = (dict(_sections(one, (*_COURSE, *also))) for one in (before, now))
    return _differences(old, new)


def rate_changes(before: Config, now: Config) -> list[str]:
    """The keys that differ among those that decide the rates at which groups of parameters begin to
    learn, and which groups there are.
    """
    old, new = dict(_rates(before)), dict(_rates(now))
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def config_hashes(config: Config) -> dict[str, str]:
    """SHA-256 of what identifies the run, of what decides its course (optimizer, schedule, stop),
    and of the rest, for a checkpoint's manifest.
    """
    dump = plain(config.model_dump(by_alias=True))
    course = {
        name: dump.pop(name) for name in ("optimizer", "schedule", "train", "stop") if name in dump
    }
    for path, part in dump.get("parts", {}).items():
        part.pop("freeze", None)  # of the identity
        course |= {
            f"parts.{path}.{option}": part.pop(option)
            for option in ("lr", "weight_decay")
            if option in part
        }
    identity = [[dotted(keys), value] for keys, value in _identity(config)]
    for name in ("network", "task", "batch"):
        dump.pop(name)
    kinds = {"identity": identity, "course": course, "runtime": dump}
    return {kind: digest(value) for kind, value in kinds.items()}


def _identity(config: Config) -> Iterator[tuple[Keys, Any]]:
    """Keys and values, down to the last, of what identifies a run."""
    dump = config.model_dump(by_alias=True)
    yield from _leaves({name: dump["run"][name] for name in ("seed", "exactness")}, ("run",))
    yield from _leaves({name: dump["data"][name] for name in ("train", "val")}, ("data",))
    yield from _leaves({name: dump[name] for name in ("network", "task", "batch")}, ())
    yield from _leaves({TARGET: dump["optimizer"][TARGET]}, ("optimizer",))
    for name in ("compile", "channels_last", "ema"):
        if getattr(config.train, name):
            yield ("train", name), True
    frozen = [path for path, part in config.parts.items() if part.freeze]
    # One that is not frozen says something only inside of a frozen one
    for path, part in config.parts.items():
        if part.freeze or (
            part.freeze is False and any(path.startswith(f"{other}.") for other in frozen)
        ):
            yield ("parts", path, "freeze"), part.freeze


def _sections(config: Config, names: tuple[str, ...]) -> Iterator[tuple[Keys, Any]]:
    dump = config.model_dump(by_alias=True)
    for name in names:
        yield from _leaves(dump[name], (name,))


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


def _text_of(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)
