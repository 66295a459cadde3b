"""What may change of a config between the launches of a run."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.components import TARGET
from harness.config.read import plain
from harness.config.schema import Config
from harness.data.content import digest
from harness.wording import Keys, dotted

_ABSENT = object()
_ANY_NAME = "*"
_COURSE = ("optimizer", "schedule", "parts", "train", "parallel", "stop", "evaluation")
_NO_STEPS = "no more steps are taken"
_NO_RECORDS = "nothing more is recorded"
READ_ONCE = "weights are read when a run begins"

# Why a change has no effect on a finished run, by the beginning of its key; the longest counts
_IDLE: Mapping[Keys, str] = {
    (): "it identifies the run",  # and is refused before
    ("run",): "the launch has nothing left to do",
    ("run", "name"): "the run is recorded under its earlier name",
    ("run", "init_from"): READ_ONCE,
    ("run", "init_prefix"): READ_ONCE,
    ("data",): "no more samples are read",
    ("data", "test"): "no training reads it, and evaluate and predict go by the run's config.yaml",
    ("data", "checks"): "data is not checked again",
    ("parts",): _NO_STEPS,
    ("parts", _ANY_NAME, "init_from"): READ_ONCE,
    ("parts", _ANY_NAME, "prefix"): READ_ONCE,
    ("optimizer",): _NO_STEPS,
    ("schedule",): _NO_STEPS,
    ("train",): _NO_STEPS,
    ("parallel",): _NO_STEPS,
    ("stop",): "judged by it, the run has ended all the same",
    ("checkpoint",): "no more checkpoints are saved",
    ("evaluation",): "no more evaluations are made",
    ("interrupt",): "there is nothing to interrupt",
    ("log",): _NO_RECORDS,
    ("tracking",): _NO_RECORDS,
}


def identity_changes(before: Config, now: Config) -> list[str]:
    """What differs in the keys that identify a run, as "key: before -> now"; everything else may
    change between launches.
    """
    return _differences(dict(_identity(before)), dict(_identity(now)))


def _differences(old: Mapping[Keys, Any], new: Mapping[Keys, Any]) -> list[str]:
    return [_difference(keys, old, new) for keys in _differing(old, new)]


def _differing(old: Mapping[Keys, Any], new: Mapping[Keys, Any]) -> list[Keys]:
    keys = dict.fromkeys([*old, *new])
    return [one for one in keys if _differ(old.get(one, _ABSENT), new.get(one, _ABSENT))]


def _difference(keys: Keys, old: Mapping[Keys, Any], new: Mapping[Keys, Any]) -> str:
    before, now = (_text_of(one.get(keys, _ABSENT)) for one in (old, new))
    return f"{dotted(keys)}: {before} -> {now}"


def course_changes(before: Config, now: Config) -> list[str]:
    """What differs in the keys that decide how a run goes on, as "key: before -> now"."""
    old, new = (dict(_sections(one, _COURSE)) for one in (before, now))
    return [
        _difference(keys, old, new) for keys in _differing(old, new) if _why_idle(keys) != READ_ONCE
    ]


def once_changes(before: Config, now: Config) -> list[str]:
    """What differs in the keys that a run heeds at its beginning alone, as `idle_changes` does."""
    return [one for one in idle_changes(before, now) if one.endswith(f"({READ_ONCE})")]


def idle_changes(before: Config, now: Config) -> list[str]:
    """What differs where nothing is left to do, on a finished run, as "key: before -> now (why that
    has no effect)"; the name of its directory is nothing of the run's.
    """
    old, new = (dict(_sections(one, tuple(Config.model_fields))) for one in (before, now))
    found = [keys for keys in _differing(old, new) if keys != ("run", "dir")]
    # Of a section that is new or gone, its settings tell, and of these not the empty ones
    said = [keys for keys in found if not _are_empty(old.get(keys), new.get(keys))]
    said += [keys for keys in found if keys in old and keys in new and keys not in said]
    sections = {keys[:-1] for keys in said}
    told = [keys for keys in found if keys in said or not _is_within(keys[:-1], sections)]
    return [f"{_difference(keys, old, new)} ({_why_idle(keys)})" for keys in told]


def _are_empty(*values: Any) -> bool:
    return all(one is None or one in ((), {}) for one in values)


def _is_within(section: Keys, sections: Collection[Keys]) -> bool:
    return any(one[: len(section)] == section for one in sections)


def _why_idle(keys: Keys) -> str:
    patterns = (pattern for pattern in _IDLE if _begins(keys, pattern))
    return _IDLE[max(patterns, key=len)]


def _begins(keys: Keys, pattern: Keys) -> bool:
    return len(keys) >= len(pattern) and all(
        wanted in (key, _ANY_NAME) for key, wanted in zip(keys, pattern, strict=False)
    )


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
    return "absent" if value is _ABSENT else repr(str(value) if isinstance(value, Path) else value)
