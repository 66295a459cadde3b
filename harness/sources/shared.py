"""Readings of files that several sources of a process share, such as the splits of a table."""

import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from harness.sources.device_files import with_parts
from harness.sources.files import Files

Reading = TypeVar("Reading")
_SETTLED_S = 2.0  # the coarsest precision of modification times in file systems
_IN_USE: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()


def read_shared(files: Files, settings: Hashable, read: Callable[[], Reading]) -> Reading:
    """What `read` returns, or what it returned for the same files, fields of their paths and
    settings if that is in use.

    Files that were modified in the last seconds are read again: they may have changed again within
    the precision of their times.
    """
    states = _states_of(with_parts(files.paths))
    if states is None:
        return read()
    fields = frozenset((name, tuple(values)) for name, values in files.fields.items())
    key = settings, fields, states
    found: Reading | None = _IN_USE.get(key)
    if found is None:
        found = read()
        _IN_USE[key] = found
    return found


def _states_of(paths: Sequence[Path]) -> Hashable | None:
    try:
        found = [(path, path.stat()) for path in paths]
    except OSError:
        return None
    settled_ns = time.time_ns() - int(_SETTLED_S * 1e9)
    if any(max(of.st_mtime_ns, of.st_ctime_ns) > settled_ns for _, of in found):
        return None
    return tuple(
        (path, of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns)
        for path, of in found
    )
