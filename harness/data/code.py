"""The code that a config names: what it is, and what of it has changed between two launches.

Code counts by its syntax tree without comments, docstrings and layout; installed packages count by
their version; the harness's own sources and treatments say by `version` when they give something
else.
"""

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import components
from harness.components import TARGET

_INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}


def code_of(config: Any) -> dict[str, str]:
    """{module or package: digest or version} of all that a config, or a section of one, names and
    that is neither the harness's nor torch's: a user's module with the modules of the user's that
    it imports, and packages by their version.

    Raises ConfigError for a target that does not exist.
    """
    found: dict[str, str] = {}
    for spec in components.components_in(config):
        module = inspect.getmodule(components.find(spec[TARGET]))
        if module is not None:
            _add(module.__name__, found)
    return dict(sorted(found.items()))


def attributes_used(config: Any) -> set[str]:
    """The names of all attributes that a user's modules ask of something but `self`. Raises
    ConfigError for a target that does not exist.
    """
    return {
        node.attr
        for _, tree in trees_of(config)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }


# What tells a process which one it is, and of how many
_PLACES = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"})
_ASKING = frozenset({"get_rank", "get_world_size", "process_index", "num_processes"})


def places_asked(config: Any) -> list[str]:
    """Where a user's modules ask for a process's rank or for the number of processes, as
    "module: name", as far as their text tells. Raises ConfigError for a target that does not exist.
    """
    found: dict[str, None] = {}
    for module, tree in trees_of(config):
        for node in ast.walk(tree):
            name = getattr(node, "attr", getattr(node, "id", getattr(node, "value", None)))
            known = _PLACES if isinstance(node, ast.Constant) else _ASKING
            if isinstance(name, str) and name in known:
                found[f"{module}: {name}"] = None
    return list(found)


def trees_of(config: Any) -> Iterator[tuple[str, ast.Module]]:
    """The syntax trees of a user's modules, by name. Raises ConfigError."""
    for module, digest in code_of(config).items():
        file = _file(module) if _is_code(digest) else None
        if file is not None:
            with suppress(SyntaxError):  # the importer does without it, see below
                yield module, ast.parse(file.read_bytes())


def module_version(module: ModuleType | None) -> str:
    """What changes when the results of a module's code may: see above; "" for the harness's own."""
    if module is None:
        return ""
    found: dict[str, str] = {}
    _add(module.__name__, found)
    if len(found) <= 1:
        return next(iter(found.values()), "")
    # With what it imports of the user's own, which is in what the module gives
    return code_digest(repr(sorted(found.items())).encode())


def edits(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The user's modules that differ, by name."""
    names = {**before, **now}
    return [
        name
        for name in sorted(names)
        if _is_code(names[name]) and before.get(name) != now.get(name)
    ]


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs, as a person reads it: the user's modules, packages with both versions."""
    packages = [
        f"{name} {before.get(name, 'absent')} -> {now.get(name, 'absent')}"
        for name, value in sorted({**before, **now}.items())
        if not _is_code(value) and before.get(name) != now.get(name)
    ]
    return [*edits(before, now), *packages]


def _is_code(value: str) -> bool:
    return value.startswith("code ")


def _add(name: str, found: dict[str, str]) -> None:
    """A module, and what it imports of the same kind: not the standard library, not the harness."""
    top = name.partition(".")[0]
    installed = top in found and not _is_code(found[top])
    not_theirs = top in ("harness", "torch", "__main__")  # see notebook.py
    if name in found or installed or not_theirs or top in sys.stdlib_module_names:
        return
    file = _file(name)
    if file is None and _folders(name):
        return  # a folder has no code of its own
    if file is None or any(file.is_relative_to(folder) for folder in _INSTALLED):
        found[top] = _package_version(top)
        return
    text = file.read_bytes()
    try:
        tree = ast.parse(text)
    except SyntaxError:
        # The importer does without it, or it would not have got this far.
        found[name] = code_digest(text)
        return
    found[name] = code_digest(without_docstrings(tree).encode())
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            imported = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for one in imported:
            # By the top alone first: to look for a module inside of a package imports the package.
            if is_of_user(one.partition(".")[0]) and _is_module(one):
                _add(one, found)


def code_digest(text: bytes) -> str:
    """How code is told from other code."""
    return f"code {hashlib.sha256(text).hexdigest()[:16]}"


def without_docstrings(tree: ast.Module) -> str:
    """A tree as text, without what changes nothing: docstrings (it has no comments and layout)."""
    for node in ast.walk(tree):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def _is_module(name: str) -> bool:
    with suppress(ImportError, ValueError, AttributeError):
        return name in sys.modules or importlib.util.find_spec(name) is not None
    return False


def is_of_user(top: str) -> bool:
    """Whether a top-level module, package or folder without `__init__` lies outside of what is
    installed.
    """
    if top in ("harness", "torch") or top in sys.stdlib_module_names:
        return False
    file = _file(top)
    paths = _folders(top) if file is None else [file]
    return any(
        not any(path.is_relative_to(installed) for installed in _INSTALLED) for path in paths
    )


def _file(name: str) -> Path | None:
    """The source file of a module, None if it has none."""
    module = sys.modules.get(name)
    origin = getattr(module, "__file__", None)
    if origin is None:
        with suppress(ImportError, ValueError, AttributeError):
            spec = importlib.util.find_spec(name)
            origin = None if spec is None or not spec.has_location else spec.origin
    return Path(origin).resolve() if origin is not None and origin.endswith(".py") else None


def _folders(name: str) -> list[Path]:
    """Where a package without `__init__` lies; nothing for other modules."""
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(name)
        if spec is not None and not spec.has_location:
            return [Path(one).resolve() for one in spec.submodule_search_locations or ()]
    return []


def _package_version(top: str) -> str:
    module = sys.modules.get(top)
    for name in packages_distributions().get(top, [top]):
        with suppress(PackageNotFoundError):
            return version(name)
    return str(getattr(module, "__version__", "unknown"))
