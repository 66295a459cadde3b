"""Pydantic's findings in words: one mistake per line, with the file, the key, the value and what is
allowed.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from harness.components import TARGET
from harness.config.reading import Draft
from harness.config.schema import Config
from harness.wording import Keys, closest, did_you_mean, dotted, short_repr

ANY_KEY = "*"
_MOST_KEYS = 6


# Sections whose keys are no key of the schema's
_COMPONENTS = ("network", "task", "optimizer", "schedule")


# What other tools call it, where no key of ours is alike
_ELSEWHERE = {
    **dict.fromkeys(
        ("epochs", "max_epochs", "num_epochs", "n_epochs", "num_train_epochs"),
        "stop.budget.epochs",
    ),
    **dict.fromkeys(("max_steps", "num_steps", "total_steps", "iterations"), "stop.budget.steps"),
    **dict.fromkeys(("batch_size", "train_batch_size", "global_batch_size"), "batch.size"),
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "accumulate_grad_batches"),
        "batch.micro_size, of which as many as make batch.size are accumulated",
    ),
    **dict.fromkeys(("learning_rate", "base_lr", "lr"), "optimizer.lr"),
    **dict.fromkeys(("fp16", "bf16", "amp", "mixed_precision"), "train.precision"),
    **dict.fromkeys(("max_norm", "max_grad_norm", "gradient_clip_val"), "train.clip_grad_norm"),
    **dict.fromkeys(("output_dir", "save_dir", "default_root_dir"), "run.dir"),
    **dict.fromkeys(("eval_steps", "val_check_interval"), "stop.every.steps"),
    **dict.fromkeys(("early_stopping_patience", "patience"), "stop.improvement.patience"),
    **dict.fromkeys(("logging_steps", "log_every_n_steps"), "log.every.steps"),
    "weight_decay": "optimizer.weight_decay",
    "save_total_limit": "checkpoint.keep_last",
    "save_top_k": "checkpoint.keep_best",
    "resume_from_checkpoint": "run.resume",
    "metric_for_best_model": "stop.best.metric",
}
_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text (a number or true and false in quotes)",
    "string_too_short": "non-empty text",
    "path_type": "a path",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list",
    "literal_error": "{expected}",
    "greater_than_equal": "a number of at least {ge:g}",
    "greater_than": "a number above {gt:g}",
    "less_than": "a number below {lt}",
}


def explain(error: ValidationError, draft: Draft) -> None:
    """Add the findings of a validation to the draft's mistakes, except consequences of those
    already there.
    """
    found: dict[Keys, list[ErrorDetails]] = {}
    # A value that fits no branch of a union: one error a branch
    shallow: dict[Keys, list[ErrorDetails]] = {}
    for one in error.errors(include_url=False):
        keys, of_branch = keys_of(one, draft.tree)
        (shallow if of_branch else found).setdefault(keys, []).append(one)
    for keys, several in shallow.items():
        if not any(inside[: len(keys)] == keys for inside in found):
            found[keys] = several
    for keys, several in found.items():
        if not draft.has_mistake(keys):
            draft.add(keys, _in_words(keys, several, draft))


@cache
def known_fields(model: type[BaseModel] = Config) -> Mapping[Keys, FieldInfo]:
    """Every key of a model and of those inside it; ANY_KEY stands for a name that users choose."""
    return dict(_fields(model, ()))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def _fields(model: type[BaseModel], keys: Keys) -> Iterator[tuple[Keys, FieldInfo]]:
    for name, info in model.model_fields.items():
        here = (*keys, info.alias or name)
        yield here, info
        named = get_origin(info.annotation) is dict
        for inner in models_in(info.annotation):
            yield from _fields(inner, (*here, ANY_KEY) if named else here)


def keys_of(error: ErrorDetails, tree: Any) -> tuple[Keys, bool]:
    """The user's keys in pydantic's location, which also names branches of unions, and whether it
    ends with a branch.
    """
    keys: Keys = ()
    of_branch = False
    node = tree
    for index, key in enumerate(error["loc"]):
        last = index == len(error["loc"]) - 1
        if isinstance(node, dict) and (key in node or (last and error["type"] == "missing")):
            keys, node = (*keys, key), node.get(key)
        elif isinstance(node, list) and isinstance(key, int):
            keys, node = (*keys, key), node[key]
        else:
            of_branch = last and isinstance(key, str)
    return keys, of_branch


def _in_words(keys: Keys, errors: list[ErrorDetails], draft: Draft) -> str:
    kind, value = errors[0]["type"], errors[0]["input"]
    if kind == "missing":
        info = known_fields().get(_pattern(keys))
        return (
            f"is missing. {info.description if info and info.description else 'It has no default.'}"
        )
    if kind == "extra_forbidden":
        return f"no such key.{_suggestion(keys, value, draft.tree)}"
    if kind == "value_error":
        told = [one["ctx"]["error"] for one in errors if one["type"] == kind]
        message = " ".join(dict.fromkeys(map(str, told)))
        named = isinstance(value, Mapping | BaseModel) or repr(value) in message
        return ("" if named else f"{value!r}: ") + message + ("" if message.endswith("?") else ".")
    if all(one["type"] in _EXPECTED for one in errors):
        wanted = " or ".join(
            dict.fromkeys(_EXPECTED[one["type"]].format(**one.get("ctx", {})) for one in errors)
        ).replace("a mapping", f"a mapping{_keys_inside(keys)}")
        choices = re.findall("'(.*?)'", wanted)
        return f"{short_repr(value)} is not allowed. Give {wanted}.{did_you_mean(value, choices)}"
    return f"{short_repr(value)} is not allowed. {errors[0]['msg']}."


def _keys_inside(keys: Keys) -> str:
    """Those that a section takes, where there are few."""
    info = known_fields().get(_pattern(keys))
    models = models_in(info.annotation) if info else []
    names = [info.alias or name for one in models for name, info in one.model_fields.items()]
    return f" ({', '.join(names)})" if 0 < len(names) <= _MOST_KEYS else ""


def _suggestion(keys: Keys, value: Any, tree: Any) -> str:
    """Which key was meant: a similar sibling, or a key with the same ending elsewhere; if none, the
    siblings.
    """
    parent = _pattern(keys[:-1])
    siblings = sorted(str(key[-1]) for key in known_fields() if key[:-1] == parent)
    if (ours := _ELSEWHERE.get(str(keys[-1]).lower())) is not None:
        own = ours.rpartition(".")[2]
        return f" Did you mean {dotted((*keys[:-1], own)) if own in siblings else ours}?"
    rest: Keys = ()
    while isinstance(value, dict) and len(value) == 1 and TARGET not in value:
        ((key, value),) = value.items()
        rest = (*rest, key)
    close = closest(str(keys[-1]), siblings)
    if close is not None:
        meant = (*keys[:-1], close)
        return f" Did you mean {dotted((*meant, *rest) if _takes(meant, rest) else meant)}?"
    known = [key for key in known_fields() if ANY_KEY not in key] + [
        inside for inside in _paths(tree, ()) if inside[0] in _COMPONENTS
    ]
    given = (*keys, *rest)
    for tail in (given, given[-1:]):
        elsewhere = dict.fromkeys(dotted(key) for key in known if key[-len(tail) :] == tail)
        if elsewhere:
            return f" Did you mean {' or '.join(list(elsewhere)[:3])}?"
    return f" Known keys: {', '.join(siblings)}."


def _takes(keys: Keys, rest: Keys) -> bool:
    """Whether the keys in `rest` may follow: they are known, or inside a component."""
    info = known_fields().get(_pattern(keys))
    return _pattern((*keys, *rest)) in known_fields() or (
        info is not None and not models_in(info.annotation) and "dict" in str(info.annotation)
    )


def _pattern(keys: Keys) -> Keys:
    """Keys as `known_fields` has them: no indices of lists, ANY_KEY for names that users choose."""
    pattern: Keys = ()
    for key in keys:
        if isinstance(key, int):
            continue
        pattern = (*pattern, ANY_KEY if (*pattern, ANY_KEY) in _parents() else key)
    return pattern


@cache
def _parents() -> frozenset[Keys]:
    return frozenset(key[:length] for key in known_fields() for length in range(len(key)))


def _paths(value: Any, keys: Keys) -> Iterator[Keys]:
    if keys:
        yield keys
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from _paths(item, (*keys, key))
