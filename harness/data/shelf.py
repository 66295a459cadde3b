"""Where readings of files are kept for other parts of a table, processes and launches: in the
store, or for one launch in a temporary directory.
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data.content import digest
from harness.data.holding import LOCK, free, held, hold
from harness.data.readings import (
    MANIFEST,
    Column,
    Columns,
    InMemory,
    OnDisk,
    clear,
    read_columns,
)
from harness.errors import DataError

READINGS = "readings"  # in a store
_TEMPORARY = "fermarsi-readings-"
Read = Callable[[Columns], None]


@dataclass
class Shelf:
    """A directory of readings.

    `identify`: a digest of files' content, or of their sizes and times. `is_kept`: for other
    launches. `make`: whether a reading that is not there is made; else it is on the shelf
    `otherwise`. `used`: the keys that were asked for.
    """

    directory: Path
    identify: Callable[[Sequence[Path]], str]
    is_kept: bool
    make: bool = True
    otherwise: "Shelf | None" = None
    check_leave: Callable[[], None] = lambda: None
    progress: Callable[[str, int, int], None] = lambda what, done, of: None
    used: set[str] = field(default_factory=set)

    def key(self, settings: object, paths: Sequence[Path]) -> str:
        """The key of what is read of files with these settings."""
        key = digest([repr(settings), list(map(str, paths)), self.identify(paths)])[:32]
        self.used.add(key)
        return key

    def open(self, key: str, read: Read) -> tuple[Mapping[str, Column], Any]:
        """Columns of a reading, mapped, and the reader's state after it; made if it is not there.
        Raises DataError.
        """
        path = self.directory / key
        try:
            if (path / MANIFEST).exists():
                return read_columns(path)
            if self.make:
                return self._made(path, read)
        except (OSError, ValueError) as error:
            if self.is_kept:
                raise DataError(
                    f"{path}: {error}. Free some space or make it accessible, or set another "
                    "data.store.dir; or delete the directory: it will be made again."
                ) from error
            warnings.warn(
                f"{path}: {error}: each process holds a copy of what is read. Set TMPDIR to a "
                "directory with more space, or data.store.dir.",
                stacklevel=2,
            )
        return read_in_memory(read) if self.otherwise is None else self.otherwise.open(key, read)

    def _made(self, path: Path, read: Read) -> tuple[Mapping[str, Column], Any]:
        try:
            with held(path):
                columns = OnDisk(path, sync=self.is_kept)
                read(columns)
                return columns.finish(), columns.state
        except (OSError, DataError):
            # Another process may have been quicker, and cleared away what this one built on
            if not (path / MANIFEST).exists():
                raise
            clear(path)
            return read_columns(path)


class Temporary:
    """A temporary directory for a shelf, which is deleted with `remove`, or if this process dies
    by the next one that makes one. Raises OSError.
    """

    def __init__(self) -> None:
        _remove_left(Path(tempfile.gettempdir()))
        lock = None
        while lock is None:  # another process may take it for one that was left
            self.path = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
            lock = hold(self.path)
        self._lock = lock

    def remove(self) -> None:
        """Delete it; what is mapped stays readable."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


@contextmanager
def temporary_readings(*, wanted: bool) -> Iterator[Path | None]:
    """Such a directory, if it is wanted and can be made."""
    made = None
    try:
        made = Temporary() if wanted else None
    except OSError as error:
        warnings.warn(
            f"{error}: each process holds a copy of the data. Set TMPDIR to a writable directory, "
            "or data.store.dir.",
            stacklevel=2,
        )
    try:
        yield None if made is None else made.path
    finally:
        if made is not None:
            made.remove()


def temporary_shelf(directory: Path) -> Shelf:
    """The shelf in such a directory, of this process or another one."""
    return Shelf(directory, _states, is_kept=False)


def _states(paths: Sequence[Path]) -> str:
    found = [path.stat() for path in paths]
    return digest([[of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns] for of in found])


def _remove_left(parent: Path) -> None:
    """Delete what processes that died have left."""
    for path in parent.glob(f"{_TEMPORARY}*"):
        # Of another user, or being deleted, or in use; without a lock it was made just now
        with suppress(OSError), free(path) as is_free:
            if is_free and (path / LOCK).exists():
                shutil.rmtree(path, ignore_errors=True)


def read_in_memory(read: Read) -> tuple[Mapping[str, Column], Any]:
    """Columns in this process, and the reader's state after them."""
    columns = InMemory()
    read(columns)
    return columns.finish(), columns.state


_SHELF: ContextVar[Shelf | None] = ContextVar("shelf", default=None)


def current_shelf() -> Shelf | None:
    """That of the source which is being built; None: readings stay in this process."""
    return _SHELF.get()


@contextmanager
def shelved(shelf: Shelf | None) -> Iterator[None]:
    """Sources that are built here keep their readings on the shelf."""
    token = _SHELF.set(shelf)
    try:
        yield
    finally:
        _SHELF.reset(token)


def report(what: str, done: int, of: int) -> None:
    """Tell how far a reading for the shelf is, and leave it if that is asked for."""
    shelf = _SHELF.get()
    if shelf is not None:
        shelf.check_leave()
        shelf.progress(what, done, of)
