"""What was read out of files, as columns that are mapped into memory: parts, processes and launches
share one copy, which may be larger than memory.

    DIRECTORY/<key>/shard-00000/             rows as they were read, until all are
    DIRECTORY/<key>/columns/00000.values     numbers of the first column, (N, ...) in C order
    DIRECTORY/<key>/columns/00001.codes      of texts, which of its words each row has, (N,) int32
    DIRECTORY/<key>/columns/00001.words      the words in UTF-8, one after another
    DIRECTORY/<key>/columns/00001.ends       where they begin and end, (number of words + 1,) int64
    DIRECTORY/<key>/manifest.json            written last

Shards are written under another name and renamed, as in a store: an interrupted reading goes on
after those that are there, and of two at a time the first to rename wins; no lock is needed. The
slower one may find its shards gone, once the columns are there, and takes these.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.data.known_store import Words, encoded
from harness.data.texts import Texts
from harness.durable import make_directory, read_json, sync_directory, write_json

MANIFEST = "manifest.json"
FORMAT = 1
SHARD_BYTES = 2**26  # what a reading holds in memory, and what an interruption can cost
_FEW = 2**16  # words of a column that are known again at once; others are compared at the end
_ROWS = 2**18  # written at once
Column = NDArray[Any] | Texts
Piece = Mapping[str, Column]


class Columns(Protocol):
    """Columns that grow by pieces of rows, and the reader's `state` after them, as JSON values."""

    state: Any

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        ...

    def append(self, piece: Piece, state: Any) -> None:
        """Add rows; `state`: the reader's after them."""
        ...

    def cut(self, num_rows: int, state: Any) -> None:
        """Drop the rows after the first `num_rows`."""
        ...

    def finish(self) -> dict[str, Column]:
        """{name: all its rows}"""
        ...


class InMemory:
    """Columns in this process."""

    def __init__(self) -> None:
        self.state: Any = None
        self.num_rows = 0
        self._pieces: list[Piece] = []

    def append(self, piece: Piece, state: Any) -> None:
        self._pieces.append(piece)
        self.num_rows += _rows_of(piece)
        self.state = state

    def cut(self, num_rows: int, state: Any) -> None:
        while self.num_rows > num_rows:
            self.num_rows -= _rows_of(self._pieces.pop())
        self.state = state

    def finish(self) -> dict[str, Column]:
        names = list(self._pieces[0]) if self._pieces else []
        return {name: joined([piece[name] for piece in self._pieces]) for name in names}


class OnDisk:
    """Columns in a directory, which go on from what is there. Raises OSError.

    sync: what is written survives a power cut.
    """

    def __init__(self, directory: Path, *, sync: bool) -> None:
        self.directory, self._sync = directory, sync
        self.num_rows = self._begin = 0
        self.state: Any = None
        self._pieces: list[Piece] = []
        self._size = 0  # of the pieces, in bytes
        make_directory(directory)
        self._shards: list[tuple[int, int]] = []  # the first row of each, and how many it has
        while (shard := self._shard(len(self._shards))).is_dir():
            described = read_json(shard / MANIFEST)
            self._shards.append((described["begin"], described["num_rows"]))
            self.num_rows = self._begin = described["begin"] + described["num_rows"]
            self.state = described["state"]

    def append(self, piece: Piece, state: Any) -> None:
        self._pieces.append(piece)
        self.num_rows += _rows_of(piece)
        self.state = state
        self._size += sum(map(_bytes_of, piece.values()))
        if self._size > SHARD_BYTES:
            self._flush()

    def cut(self, num_rows: int, state: Any) -> None:
        while self._pieces and self.num_rows > num_rows:
            self.num_rows -= _rows_of(self._pieces.pop())
        # Of shards that are written, the next one says what counts
        self.num_rows, self._begin, self.state = num_rows, min(self._begin, num_rows), state

    def finish(self) -> dict[str, Column]:
        self._flush()
        made = self.directory / f".columns-{secrets.token_hex(4)}"
        made.mkdir()
        spans, limit = [], self.num_rows
        for number, (begin, count) in reversed(list(enumerate(self._shards))):
            if (kept := min(count, limit - begin)) > 0:
                spans.append((self._shard(number), kept))
            limit = min(limit, begin)
        described = _Joining(made, spans[::-1], sync=self._sync).write()
        _rename(made, self.directory / "columns", sync=self._sync)
        manifest = {"format": FORMAT, "columns": described, "state": self.state}
        write_json(self.directory / MANIFEST, manifest, sync=self._sync)
        if self._sync:
            sync_directory(self.directory)
        clear(self.directory)
        return read_columns(self.directory)[0]

    def _shard(self, number: int) -> Path:
        return self.directory / f"shard-{number:05}"

    def _flush(self) -> None:
        shard = self._shard(len(self._shards))
        making = shard.with_name(f".{shard.name}-{secrets.token_hex(4)}")
        making.mkdir()
        count = sum(map(_rows_of, self._pieces))
        names = list(self._pieces[0]) if self._pieces else []
        kinds = {}
        for number, name in enumerate(names):
            column = joined([piece[name] for piece in self._pieces])
            kinds[name] = "text" if isinstance(column, Texts) else "array"
            if isinstance(column, Texts):
                texts = column.compact()
                words, ends = encoded(texts.words)
                for part, array in (("codes", texts.codes), ("words", words), ("ends", ends)):
                    self._save(making / f"{number:05}.{part}.npy", array)
            else:
                self._save(making / f"{number:05}.values.npy", column)
        begin = self._begin
        described = {"begin": begin, "num_rows": count, "kinds": kinds, "state": self.state}
        write_json(making / MANIFEST, described, sync=self._sync)
        if self._sync:
            sync_directory(making)
        _rename(making, shard, sync=self._sync)
        self._shards.append((begin, count))
        self._pieces.clear()
        self._size = 0
        self._begin = begin + count

    def _save(self, path: Path, array: NDArray[Any]) -> None:
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            if self._sync:
                file.flush()
                os.fsync(file.fileno())


@dataclass
class _Described:
    """A column as it is written. `dtype` is None for texts."""

    name: str
    dtype: str | None
    shape: tuple[int, ...]  # of a row
    rows: int
    words: int = 0
    size: int = 0  # of the words, in bytes


class _Joining:
    """Writes the columns of shards, of each the first rows, as one file each."""

    def __init__(self, made: Path, spans: Sequence[tuple[Path, int]], *, sync: bool) -> None:
        self._made, self._spans, self._sync = made, spans, sync

    def write(self) -> list[dict[str, Any]]:
        several = [read_json(shard / MANIFEST)["kinds"] for shard, _ in self._spans]
        kinds = several[0] if several else {}
        # Shards number their columns
        if other := next((one for one in several if [*one] != [*kinds]), None):
            raise ValueError(f"columns {[*other]} after {[*kinds]}")
        described = []
        for number, (name, kind) in enumerate(kinds.items()):
            write = self._texts if kind == "text" else self._array
            described.append(asdict(write(number, name)))
        if self._sync:
            sync_directory(self._made)
        return described

    def _array(self, number: int, name: str) -> _Described:
        parts = [_load(shard, number, "values")[:count] for shard, count in self._spans]
        dtype = np.result_type(*parts)
        rows = sum(map(len, parts))
        chunks = (
            part[begin : begin + _ROWS].astype(dtype, copy=False)
            for part in parts
            for begin in range(0, len(part), _ROWS)
        )
        self._write(number, "values", chunks)
        return _Described(name, dtype.str, parts[0].shape[1:], rows)

    def _texts(self, number: int, name: str) -> _Described:
        """Equal words get one number; they are compared by hashes, so that they need not be in
        memory.
        """
        words = [
            Words(*(_load(shard, number, part) for part in ("words", "ends")))
            for shard, _ in self._spans
        ]
        codes = [_load(shard, number, "codes")[:count] for shard, count in self._spans]
        first, which = distinct(np.concatenate([_hashes(one) for one in words]))
        bases = np.cumsum([0, *map(len, words)])
        coded = (
            which[base + part[begin : begin + _ROWS]].astype(np.int32)
            for base, part in zip(bases, codes, strict=False)
            for begin in range(0, len(part), _ROWS)
        )
        self._write(number, "codes", coded)
        ends = np.zeros(len(first) + 1, np.int64)

        def written() -> Iterator[NDArray[Any]]:
            for begin in range(0, len(first), _ROWS):
                at = first[begin : begin + _ROWS]
                of = np.searchsorted(bases, at, side="right") - 1
                some = [
                    words[shard].encoded(int(word - bases[shard]))
                    for shard, word in zip(of.tolist(), at.tolist(), strict=True)
                ]
                ends[begin + 1 : begin + 1 + len(some)] = np.cumsum([len(one) for one in some])
                ends[begin + 1 : begin + 1 + len(some)] += ends[begin]
                yield np.frombuffer(b"".join(some), np.uint8)

        self._write(number, "words", written())
        self._write(number, "ends", iter([ends]))
        return _Described(name, None, (), sum(map(len, codes)), len(first), int(ends[-1]))

    def _write(self, number: int, part: str, chunks: Iterator[NDArray[Any]]) -> None:
        with (self._made / f"{number:05}.{part}").open("wb") as file:
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
            if self._sync:
                file.flush()
                os.fsync(file.fileno())


def clear(directory: Path) -> None:
    """Delete what the columns of a reading, which are there, were made of."""
    for left in (*directory.glob("shard-*"), *directory.glob(".*-*")):
        shutil.rmtree(left, ignore_errors=True)


def read_columns(directory: Path) -> tuple[dict[str, Column], Any]:
    """The columns of a reading, mapped, and the reader's state after them. Raises OSError and
    ValueError.
    """
    manifest = read_json(directory / MANIFEST)
    if manifest["format"] != FORMAT:
        raise ValueError(f"{directory}: format {manifest['format']}")
    found: dict[str, Column] = {}
    for number, described in enumerate(manifest["columns"]):
        column, stem = _Described(**described), directory / "columns" / f"{number:05}"
        if column.dtype is not None:
            shape = (column.rows, *column.shape)
            found[column.name] = _map(stem.with_suffix(".values"), column.dtype, shape)
            continue
        ends = _map(stem.with_suffix(".ends"), "<i8", (column.words + 1,))
        words = Words(_map(stem.with_suffix(".words"), "u1", (column.size,)), ends)
        codes = _map(stem.with_suffix(".codes"), "<i4", (column.rows,))
        found[column.name] = Texts(list(words) if len(words) <= _FEW else words, codes)
    return found, manifest["state"]


def rows_in(manifest: Mapping[str, Any]) -> int:
    """How many rows a reading has."""
    return max((described["rows"] for described in manifest["columns"]), default=0)


def _map(path: Path, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if path.stat().st_size != size:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes instead of {size:,}")
    if size == 0:
        return np.empty(shape, dtype)
    # A plain array on the mapping: memmap's own indexing is slower
    return np.asarray(np.memmap(path, dtype, "r", shape=tuple(shape)))


def _load(shard: Path, number: int, part: str) -> NDArray[Any]:
    return np.asarray(np.load(shard / f"{number:05}.{part}.npy", mmap_mode="r", allow_pickle=False))


def _rename(made: Path, path: Path, *, sync: bool) -> None:
    try:
        os.rename(made, path)
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        if not path.is_dir():  # if it is: another process was quicker, with the same rows
            raise
    if sync:
        sync_directory(path.parent)


def _hashes(words: Words) -> NDArray[np.uint64]:
    """(number of words, 2)"""
    hashes = bytearray()
    for number in range(len(words)):
        hashes += hashlib.blake2b(words.encoded(number), digest_size=16).digest()
    return np.frombuffer(hashes, np.uint64).reshape(-1, 2)


def distinct(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """hashes (N, 2) -> the first of each kind (K,), ascending, and the kind (N,) of each."""
    _, first, which = np.unique(hashes[:, 0], return_index=True, return_inverse=True)
    if (hashes[first[which], 1] != hashes[:, 1]).any():  # 64 bits do not tell all apart
        _, first, which = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    kind_of = np.empty(len(order), np.int64)
    kind_of[order] = np.arange(len(order))
    return first[order], kind_of[which.ravel()]


def joined(parts: Sequence[Any]) -> Column:
    """Pieces of one column, as one."""
    if isinstance(parts[0], Texts):
        return Texts.concat(parts)
    rows: NDArray[Any] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return rows


def _rows_of(piece: Piece) -> int:
    return len(next(iter(piece.values())))


def _bytes_of(column: Column) -> int:
    if isinstance(column, Texts):
        return column.codes.nbytes + sum(map(len, column.words))
    return column.nbytes
