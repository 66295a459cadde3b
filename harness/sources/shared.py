"""Readings of files that several sources share: the splits of a table in a process, and by a shelf
(harness/data/shelf.py) the processes of a launch, and launches.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from inspect import getfile
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from harness.data import written
from harness.data.code import code_digest
from harness.data.content import digest
from harness.data.readings import Column, Columns
from harness.data.shelf import Read, current_shelf, read_in_memory
from harness.sources.device_files import with_parts
from harness.sources.listing import Files
from harness.sources.split import Known, Part, Rule, rows_of

Reading = TypeVar("Reading")
_SETTLED_S = 2.0  # the coarsest precision of modification times in file systems
_PACKAGES = (
    *("pyarrow", "numpy", "pandas", "python-calamine", "h5py", "pyedflib", "wfdb"),
    *("pillow", "pillow_heif", "soundfile", "av"),
)
_MANY = 2**18  # rows of which a part is chosen once, not by each process
_IN_USE: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()


def read_shared(
    files: Files,
    settings: Hashable,
    read: Read,
    form: Callable[[Mapping[str, Column], Any], Reading],
    *,
    keep: bool = True,
) -> Reading:
    """What `form` makes of the columns that `read` fills and of its state after that; or what it
    made of the same files, fields of their paths and settings, if that is in use.

    Files that were modified in the last seconds are read again: they may have changed again within
    the precision of their times. Without `keep` the reading is shared in this launch alone.
    """
    shelf, paths = current_shelf(), with_parts(files.present())
    if shelf is not None and shelf.is_kept and not keep:
        shelf = None
    fields = tuple((name, tuple(values)) for name, values in sorted(files.fields.items()))
    states = _states_of(paths)
    key: Hashable = None if states is None else (settings, fields, states)
    if shelf is not None:
        on_shelf = shelf.key((_version(), settings, fields, list(files.paths)), paths)
        key = None if states is None else (shelf.directory, on_shelf)
    found: Reading | None = None if key is None else _IN_USE.get(key)
    if found is None:
        opened = read_in_memory(read) if shelf is None else shelf.open(on_shelf, read)
        found = form(*opened)
        if key is not None:
            _IN_USE[key] = found
    return found


class _Chosen:
    """The rows of a part."""

    def __init__(self, columns: Mapping[str, Any], state: Any) -> None:
        self.rows: NDArray[np.int64] = columns["rows"]


def shared_rows(
    files: Files,
    settings: Hashable,
    part: Part,
    rule: Rule | None,
    known: Known,
    count: int,
    order: Callable[[NDArray[np.int64]], NDArray[np.int64]] = lambda rows: rows,
) -> NDArray[np.int64]:
    """`rows_of` a part of what was read of files with these settings, as `order` gives them; chosen
    once for all processes and launches if the rule is one of ours.
    """
    said = _said_by(rule)

    def choose() -> NDArray[np.int64]:
        return order(rows_of(part, rule, known, count))

    if said is None or current_shelf() is None or count < _MANY:
        return choose()

    def read(columns: Columns) -> None:
        columns.append({"rows": choose()}, None)

    return read_shared(files, (settings, part, said), read, _Chosen).rows


def _said_by(rule: Any) -> str | None:
    """What a rule follows from, as text; None if its class is not one of ours."""
    if rule is None:
        return ""
    if type(rule).__module__ != rows_of.__module__:
        return None
    parts = {
        name: _said_by(of) if name == "_within" else repr(of) for name, of in vars(rule).items()
    }
    return None if None in parts.values() else f"{type(rule).__name__}{sorted(parts.items())}"


@cache
def _version() -> str:
    """What changes when files may be read otherwise: the code of the readers, and the packages that
    they read with.
    """
    files = (*sorted(Path(__file__).parent.glob("*.py")), Path(getfile(written)))
    code = code_digest(b"".join(path.read_bytes() for path in files))
    packages = []
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            packages.append([name, version(name)])
    return digest([code, packages])


def _states_of(paths: Sequence[Path]) -> Hashable | None:
    """Sizes and times of files; None if one of them was modified in the last seconds."""
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
