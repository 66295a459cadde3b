"""What a source knows of its samples, in an entry of the store: mapped into memory, so that
millions of texts cost neither time nor memory before they are asked for.

    known/00000.codes.npy    of the first column, which of its words each sample has, (N,)
    known/00000.words.npy    the words in UTF-8, one after another, uint8
    known/00000.ends.npy     where each of them ends, (number of words + 1,)
"""

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from harness.data.texts import Texts
from harness.durable import sync_directory

KNOWN = "known"
_FEW = 2**16  # words that are read at once


class Words(Sequence[str]):
    """Words that are read when they are asked for."""

    def __init__(self, values: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self._values, self._ends = values, ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        return self.encoded(range(len(self))[index]).decode(errors="surrogatepass")

    def parts(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """All words in UTF-8, one after another, and where they begin and end."""
        return self._values, self._ends

    def encoded(self, at: int) -> bytes:
        """A word in UTF-8."""
        text: bytes = self._values[self._ends[at] : self._ends[at + 1]].tobytes()
        return text


def write_known(entry: Path, known: Mapping[str, Sequence[str]]) -> list[str]:
    """Write the columns, unless another build has; returns their names, in order.

    Raises OSError.
    """
    making = entry / f".{KNOWN}-{secrets.token_hex(4)}"
    try:
        making.mkdir()
        _write(making, known)
        os.rename(making, entry / KNOWN)
    except OSError:  # also where a build that ended meanwhile has cleared this away
        shutil.rmtree(making, ignore_errors=True)
        if not (entry / KNOWN).is_dir():
            raise
    return list(known)


def _write(making: Path, known: Mapping[str, Sequence[str]]) -> None:
    for number, texts in enumerate(map(Texts.of, known.values())):
        words, ends = encoded(texts.words)
        kind = np.min_scalar_type(max(0, len(ends) - 2))
        parts = {"codes": texts.codes.astype(kind), "words": words, "ends": ends}
        for part, array in parts.items():
            with (making / f"{number:05}.{part}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
    sync_directory(making)


def encoded(words: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The words in UTF-8, one after another, and where they begin and end."""
    found = [word.encode(errors="surrogatepass") for word in words]
    ends = np.cumsum([0, *map(len, found)], dtype=np.int64)
    return np.frombuffer(b"".join(found), np.uint8), ends


def read_known(entry: Path, names: Sequence[str]) -> dict[str, Texts]:
    """The columns, in the order in which they were written. Raises OSError and ValueError."""
    found = {}
    for number, name in enumerate(names):
        codes, values, ends = (
            _map_array(entry / KNOWN / f"{number:05}.{part}.npy")
            for part in ("codes", "words", "ends")
        )
        words = Words(values, ends)
        found[name] = Texts(list(words) if len(words) <= _FEW else words, codes)
    return found


def _map_array(path: Path) -> NDArray[Any]:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
