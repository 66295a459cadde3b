"""YAML texts as plain values, by the rules of YAML 1.2: `no` and `on` are text, `1e-3` is a number,
a date is text.

What versions 1.1 and 1.2 read as different numbers (010) is refused, and so are duplicate keys,
tags and anything that is not a plain value.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml  # type: ignore[import-untyped]  # PyYAML has no types of its own

from harness.hidden import Reference
from harness.wording import Keys, first_line

# A checkpoint's config may be somebody else's, and aliases multiply
_MAX_NODES = 100_000
_MAX_DEPTH = 60

_TAG = "tag:yaml.org,2002:"
_DIGITS = "[0-9]+(?:_[0-9]+)*"
_EXPONENT = "[eE][-+]?[0-9]+"


_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)|0o[0-7]+|0x[0-9a-fA-F]+|0b[01]+", "-+0123456789"),
    "float": (
        rf"[-+]?(?:{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS})(?:{_EXPONENT})?"
        rf"|[-+]?{_DIGITS}{_EXPONENT}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "octal": (r"[-+]?0[0-9_]+", "-+0"),
    "merge": (r"<<", "<"),
}


_CLoader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Yaml12(_CLoader):  # type: ignore[misc]  # PyYAML's loader is chosen when it is imported
    """PyYAML's loader with the scalars of YAML 1.2."""

    # PyYAML's own attribute
    yaml_implicit_resolvers: dict[str | None, list[Any]] = {}  # noqa: RUF012 - see above


for _name, (_pattern, _first) in _SCALARS.items():
    Yaml12.add_implicit_resolver(
        _TAG + _name,
        re.compile(rf"(?:{_pattern})\Z"),
        list(_first) + ([""] if _name == "null" else []),
    )


class MalformedError(Exception):
    """A text that is not YAML, or too large for a config. `line`: counted from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass
class Document:
    """One YAML text as plain values: None, bool, int, float, str, list, and dict with text or whole
    numbers as keys.

    lines: the line of each value, by its keys. mistakes: (line, keys, message) of single values.
    rest: what follows the value, e.g. a comment.
    """

    lines: dict[Keys, int] = field(default_factory=dict)
    mistakes: list[tuple[int, Keys, str]] = field(default_factory=list)
    rest: str = ""
    num_nodes: int = 0

    def read(self, text: str) -> Any:
        """The values; a mistaken one is None and goes to `mistakes`. Raises MalformedError."""
        try:
            root = yaml.compose(text, Yaml12)
        except yaml.MarkedYAMLError as error:
            line = 1 if error.problem_mark is None else error.problem_mark.line + 1
            raise MalformedError(
                line, f"not valid YAML: {error.problem or error.context}"
            ) from error
        except (yaml.YAMLError, RecursionError) as error:
            raise MalformedError(1, f"not valid YAML: {first_line(error)}") from error
        self.rest = (text if root is None else text[root.end_mark.index :]).strip()
        return None if root is None else self._value(root, ())

    def _value(self, node: yaml.Node, keys: Keys) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(keys, line)
        self.num_nodes += 1
        if self.num_nodes > _MAX_NODES or len(keys) > _MAX_DEPTH:  # also an alias that holds itself
            raise MalformedError(
                line,
                f"more than {_MAX_NODES:,} values, or nested more than {_MAX_DEPTH} deep. Put data "
                "into separate files",
            )
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self._value(child, (*keys, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, keys)
        self.mistakes.append((line, keys, f"the tag {node.tag} is not supported. Remove it."))
        return None

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _TAG + "merge":
                for source in (
                    value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                ):
                    inherited = self._value(source, keys)
                    if isinstance(inherited, dict):
                        merged = {**inherited, **merged}
                    else:
                        self.mistakes.append(
                            (
                                line,
                                keys,
                                "<< takes a mapping or a list of mappings. Give an alias for one.",
                            )
                        )
                continue
            key = self._scalar(key_node, keys) if isinstance(key_node, yaml.ScalarNode) else None
            if isinstance(key, bool) or not isinstance(key, str | int):
                self.mistakes.append(
                    (line, keys, "a key must be text or a whole number. Put it in quotes.")
                )
                continue
            here = (*keys, key)
            if key in found:
                self.mistakes.append(
                    (
                        line,
                        here,
                        f"duplicate key; the first is in line {self.lines[here]}. Remove one.",
                    )
                )
                continue
            self.lines[here] = line
            found[key] = self._value(value_node, here)
        return {**{key: value for key, value in merged.items() if key not in found}, **found}

    def _scalar(self, node: yaml.ScalarNode, keys: Keys) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "octal":
            message = (
                f"{text} is octal in YAML 1.1 and decimal in 1.2. Write the number without the "
                "leading zero, or text in quotes."
            )
        elif kind in ("str", "merge"):
            return text
        else:
            try:
                return _CONVERSIONS[kind](text)
            except (KeyError, ValueError) as error:
                message = (
                    f"{text!r}: the tag !!{kind} is not supported. Remove it."
                    if isinstance(error, KeyError)
                    else f"{text!r}: {error}."
                )
        self.mistakes.append((node.start_mark.line + 1, keys, message))
        return None


def _float(text: str) -> float:
    value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if math.isinf(value) and "inf" not in text.lower():
        raise ValueError("too large for a number of 64 bits")
    return value


_CONVERSIONS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": lambda text: int(text, 0),
    "float": _float,
}


class _Writer(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML tells no types
    """Quotes text that a reader of YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        # in single quotes a line break of Unicode would be read as a blank
        return self.represent_scalar(_TAG + "str", data, style=None if data.isprintable() else '"')


_Writer.add_representer(str, _Writer.represent_str)
_Writer.add_representer(Reference, _Writer.represent_str)


for _name, (_pattern, _first) in _SCALARS.items():
    _Writer.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), list(_first))


def to_yaml(value: Any, *, flow: bool = False) -> str:
    """A YAML text that `Document.read` and any other reader parse to the same plain values, floats
    to the last bit. flow: as in JSON, without a line for each entry.
    """
    text: str = yaml.dump(
        value,
        Dumper=_Writer,
        sort_keys=False,
        allow_unicode=True,
        width=2**16,
        default_flow_style=flow,
    )
    return text.removesuffix("...\n").removesuffix("\n") if flow else text
