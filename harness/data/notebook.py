"""The code of what is defined in `__main__`: a notebook or a script, which changes all the time, so
that each class counts by itself, with what it uses there.
"""

import ast
import inspect
import linecache
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from harness import components
from harness.components import SOURCE, TARGET, target_of
from harness.data.code import code_digest, is_of_user, module_version, without_docstrings
from harness.errors import ConfigError

MAIN = "__main__"
_PLAIN = (bool, int, float, str, bytes, type(None))
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_ALTERING = {
    *("append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse"),
    *("update", "setdefault", "popitem", "add", "discard"),
}


def is_of_main(target: Any) -> bool:
    """Whether a class or function is defined in `__main__`."""
    return getattr(target, "__module__", None) == MAIN


def digest_of(target: Any) -> str:
    """A digest of the code of a class or function: of one of `__main__` with all that it names of
    `__main__`: classes, functions, modules of the user's, numbers and texts by value, and other
    values by the statements that set them; of another, of its module or package, "" for ours and
    torch's. Raises ConfigError if there is no source.
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
    if name not in found:
        tree = _definition(target)
        found[name] = without_docstrings(ast.Module([tree], []))
        _add_named(tree, found)


def _add_named(tree: ast.AST, found: dict[str, str]) -> None:
    """What a tree names of `__main__`."""
    shared = vars(sys.modules[MAIN])
    for used in sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}):
        if used not in shared or used in found:
            continue
        value = shared[used]
        if isinstance(value, type | FunctionType | ModuleType):
            module = inspect.getmodule(value)
            if is_of_main(value):
                _add(value, found)
            elif module is not None and is_of_user(module.__name__.partition(".")[0]):
                found[used] = module_version(module)
        elif _is_plain(value):
            found[used] = repr(value)
        elif statements := _statements(used):
            # By its text: the value may be a cache, or change in the training
            found[used] = without_docstrings(ast.Module(statements, []))
            for statement in statements:
                _add_named(statement, found)


def _statements(name: str) -> list[ast.stmt]:
    """Those of the script, or of the cells that ran, that gave a name its value: its last
    assignment that does not depend on its former value, and what altered it later.
    """
    found: dict[str, ast.stmt] = {}
    for statement in (one for cell in _cells() for one in _unconditional(cell)):
        if isinstance(statement, _DEFINITIONS) or not _alters(statement, name):
            continue
        if isinstance(statement, ast.Assign | ast.AnnAssign) and not any(
            isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
            for node in ast.walk(statement)
        ):
            found.clear()
        found[ast.dump(statement)] = statement
    return list(found.values())


def _unconditional(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a tree, and those in its `if __name__ == "__main__"`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
            yield from _unconditional(node)
        elif isinstance(node, ast.stmt):
            yield node


def _alters(statement: ast.stmt, name: str) -> bool:
    pending: list[ast.AST] = [statement]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.comprehension):  # its variables are its own
            pending += [node.iter, *node.ifs]
        else:
            pending += ast.iter_child_nodes(node)
        base: ast.AST | None = None
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) in _ALTERING:
            base = node.func
        elif isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
            base = node
        while isinstance(base, ast.Attribute | ast.Subscript):
            base = base.value
        if isinstance(base, ast.Name) and base.id == name:
            return True
    return False


def _cells() -> Iterator[ast.Module]:
    """The cells of a notebook in the order in which they ran, or a script."""
    main = sys.modules[MAIN]
    texts = getattr(main, "In", None)
    if not isinstance(texts, list):
        file = getattr(main, "__file__", None)
        texts = []
        with suppress(OSError, UnicodeError):  # in an archive
            texts = [] if file is None else [Path(file).read_text()]
    for text in texts:
        # A cell may have failed
        with suppress(SyntaxError):
            yield ast.parse(text)


def _is_plain(value: Any) -> bool:
    """Whether the text of a value is the same in each process: those of objects have addresses."""
    if isinstance(value, tuple):
        return all(isinstance(one, type) or _is_plain(one) for one in value)
    return isinstance(value, _PLAIN)


def _definition(target: Any) -> ast.stmt:
    """The statement that defines it. Notebooks and interactive sessions keep their cells for
    tracebacks, by the names that code objects have; `inspect` does not find classes there.
    """
    for function in _functions(target):
        code = function.__code__
        lines = linecache.getlines(code.co_filename)
        for node in ast.walk(ast.parse("".join(lines))):
            if (
                isinstance(node, _DEFINITIONS)
                and node.name == target.__name__
                and min([node.lineno, *(one.lineno for one in node.decorator_list)])
                <= code.co_firstlineno
                <= (node.end_lineno or 0)
            ):
                return node
    # Classes without methods, or with those of a dataclass alone
    found = [
        node
        for cell in _cells()
        for node in cell.body
        if isinstance(node, _DEFINITIONS) and node.name == target.__name__
    ]
    if found and "." not in target.__qualname__:
        return found[-1]
    raise ConfigError(
        f"{target.__qualname__}: its source is not known, so a changed one could not be told from "
        "it. Define it in a cell or a file."
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
