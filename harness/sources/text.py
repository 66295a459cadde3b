"""Text files as tokens."""

from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError

Part = Literal["all", "train", "val"]


class Bytes:
    """Windows of text files, byte by byte: each byte of a file but its first (and less than a window at its end) is to be predicted exactly once.

    A sample: `tokens` (length + 1,) int64 in 0 … 255, for `harness.tasks.LanguageModelling`; a window begins with the last byte of the one before
    it. No window reaches from one file into another. `files`: a path, a pattern such as texts/*.txt, or a list of them; those of a pattern in the
    order of their names. `part`: "val" is the last `held_out` share of each file's windows, "train" the others. Raises DataError for a file that is
    missing or shorter than a window.
    """

    def __init__(self, files: str | Sequence[str], length: int, part: Part = "all", held_out: float = 0.1) -> None:
        if length < 1:
            raise ConfigError(f"length: {length}: at least one byte has to be predicted.")
        if part not in get_args(Part):
            raise ConfigError(f"part: {part!r} is none of all, train, val.")
        if not 0 < held_out < 1:
            raise ConfigError(f"held_out: {held_out} is outside of (0, 1).")
        patterns = [files] if isinstance(files, str) else list(files)
        self._texts = [_read(path, length) for pattern in patterns for path in _paths(pattern)]
        self._reach = np.arange(length + 1)
        windows = []
        for number, text in enumerate(self._texts):
            count = (len(text) - 1) // length
            kept = count - max(1, round(held_out * count))
            chosen = {"all": range(count), "train": range(kept), "val": range(kept, count)}[part]
            windows.append(np.array([(number, index * length) for index in chosen], dtype=np.int64).reshape(-1, 2))
        self._windows = np.concatenate(windows)  # (N, 2): which text, and where the window begins

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, begin = self._windows[index]
        return {"tokens": self._texts[number][begin + self._reach].astype(np.int64)}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{tokens: (B, length + 1)}"""
        return {"tokens": np.stack([self[index]["tokens"] for index in indices])}


def _paths(pattern: str) -> list[Path]:
    expanded = str(Path(pattern).expanduser())
    found = sorted(path for name in glob(expanded, recursive=True) if (path := Path(name)).is_file())
    if not found:
        raise DataError(f"{pattern}: no such file (looked in {Path(expanded).absolute().parent}). Give the path of a text file, or a pattern.")
    return found


def _read(path: Path, length: int) -> NDArray[np.uint8]:
    if path.stat().st_size < length + 1:
        raise DataError(f"{path}: {path.stat().st_size} bytes; a window needs {length + 1}. Give a longer file or a smaller length.")
    return np.memmap(path, dtype=np.uint8, mode="r")
