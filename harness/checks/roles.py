"""Which columns of a sample are inputs of the network and which are targets, by the task."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness import components
from harness.components import TARGET
from harness.tasks.classification import Classification
from harness.tasks.joint import Joint


@dataclass(frozen=True)
class Role:
    """A target. `prefix`: of its head's metrics; `ignored`: the class that is not counted."""

    target: str
    is_class: bool
    prefix: str = ""
    ignored: str | None = None


@dataclass(frozen=True)
class Roles:
    """The input columns of the network, and its targets."""

    inputs: tuple[str, ...]
    targets: tuple[Role, ...]

    @property
    def classes(self) -> tuple[Role, ...]:
        """The targets that are classes."""
        return tuple(role for role in self.targets if role.is_class)


def roles_of(task: Mapping[str, Any]) -> Roles:
    """The roles that a task's spec gives to columns; for a user's own task, its arguments `input`
    and `target`.
    """
    specs = dict(_tasks(task))
    inputs = dict.fromkeys(name for spec in specs.values() for name in _names(spec.get("input")))
    return Roles(
        tuple(inputs),
        tuple(role for prefix, spec in specs.items() for role in _targets(prefix, spec)),
    )


def _tasks(task: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if _is(task, Joint):
        for head, spec in task["heads"].items():
            yield f"{head}_", spec
    else:
        yield "", task


def _targets(prefix: str, spec: Mapping[str, Any]) -> Iterator[Role]:
    ignored = spec.get("ignore_index")
    for name in _names(spec.get("target")):
        yield Role(
            name, _is(spec, Classification), prefix, None if ignored is None else str(ignored)
        )


def _is(spec: Mapping[str, Any], kind: type) -> bool:
    target = components.find(spec[TARGET])
    return isinstance(target, type) and issubclass(target, kind)


def _names(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    values = value if isinstance(value, list | tuple) else [value]
    return [name for name in values if isinstance(name, str)]
