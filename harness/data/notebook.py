"""The code of what is defined in `__main__`: a notebook or a script, which changes all the time, so
that each class counts by itself, with what it uses there.
"""

import ast
import inspect
import linecache
import sys
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

from harness import components
from harness.components import SOURCE, TARGET, target_of
from harness.data.code import code_digest, module_version, without_docstrings
from harness.errors import ConfigError

MAIN = "__main__"
_PLAIN = (bool, int, float, str, bytes, type(None))


def is_of_main(target: Any) -> bool:
    """Whether a class or function is defined in `__main__`."""
    return getattr(target, "__module__", None) == MAIN


def digest_of(target: Any) -> str:
    """A digest of the code of a class or function: of one of `__main__` with all classes, functions
    and plain values of `__main__` that it names; of another, of its module or package, "" for ours
    and torch's. Raises ConfigError if there is no source.
    """
    if not is_of_main(target):
        return module_version(inspect.getmodule(target))
    found: dict[str, str] = {}
    _add(target, found)
    return code_digest(repr(sorted(found.items())).encode())


def find_change(spec: Mapping[Any, Any]) -> str | None:
    """Why a component of `__main__` is not the one that a config names; None if it is, or is of
    another module. Raises ConfigError if it is not there.
    """
    if not target_of(spec).startswith(f"{MAIN}."):
        return None
    name, before = target_of(spec), spec.get(SOURCE)
    now = digest_of(components.find(spec[TARGET]))
    if before == now:
        return None
    if before is None:
        return f"{name} is of a notebook or a script. Give the class itself, in fermarsi.Config"
    return f"the code of {name} is {now}, and was {before}. Define it as it was"


def _add(target: Any, found: dict[str, str]) -> None:
    name = target.__qualname__
    if name in found:
        return
    tree = _definition(target)
    found[name] = without_docstrings(ast.Module([tree], []))
    shared = vars(sys.modules[MAIN])
    for used in sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}):
        value = shared.get(used)
        if is_of_main(value) and isinstance(value, type | FunctionType):
            _add(value, found)
        elif used in shared and _is_plain(value):
            found[used] = repr(value)


def _is_plain(value: Any) -> bool:
    """Whether the text of a value is the same in each process: those of objects have addresses."""
    if isinstance(value, tuple):
        return all(isinstance(one, type) or _is_plain(one) for one in value)
    return isinstance(value, _PLAIN)


def _definition(target: Any) -> ast.stmt:
    """The statement that defines it. Notebooks and interactive sessions keep their cells for
    tracebacks, by the names that code objects have; `inspect` does not find classes there.
    """
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for function in _functions(target):
        code = function.__code__
        lines = linecache.getlines(code.co_filename)
        for node in ast.walk(ast.parse("".join(lines))):
            if (
                isinstance(node, kinds)
                and node.name == target.__name__
                and min([node.lineno, *(one.lineno for one in node.decorator_list)])
                <= code.co_firstlineno
                <= (node.end_lineno or 0)
            ):
                return node
    raise ConfigError(
        f"{target.__qualname__}: its source is not known, so a changed one could not be told from "
        "it. Define it in a cell or a file, with at least one method of its own."
    )


def _functions(target: Any) -> Iterator[FunctionType]:
    if isinstance(target, FunctionType):
        yield inspect.unwrap(target)
        return
    for value in vars(target).values():
        function = inspect.unwrap(getattr(value, "fget", None) or getattr(value, "__func__", value))
        if isinstance(function, FunctionType) and function.__qualname__.startswith(
            f"{target.__qualname__}."
        ):
            yield function
