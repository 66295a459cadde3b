"""docs/config.md, made from the schema: `python docs/config_reference.py > docs/config.md`."""

import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

# This checkout's, whatever is installed
sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.config.document import to_yaml
from harness.config.mistakes import known_fields, models_in
from harness.config.schema import Config

_INTRODUCTION = """\
# The keys of a config

Made from the schema by `python docs/config_reference.py`; do not edit.

A config is a YAML file, read by the rules of YAML 1.2: `no`, `on` and dates are text, `1e-3` is a
number, `010` is refused, and so is a key that comes twice. `fermarsi config CONFIG [key=value ...]`
prints what a config comes to, or all mistakes in it.

- `base: other.yaml` at the top of a file, relative to it, lays the file over another. Sections are
  merged; lists, quantities (`every`, `keep_every`, `patience`) and a component with another
  `_target_` are replaced as a whole.
- `key=value` on the command line sets one value, written in YAML: `optimizer.lr=3e-4`,
  `data.train.treatments[0].size=8`, `stop.every={steps: 100}`, `schedule=null`. The last of several
  counts.
- `${run.seed}` is the value of another key, `${oc.env:HOME}` of an environment variable
  (OmegaConf's rules); `\\${` is the characters themselves. In arguments of components
  `${secret:HF_TOKEN}` is an environment variable that is written and shown nowhere; so is
  `${oc.env:NAME}` where the key or the variable is called a token, key, password or secret.
- A **component** is a mapping with `_target_`, the dotted path of a class or function
  (`pkg.mod.Name`, or `pkg.mod:Name`), and its arguments by name, which may hold components again.
  Path and arguments are checked when the config is read.
"""
_FILLED_IN = {("run",): "", ("run", "name"): "the file's name", ("run", "dir"): "`runs/<run.name>`"}
_TYPES = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    type(None): "null",
    dict: "component",
}


def reference() -> str:
    """The whole page: a table a section, then one for each kind of value that sections share."""
    fields = known_fields(Config)
    parts = [_INTRODUCTION, "## The sections\n", _table(Config, ())]
    sections = {
        name: info
        for name, info in Config.model_fields.items()
        if get_origin(info.annotation) is not dict
    }
    for name, info in sections.items():
        for model in models_in(info.annotation):
            parts += [f"## {name}\n", f"{inspect.getdoc(model)}\n", _table(model, (name,))]
    shown = {model for info in sections.values() for model in models_in(info.annotation)}
    for info in fields.values():
        for model in models_in(info.annotation):
            if model not in shown:
                shown.add(model)
                parts += [
                    f"## {model.__name__}\n",
                    f"{inspect.getdoc(model)}\n",
                    _table(model, None),
                ]
    return "\n".join(parts)


def _table(model: type[BaseModel], keys: tuple[str, ...] | None) -> str:
    rows = ["| key | value | default | |", "| --- | --- | --- | --- |"]
    for name, info in model.model_fields.items():
        key = info.alias or name
        default = _default(info) if keys is None else _FILLED_IN.get((*keys, key), _default(info))
        shown = key if keys is None else ".".join((*keys, key))
        rows.append(
            (
                f"| `{shown}` | {_value(info, is_section=keys == ())} | {default} | "
                f"{_description(info)} |"
            ).replace("  |", " |")
        )
    return "\n".join(rows) + "\n"


def _value(info: FieldInfo, *, is_section: bool) -> str:
    if is_section and models_in(info.annotation) and get_origin(info.annotation) is not dict:
        model = models_in(info.annotation)[0].__name__
        name = info.alias or model.removesuffix("Config").removesuffix("Settings").lower()
        return f"[section](#{name})"
    return "".join([_type(info.annotation), *(f", {bound}" for bound in _bounds(info))])


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict and arguments[0] is str:
        return f"name: {_type(arguments[1])}"
    if hasattr(annotation, "__metadata__"):
        return _type(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return _TYPES[origin or annotation]


def _bounds(info: FieldInfo) -> Iterator[str]:
    for bound in info.metadata:
        match bound:
            case annotated_types.Ge(ge=low):
                yield f"at least {low}"
            case annotated_types.Gt(gt=low):
                yield f"above {low}"
            case annotated_types.Lt(lt=high):
                yield f"below {high:,}"
            case annotated_types.MinLen(min_length=1):
                yield "not empty"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.default
    if isinstance(value, BaseModel):
        value = value.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
        if models_in(info.annotation)[0] in (
            model for field in Config.model_fields.values() for model in models_in(field.annotation)
        ):
            return ""
    text = (
        to_yaml({"value": list(value) if isinstance(value, tuple) else value})
        .removeprefix("value:")
        .strip()
    )
    return f"`{text}`"


def _description(info: FieldInfo) -> str:
    models = models_in(info.annotation)
    return info.description or (inspect.getdoc(models[0]) or "" if models else "")


if __name__ == "__main__":
    print(reference(), end="")
