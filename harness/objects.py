"""Objects of this process that a config names: a network of a notebook, a source of arrays.

In a config they are `{_target_: harness.objects.take, at: network, name: __main__.Net, source: ...,
state: ...}`: where they stand, the class, a digest of its code, and one of what distinguishes two
objects of the class. Only this process has them.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any
from weakref import WeakValueDictionary

from harness.errors import ConfigError

TAKE = "harness.objects.take"
Key = tuple[str, str, str, str]  # at, name, source, state
Objects = dict[Key, Any]

_present: ContextVar[Mapping[Key, Any]] = ContextVar("present", default={})  # noqa: B039 - a constant
# Those that are still in use elsewhere, by key and identity: one may end before an equal one
_known: WeakValueDictionary[tuple[Key, int], Any] = WeakValueDictionary()


@contextmanager
def present(objects: Mapping[Key, Any]) -> Iterator[None]:
    """Inside, in this thread, `take` finds these; afterwards as long as the caller keeps them."""
    token = _present.set(objects)
    for key, value in objects.items():
        with suppress(TypeError):  # a list, a number
            _known[key, id(value)] = value
    try:
        yield
    finally:
        _present.reset(token)


def take(at: str, name: str, source: str, state: str) -> Any:
    """The object; a network is copied, so that the given one stays as it is. Raises ConfigError."""
    given, key = _present.get(), (at, name, source, state)
    alive = (value for (other, _), value in list(_known.items()) if other == key)
    found = given[key] if key in given else next(alive, None)
    if found is None:
        others = [other for other in given if other[0] == at]
        why = (
            f"the one that was given is another: {dict(zip(_WORDS, others[0][1:], strict=True))}"
            if others
            else "this process does not have it"
        )
        how = "fermarsi.load(run, network=...)" if at == "network" else "the same fermarsi.Config"
        raise ConfigError(
            f"the run was made with an object of Python, an instance of {name} (source {source}, "
            f"state {state}), and {why}. Give it: {how}."
        )
    return copy.deepcopy(found) if hasattr(found, "load_state_dict") else found


_WORDS = ("name", "source", "state")
