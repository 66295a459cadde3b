"""Matrices of an evaluation in a run's records: small ones in the record, a large one in a file."""

import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.bounded import open_regular
from harness.durable import replace

TABLES = "tables"
MOST_CELLS = 65_536  # of 256 classes; with 5,000 each record would have 150 MB


def to_record(directory: Path, name: str, table: NDArray[Any]) -> Any:
    """How a matrix (R, C) stands in a record: its rows, or beyond MOST_CELLS {"file", "shape"},
    where the file holds the newest of this name. Raises OSError.
    """
    if table.size <= MOST_CELLS:
        return table.tolist()
    file = Path(TABLES) / f"{re.sub('[^A-Za-z0-9_]+', '-', name)}.npy"
    path = directory / file
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as opened:
            np.save(opened, table, allow_pickle=False)
        replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return {"file": str(file), "shape": list(table.shape)}


def read_table(directory: Path, value: Any) -> Any:
    """The rows of a matrix, or the array of its file; None if there is none that can be read.

    A file is looked for under its name in `directory`/tables alone, whatever a record says.
    """
    if not isinstance(value, Mapping):
        return value
    path = directory / TABLES / os.path.basename(str(value.get("file", "")))
    try:
        open_regular(path, links=False).close()
        # Mapped, so that a header that promises more than the file has asks for no memory
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
