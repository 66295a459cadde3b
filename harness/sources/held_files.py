"""Files that are decoded at start-up and held in memory: once for all processes of a machine."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.readings import Column, Columns
from harness.data.shelf import read_in_memory, report
from harness.errors import DataError
from harness.sources.files import OnError, read_all, tell_skipped
from harness.sources.listing import Files
from harness.sources.shared import read_shared

Rows = Mapping[str, NDArray[Any]]


@dataclass
class Held:
    """What all files hold, one after another: columns of rows, where each file `begins` (F,) in
    them, and by its number a message for each file that was skipped.
    """

    columns: Mapping[str, Any]
    begins: NDArray[np.int64]
    skipped: dict[int, str]

    @property
    def values(self) -> NDArray[Any]:
        """The rows (N, ...) of the samples."""
        values: NDArray[Any] = self.columns["values"]
        return values

    def lengths(self) -> NDArray[np.int64]:
        """How many rows each file has, (F,)."""
        return np.diff(self.begins, append=len(self.values))


def read_held(
    files: Files,
    settings: Hashable | None,
    read_rows: Callable[[Path], Rows],
    check: Callable[[Path], Any],
    on_error: OnError,
) -> Held:
    """The rows of all files, which `read_rows` gives of one, `values` among their columns.

    `settings`: what else they depend on; if that is not known, None: they are not shared. `check`
    sees the first file before a reading goes on that was interrupted, so that others are compared
    with it. Raises DataError.
    """
    plain = Files(files.paths, {})
    read = _reads(files, read_rows, check, on_error)
    if settings is None:
        return _formed(*read_in_memory(read))
    return read_shared(plain, (settings, on_error), read, _formed, media=True)


def _reads(
    files: Files, read_rows: Callable[[Path], Rows], check: Callable[[Path], Any], on_error: OnError
) -> Callable[[Columns], None]:
    paths = files.paths

    def read(columns: Columns) -> None:
        state = columns.state or {"done": 0, "first": None, "failed": {}}
        begin, failed, number = state["done"], state["failed"], 0
        if state["first"] is not None:
            check(Path(state["first"]))

        def read_file(path: Path) -> None:
            nonlocal number
            while paths.name(number) != str(path):
                number += 1
            if number < begin:
                if str(number) in failed:
                    raise DataError(failed[str(number)])
                return
            report("reading files", number, len(paths))
            try:
                rows = read_rows(path)
            except DataError as error:
                failed[str(number)] = str(error)
                raise
            failed.pop(str(number), None)  # it was tried again
            marks = np.zeros(len(rows["values"]), dtype=np.bool_)
            marks[0] = True
            state["done"], state["first"] = number + 1, state["first"] or str(path)
            columns.append({**rows, "begin": marks}, state)

        kept, _, skipped = read_all(paths, read_file, on_error, "files", tell=False)
        left = np.setdiff1d(np.arange(len(paths)), kept).tolist()
        state["failed"] = dict(zip(map(str, left), skipped, strict=True))
        columns.state = state

    return read


def _formed(columns: Mapping[str, Column], state: Any) -> Held:
    skipped = {int(number): message for number, message in state["failed"].items()}
    rows: dict[str, Any] = dict(columns)
    begins = np.flatnonzero(rows.pop("begin"))
    tell_skipped([*skipped.values()], len(begins) + len(skipped))
    return Held(rows, begins, skipped)
