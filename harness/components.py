"""Components by dotted path: `{_target_: torch.optim.AdamW, lr: 1e-3}` is
`torch.optim.AdamW(lr=1e-3)`; `pkg.mod:Name` says where the module ends.

A component is a mapping with `_target_`; its other keys are arguments by name, which may hold
components again, also inside lists and mappings. Nothing is registered anywhere: a user's own
module works like ours. `check` imports the module of a target but calls nothing.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin

from harness.errors import ConfigError, HarnessError
from harness.hidden import Reference
from harness.wording import Keys, Mistake, closest, did_you_mean, dotted, origin, short_repr

TARGET = "_target_"
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

# Whose annotations are true, and of those the ones that no text is
_TYPED = ("torch.", "harness.")
_NUMBERS = ("int", "float", "bool", "Tensor", "NoneType")


# The code of a component of `__main__`, by a digest (data/notebook.py)
SOURCE = "_source_"


# Of a treatment: an argument of the harness, not of the target (data/preparing.py)
STAGE = "_stage_"


def build(
    spec: Mapping[str, Any], where: str, *, inherit: Collection[str] = (), **given: Any
) -> Any:
    """Call the target with the spec's arguments, nested components built first, and with `given`,
    which the harness names itself.

    inherit: which of `given` the nested components get too, where they take them. Raises
    ConfigError that says where and what; a HarnessError of the target keeps its type.
    """
    if is_function(spec, where):
        return partial(find(spec[TARGET]), **{k: v for k, v in spec.items() if k != TARGET})
    mistakes = [mistake.within(where) for mistake in _misfits(spec, (), given)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    arguments = {
        name: _build_nested(value, f"{where}.{name}", {one: given[one] for one in inherit})
        for name, value in spec.items()
        if name not in (TARGET, SOURCE)
    }
    try:
        return find(spec[TARGET])(**arguments, **given)
    except HarnessError as error:
        raise type(error)(f"{where}: {error}") from error
    except Exception as error:  # a target may raise anything for arguments it does not like
        raise ConfigError(
            f"{where}: {spec[TARGET]} cannot be built: {type(error).__name__}: {error} "
            f"({origin(error)}). Check its arguments.{_timm_name(error)}{_slip(spec, where)}"
        ) from error


def _timm_name(error: Exception) -> str:
    """A hint at the network of timm that was meant, where it knows none of the name."""
    unknown = re.match(r"Unknown model \((.*)\)", str(error))
    if unknown is None or "timm" not in sys.modules:
        return ""
    return did_you_mean(unknown[1], sys.modules["timm"].list_models())


def is_function(spec: Mapping[str, Any], where: str) -> bool:
    """Whether a component is a function that is to be handed over, not called: a `loss` that still
    needs the outputs and the target.
    """
    if where.rpartition(".")[2] != "loss":
        return False
    try:
        target = find(spec[TARGET])
        if not inspect.isroutine(target):
            return False
        parameters = inspect.signature(target).parameters.values()
    except (ConfigError, TypeError):  # said by `_misfits`
        return False
    except ValueError:  # a function written in C that does not tell its signature
        return True
    open_ = [one for one in parameters if one.default is one.empty and one.name not in spec]
    return len([one for one in open_ if one.kind in _BY_POSITION]) == 2


def _slip(spec: Mapping[str, Any], where: str) -> str:
    """A hint at a mapping among the arguments that may have been meant as a component."""
    for keys, nested in inside(spec, ()):
        if TARGET not in nested:
            wrong = closest(TARGET, [key for key in nested if isinstance(key, str)], 0.75)
            if wrong is not None:
                return f" Is {dotted((*keys, wrong), where)} meant to be {TARGET}?"
    return ""


def check(spec: Any, where: str, *given: str) -> list[str]:
    """What is wrong with a component, nested ones included, without calling anything: one line a
    mistake, each with its keys.

    given: names of arguments that the harness passes itself.
    """
    return [mistake.within(where) for mistake in find_mistakes(spec, given)]


def find_mistakes(
    spec: Any, given: Collection[str] = (), inherit: Collection[str] = ()
) -> Iterator[Mistake]:
    """As `check`, each mistake with the keys that lead to it from the spec; `inherit` as in
    `build`.
    """
    yield from _misfits(spec, (), given)
    if isinstance(spec, Mapping):
        for keys, nested in inside(spec, ()):
            if TARGET in nested and not is_function(nested, dotted(keys)):
                yield from _misfits(nested, keys, _inherited_names(nested, inherit))
            elif TARGET in nested:
                continue
            else:
                # `target` or `targets` are valid names within an argument.
                special = [key for key in nested if isinstance(key, str) and key.strip("_") != key]
                wrong = closest(TARGET, special, 0.75)
                if wrong is not None:
                    yield Mistake((*keys, wrong), f"no such special key. Did you mean {TARGET}?")


def targets_in(spec: Any) -> list[str]:
    """The dotted paths that a component, or anything that holds some, names."""
    return [target_of(one) for one in components_in(spec)]


def components_in(value: Any) -> Iterator[Mapping[Any, Any]]:
    """Every component in a value, at any depth, and the value itself if it is one."""
    for one in (value, *(nested for _, nested in inside(value, ()))):
        if isinstance(one, Mapping) and TARGET in one:
            yield one


def target_of(spec: Mapping[Any, Any]) -> str:
    """The dotted path that a component names."""
    return str(spec[TARGET]).replace(":", ".")


def replaced(value: Any, others: Mapping[Keys, Any], keys: Keys = ()) -> Any:
    """A component, or anything that holds some, with others at the keys that lead to them."""
    if keys in others:
        return others[keys]
    if isinstance(value, Mapping):
        return {key: replaced(item, others, (*keys, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replaced(item, others, (*keys, index)) for index, item in enumerate(value)]
    return value


def without_stage(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A treatment's spec as its target takes it."""
    return {name: value for name, value in spec.items() if name != STAGE}


def find(path: Any) -> Any:
    """What a dotted path leads to; its module is imported. Raises ConfigError that says which name
    is missing.
    """
    return walk(path)[-1]


def _build_nested(value: Any, where: str, given: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        if TARGET in value:
            names = _inherited_names(value, given)
            return build(value, where, inherit=names, **{name: given[name] for name in names})
        return {key: _build_nested(item, f"{where}.{key}", given) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_build_nested(item, f"{where}[{index}]", given) for index, item in enumerate(value)]
    if isinstance(value, Reference):
        if missing := value.missing():
            raise ConfigError(
                f"{where}: {value}: {missing[0]} is not set in the environment. Set it."
            )
        return value.value()
    return value


def _inherited_names(spec: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Those of the names that are arguments of the spec's target."""
    if not names:
        return []
    try:
        takes = inspect.signature(find(spec[TARGET])).parameters
    except (ConfigError, TypeError, ValueError):  # said by `_misfits`
        return []
    return [name for name in names if name in takes]


def inside(value: Any, keys: Keys) -> Iterator[tuple[Keys, Mapping[Any, Any]]]:
    """Every mapping inside of a value, however deep, with the keys that lead to it; not the value
    itself.
    """
    items = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    for key, item in items:
        here = (*keys, key)
        if isinstance(item, Mapping):
            yield here, item
        yield from inside(item, here)


def _misfits(spec: Any, keys: Keys, given: Collection[str]) -> Iterator[Mistake]:
    """Why the spec's target cannot be called with its arguments, nested components aside."""
    if not isinstance(spec, Mapping) or TARGET not in spec:
        yield Mistake(
            keys,
            f"{short_repr(spec)} is not a component. Give a mapping with {TARGET}: pkg.mod.Name "
            "and its arguments.",
        )
        return
    path = spec[TARGET]
    try:
        target = find(path)
        _require_callable(target, path)
    except ConfigError as error:
        yield Mistake((*keys, TARGET), str(error))
        return
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # some classes written in C do not tell their signature
        return
    arguments = [name for name in spec if name not in (TARGET, SOURCE)]
    for mistake in _argument_mistakes(path, parameters, arguments, given):
        yield Mistake((*keys, *mistake.keys), mistake.message)
    for one in parameters if path.startswith(_TYPED) else ():
        value = spec.get(one.name)
        # What a reference stands for is looked up later
        is_text = isinstance(value, str) and not isinstance(value, Reference)
        if is_text and _is_number(one.annotation):
            message = f"{short_repr(value)} is no number, and {path} takes one here. Give a number."
            yield Mistake((*keys, one.name), message)


def _is_number(annotation: Any) -> bool:
    """Whether it says numbers and nothing else, such as `float | Tensor`."""
    is_union = get_origin(annotation) in (Union, UnionType)
    kinds = get_args(annotation) if is_union else (annotation,)
    return all(getattr(one, "__name__", str(one)) in _NUMBERS for one in kinds)


def _require_callable(target: Any, path: str) -> None:
    if not callable(target):
        of_module = isinstance(target, ModuleType)
        kind = "a module" if of_module else f"a value of type {type(target).__name__}"
        name = path.rpartition(".")[2].lower()
        close = did_you_mean(path, (f"{path}.{one}" for one in dir(target) if one.lower() == name))
        raise ConfigError(
            f"{path} is {kind}, not a class or "
            f"function.{close or ' Give something that can be called.'}"
        )
    if inspect.isabstract(target):
        raise ConfigError(
            f"{path} is abstract and cannot be instantiated. Give a concrete subclass."
        )


def _argument_mistakes(
    path: str,
    parameters: Sequence[inspect.Parameter],
    arguments: Sequence[Any],
    given: Collection[str],
) -> Iterator[Mistake]:
    """What is wrong with arguments by name, and with those that the harness gives itself."""
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    takes = {one.name for one in named}
    anything = any(one.kind == one.VAR_KEYWORD for one in parameters)
    for name in arguments:
        if name in given:
            yield Mistake((name,), f"the harness passes this argument to {path} itself. Remove it.")
        elif (
            not isinstance(name, str)
            or (name.startswith("_") and name.endswith("_"))
            or (name not in takes and not anything)
        ):
            free = sorted(takes - set(given))
            hint = did_you_mean(name, free) or f" It takes {', '.join(free) or 'none'}."
            yield Mistake((name,), f"{path} has no argument of this name.{hint}")
    for name in given:
        if name not in takes and not anything:
            yield Mistake(
                (TARGET,),
                f"{path} takes no argument {name}, which the harness passes here. Use something "
                "that does.",
            )
    missing = [
        one.name
        for one in named
        if one.default is one.empty and one.name not in (*arguments, *given)
    ]
    if missing:
        yield Mistake(
            (),
            f"{path} needs {', '.join(missing)}. Give {'it' if len(missing) == 1 else 'them'} "
            f"next to {TARGET}.",
        )
    nameless = [
        one.name
        for one in parameters
        if one.kind == one.POSITIONAL_ONLY and one.default is one.empty
    ]
    if nameless:
        yield Mistake(
            (TARGET,),
            f"{path} takes {', '.join(nameless)} only by position. Wrap it in a function with "
            "keyword arguments.",
        )


def walk(path: Any) -> list[Any]:
    """Every object on the way along a dotted path, one for each name."""
    names = path.replace(":", ".", 1).split(".") if isinstance(path, str) else []
    if len(names) < 2 or not all(name.isidentifier() for name in names):
        raise ConfigError(
            f"{short_repr(path)} is not a dotted path. Write pkg.mod.Name or pkg.mod:Name."
        )
    # So many names are modules for certain
    num_modules = len(path.partition(":")[0].split(".")) if ":" in path else 1
    trail: list[Any] = []
    for index, name in enumerate(names):
        so_far = ".".join(names[: index + 1])
        try:
            trail.append(
                _step(
                    trail[-1] if trail else None,
                    name,
                    so_far,
                    is_module=index < num_modules,
                    in_module=":" in path,
                )
            )
        except ConfigError:
            raise
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{so_far} cannot be imported: it needs {error.name or error}, which is not "
                "installed. Install it."
            ) from error
        except (Exception, SystemExit) as error:
            # Importing runs the module, which may raise anything
            raise ConfigError(
                f"{so_far} cannot be imported: {type(error).__name__}: {error}. Fix the module."
            ) from error
    return trail


def _step(here: Any, name: str, so_far: str, *, is_module: bool, in_module: bool) -> Any:
    """The next object on the way: an attribute of `here`, or else a module inside the package."""
    parent = so_far.rpartition(".")[0]
    if not is_module:
        try:
            return getattr(here, name)
        except AttributeError:
            pass
    if is_module or (isinstance(here, ModuleType) and not in_module):
        try:
            return importlib.import_module(so_far)
        except ModuleNotFoundError as error:
            if error.name != so_far:
                raise
    if not parent:
        close = did_you_mean(name, (one.name for one in pkgutil.iter_modules()))
        raise ConfigError(
            f"there is no module {name}.{close or ' Install it, or add its folder to PYTHONPATH.'}"
        )
    inner = [one.name for one in pkgutil.iter_modules(getattr(here, "__path__", []))]
    close = did_you_mean(name, {*inner, *(name for name in dir(here) if not name.startswith("_"))})
    kind = "module" if isinstance(here, ModuleType) else type(here).__name__
    raise ConfigError(f"the {kind} {parent} has no {name}.{close or ' Check the spelling.'}")
