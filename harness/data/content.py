"""What files hold: the SHA-256 of their bytes, remembered from launch to launch.

A remembered hash counts as long as size, time of modification, time of change and inode are those
it was taken at. A rewrite of the same size that sets the time of modification back still moves the
time of change, which nobody can set; a file that changed within the two seconds before it was
hashed is hashed again, since it may have changed once more without the clock showing it (git's
"racy" entries).
"""

import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import components
from harness.components import STAGE, TARGET
from harness.data.code import module_version
from harness.data.source import version_of
from harness.durable import write_json
from harness.errors import DataError


def identity(spec: Any, *, code: bool = True) -> Any:
    """A spec with the versions of what it names: a class's `version`, and with `code` that of its
    module, for code from elsewhere.
    """
    if isinstance(spec, Mapping):
        plain = {key: identity(value, code=code) for key, value in spec.items() if key != STAGE}
        if TARGET not in spec:
            return plain
        target = components.find(spec[TARGET])
        module = module_version(inspect.getmodule(target)) if code else ""
        return {**plain, "version": [version_of(target), module]}
    if isinstance(spec, list | tuple):
        return [identity(item, code=code) for item in spec]
    return spec


RACY_NS = 2 * 10**9


_THREADS = 4


def digest(value: object) -> str:
    """The SHA-256 of a JSON-able value; what JSON does not know counts by its text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


class Hashes:
    """SHA-256 of files; `memo`: a JSON file where they are remembered. Rank 0 only."""

    def __init__(self, memo: Path) -> None:
        self._memo = memo
        self._known: dict[str, list[object]] = {}
        with suppress(OSError, ValueError):  # none yet, or half of one: all is hashed again
            self._known = json.loads(memo.read_text())

    def of(self, paths: Sequence[Path], check_leave: Callable[[], None] = lambda: None) -> str:
        """One digest of the names and bytes of files.

        `check_leave` is called between them. Raises DataError for one that cannot be read.
        """
        rows, is_new = [], not self._memo.exists()
        try:
            with ThreadPoolExecutor(_THREADS) as threads:
                for path, row in zip(paths, threads.map(self._look_at, paths), strict=True):
                    check_leave()
                    rows.append([str(path), row[-1]])
                    is_racy = time.time_ns() - max(int(str(row[1])), int(str(row[2]))) <= RACY_NS
                    if not is_racy and self._known.get(key := str(path.absolute())) != row:
                        self._known[key], is_new = row, True
        finally:
            if is_new:
                self._remember()  # an interrupted launch does not hash again what it has hashed
        return digest(rows)

    def _look_at(self, path: Path) -> list[object]:
        """[size, modified, changed, inode, SHA-256]"""
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                stamp: list[object] = [
                    found.st_size,
                    found.st_mtime_ns,
                    found.st_ctime_ns,
                    found.st_ino,
                ]
                known = self._known.get(str(path.absolute()))
                return (
                    known
                    if known and known[:-1] == stamp
                    else [*stamp, hashlib.file_digest(file, "sha256").hexdigest()]
                )
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror}. Make the file readable, or remove it from the source."
            ) from error

    def _remember(self) -> None:
        with suppress(OSError):  # a read-only folder: all is hashed again next time
            write_json(self._memo, self._known, sync=False)
