"""What files hold: the SHA-256 of their bytes, remembered from launch to launch.

A remembered hash counts as long as size, time of modification, time of change and inode are those
it was taken at. A rewrite of the same size that sets the time of modification back still moves the
time of change, which nobody can set; a file that changed within the two seconds before it was
hashed is hashed again, since it may have changed once more without a clock's showing it (git's
"racy" entries).
"""

import hashlib
import importlib
import inspect
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import components
from harness.components import STAGE, TARGET
from harness.data.source import version_of
from harness.durable import replace
from harness.errors import DataError


def identity(spec: Any) -> Any:
    """A spec with the versions of what it names: a class's `version`, and for code from elsewhere
    the version or the bytes of its module.
    """
    if isinstance(spec, Mapping):
        plain = {key: identity(value) for key, value in spec.items() if key != STAGE}
        if TARGET not in spec:
            return plain
        target = components.find(spec[TARGET])
        return {
            **plain,
            "version": [version_of(target), _module_version(inspect.getmodule(target))],
        }
    return [identity(item) for item in spec] if isinstance(spec, list | tuple) else spec


def _module_version(module: ModuleType | None) -> str:
    if module is None or module.__name__.partition(".")[0] == "harness":
        return ""
    package = importlib.import_module(module.__name__.partition(".")[0])
    version = getattr(package, "__version__", None)
    if version is not None:
        return str(version)
    file = inspect.getsourcefile(module)
    return "" if file is None else digest(Path(file).read_text())


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
        rows = []
        try:
            with ThreadPoolExecutor(_THREADS) as threads:
                for path, row in zip(paths, threads.map(self._look_at, paths), strict=True):
                    check_leave()
                    rows.append([str(path), row[-1]])
                    if time.time_ns() - max(int(str(row[1])), int(str(row[2]))) > RACY_NS:
                        self._known[str(path.absolute())] = row
        finally:
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
                f"{path}: {error.strerror}. Make the file readable, or take it out of the source."
            ) from error

    def _remember(self) -> None:
        temporary = self._memo.with_suffix(f".{os.getpid()}.tmp")
        with suppress(OSError):  # a read-only place: all is hashed again next time
            temporary.write_text(json.dumps(self._known))
            replace(temporary, self._memo)
