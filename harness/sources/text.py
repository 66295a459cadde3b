"""Text files as tokens."""

import codecs
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError, require_choice
from harness.sources.csv_files import PACKED, TORN, is_packed
from harness.sources.encodings import check_encoding, why_undecoded
from harness.sources.listing import refuse_dangling
from harness.sources.mistaken import is_pointer, what_is
from harness.sources.source import BatchSource, select, span_columns

Part = Literal["all", "train", "val"]


class Bytes(BatchSource):
    """Windows of text files, byte by byte: each byte of a file except its first (and an incomplete
    window at its end) is predicted exactly once.

    A sample: `tokens` (length + 1,) int64 in 0 … 255, for `harness.tasks.LanguageModelling`; a
    window begins with the last byte of the one before it. No window spans two files. `files`: a
    path, a pattern such as texts/*.txt, or a list of them; the files of a pattern are sorted by
    name; .gz, .zst, .bz2 and .xz files are unpacked. `part`: "val" is the last `held_out` share of
    each file's windows, "train" the others. Raises DataError for a file that is missing or shorter
    than a window.
    """

    unit: ClassVar[str] = "bytes"
    version = 3  # .zst, .bz2 and .xz unpacked

    def __init__(
        self, files: str | Sequence[str], length: int, part: Part = "all", held_out: float = 0.1
    ) -> None:
        if length < 1:
            raise ConfigError(f"length: {length}: must be at least 1 ({self.unit} to predict).")
        require_choice("part", part, get_args(Part))
        if not 0 < held_out < 1:
            raise ConfigError(f"held_out: {held_out}: must be between 0 and 1.")
        patterns = [files] if isinstance(files, str) else list(files)
        self._paths = [path for pattern in patterns for path in _paths(pattern)]
        self._texts = [self._open(path) for path in self._paths]
        self._reach = np.arange(length + 1)
        windows = []
        for number, (path, text) in enumerate(zip(self._paths, self._texts, strict=True)):
            if len(text) < length + 1:
                raise DataError(
                    f"{path}: {len(text)} {self.unit}; a window needs {length + 1}. Give a longer "
                    "file or a smaller length."
                )
            count = (len(text) - 1) // length
            kept = count - max(1, round(held_out * count))
            first, last = {"all": (0, count), "train": (0, kept), "val": (kept, count)}[part]
            begins = np.arange(first, last) * length
            windows.append(np.stack([np.full_like(begins, number), begins], axis=1))
        self._windows = np.concatenate(windows)  # (N, 2): which text, and where the window begins

    def __len__(self) -> int:
        return len(self._windows)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{tokens: (B, length + 1)}"""
        windows = self._windows[indices]
        cut = [self._texts[number][begin + self._reach] for number, begin in windows]
        return {"tokens": np.stack(cut).astype(np.int64)}

    def paths(self) -> list[Path]:
        """Every file that is read."""
        return self._paths

    def known(self) -> dict[str, list[str]]:
        """{recording, start, stop: (N,)}: the file of each window, and the range [start, stop) of
        it that is predicted.
        """
        numbers, begins = self._windows.T
        return span_columns(select(self._paths, numbers), begins + 1, begins + len(self._reach))

    def decode(self, column: str, values: NDArray[Any]) -> str | None:
        """The text of tokens (T,)."""
        return self._text(values) if column == "tokens" else None

    def _text(self, values: NDArray[Any]) -> str:
        return values.astype(np.uint8).tobytes().decode(errors="replace")

    def _open(self, path: Path) -> NDArray[Any]:
        try:
            if is_pointer(path):
                raise DataError(f"{path}: {what_is(path, 'table')}")
            return self._read(path)
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror or error}. Make the file readable, or leave it out."
            ) from error

    def _read(self, path: Path) -> NDArray[Any]:
        """(length of the file,) integers. Raises OSError."""
        if path.stat().st_size == 0:  # cannot be mapped
            return np.empty(0, np.uint8)
        if is_packed(path):
            return np.frombuffer(_unpack(path), dtype=np.uint8)
        return np.memmap(path, dtype=np.uint8, mode="r")


class Characters(Bytes):
    """As `Bytes`, character by character: `tokens` are Unicode code points, which
    `harness.treatments.Vocabulary` maps to those of a vocabulary.

    Held in memory, four bytes per character. A byte order mark is not a character. Raises DataError
    for a file in another encoding.
    """

    unit: ClassVar[str] = "characters"

    def __init__(
        self,
        files: str | Sequence[str],
        length: int,
        part: Part = "all",
        held_out: float = 0.1,
        encoding: str = "utf-8",
    ) -> None:
        check_encoding(encoding)
        self._encoding = encoding
        super().__init__(files, length, part, held_out)

    def _text(self, values: NDArray[Any]) -> str:
        return "".join(map(chr, values.tolist()))

    def _read(self, path: Path) -> NDArray[np.uint32]:
        data = _unpack(path) if is_packed(path) else path.read_bytes()
        try:
            # Unlike decode(), it does not guess the byte order of UTF-16
            text = codecs.getincrementaldecoder(self._encoding)().decode(data, final=True)
        except UnicodeError as error:
            at = f"byte {error.start} " if isinstance(error, UnicodeDecodeError) else ""
            why = why_undecoded(data, self._encoding) or (
                f"{at}is not valid {self._encoding} "
                f"({getattr(error, 'reason', error)}). Set encoding, or read the file with Bytes."
            )
            raise DataError(f"{path}: {why}") from error
        text = text.removeprefix(
            "\ufeff"
        )  # a byte order mark, which no encoding but utf-8-sig drops
        return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def _unpack(path: Path) -> bytes:
    try:
        with PACKED[path.suffix.lower()](path) as file:
            return bytes(file.read())
    except (*TORN, OSError) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}. It may be truncated.") from error


def _paths(pattern: str) -> list[Path]:
    expanded = str(Path(pattern).expanduser())
    found = sorted(
        path for name in glob(expanded, recursive=True) if not (path := Path(name)).is_dir()
    )
    for path in found:
        refuse_dangling(path)
    if not found:
        raise DataError(
            f"{pattern}: no such file (looked in {Path(expanded).absolute().parent}). Give the "
            "path of a text file, or a pattern."
        )
    return found
