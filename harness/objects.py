"""Objects of this process that a config names: a network of a notebook, a source of arrays.

In a config they are `{_target_: harness.objects.take, at: network, name: __main__.Net, source: ...,
state: ...}`: where they stand, the class, a digest of its code, and one of what distinguishes two
objects of the class. Only this process has them.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from harness.errors import ConfigError

TAKE = "harness.objects.take"
_present: ContextVar[Mapping[str, Any]] = ContextVar("present", default={})  # noqa: B039 - never changed


@contextmanager
def present(objects: Mapping[str, Any]) -> Iterator[None]:
    """Inside, in this thread, `take` finds these, by where they stand in a config."""
    token = _present.set(objects)
    try:
        yield
    finally:
        _present.reset(token)


def take(at: str, name: str, source: str, state: str) -> Any:
    """The object; a network is copied, so that the given one stays as it is. Raises ConfigError."""
    found = _present.get().get(at)
    if found is None:
        raise ConfigError(
            f"the run was made with an object of Python, an instance of {name}, which this process "
            f"does not have. Give it: fermarsi.load(run, network=...) for a network."
        )
    return copy.deepcopy(found) if hasattr(found, "load_state_dict") else found
