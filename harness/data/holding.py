"""Directories that a process makes, and that no other one deletes meanwhile.

A lock of the system (flock) on a file in the directory: one that dies holds nothing. Where a file
system has no such locks, nothing is held, and whoever deletes must know that nothing is being made.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from harness.durable import make_directory

LOCK = "lock"


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Make a directory, if it is not there, and hold it, also beside others. Raises OSError."""
    lock = None
    while lock is None:
        make_directory(directory)
        lock = hold(directory)
    try:
        yield
    finally:
        with lock, suppress(OSError):  # others hold it, or it is gone
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (directory / LOCK).unlink()


def hold(directory: Path) -> TextIO | None:
    """What holds a directory until it is closed; None if the directory was deleted meanwhile.
    Raises OSError.
    """
    try:
        lock = (directory / LOCK).open("a")
    except FileNotFoundError:
        return None
    with suppress(OSError):  # no locks here
        fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        is_same = os.path.samestat(os.fstat(lock.fileno()), (directory / LOCK).stat())
    except FileNotFoundError:
        is_same = False
    if not is_same:
        lock.close()
    return lock if is_same else None


@contextmanager
def free(directory: Path) -> Iterator[bool]:
    """Whether no process holds a directory; if so, none does until the end. Raises OSError."""
    try:
        lock = (directory / LOCK).open("r+")
    except FileNotFoundError:
        yield True
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # no locks here
            pass
        yield True
