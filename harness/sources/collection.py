"""Collections of files that are a sample each: pictures, recordings of sound."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError
from harness.sources.files import OnError, class_names, find_files, read_each
from harness.sources.split import Part, Rule, rows_of

Keep = Literal["memory", "disk"]


class Collection:
    """One file a sample, an array called `what`, with its class's number under "label" if file names tell classes.

    A subclass says how a file is read; it is ready to do so before it calls this constructor. Raises ConfigError, and DataError that names the file.
    """

    def __init__(
        self, what: str, files: str | Sequence[str], part: Part, split: Rule | None, classes: Sequence[Any] | None, keep: Keep, on_error: OnError
    ) -> None:
        if keep not in ("memory", "disk"):
            raise ConfigError(f"keep: {keep!r} is neither memory nor disk.")
        self._what = what
        found = find_files(files)
        labels = found.fields.get("label")
        # Before the split and before files are left out: a class has its number whatever happens to some of its files.
        self.classes = None if labels is None else class_names(classes, labels, "label")
        found = found.chosen(rows_of(part, split, found.fields, len(found.paths)).tolist())
        self._arrays: NDArray[Any] | None = None
        if keep == "memory":
            self.files, arrays, self.skipped = read_each(found, self._read, on_error)
            self._arrays = np.stack(arrays)
        else:
            self.files, _, self.skipped = read_each(found, self._check, on_error)
        place = {name: number for number, name in enumerate(self.classes or ())}
        self._labels = None if labels is None else np.array([place[name] for name in self.files.fields["label"]], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{<what>: (B, ...), label: (B,)}"""
        arrays = np.stack([self._read(self.files.paths[index]) for index in indices]) if self._arrays is None else self._arrays[indices]
        return {self._what: arrays} if self._labels is None else {self._what: arrays, "label": self._labels[indices]}

    def _read(self, path: Path) -> NDArray[Any]:
        """The sample of a file. Raises DataError."""
        raise NotImplementedError

    def _check(self, path: Path) -> Any:
        """Look at a file's head only. Raises DataError."""
        raise NotImplementedError
