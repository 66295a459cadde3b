"""Samples kept ready: what a source and the treatments that are done once give, as arrays that are
mapped into memory.

    STORE/<key>/shard-00000/<column>.npy     a shard's samples, (n, ...); ragged ones and text:
                                             <column>.values.npy, <column>.offsets.npy (n + 1,)
    STORE/<key>/known/                       what the source knows of each sample (known_store.py)
    STORE/<key>/manifest.json                written last: an entry without one is unfinished

A key is a digest of all that decides what is in the entry (preparing.py), so an entry never
changes. A shard is written under another name and
renamed: what an interrupted build left behind is whole, and the next one goes on after it, whoever
it was. Two builds of one entry at a time write the same shards, and the first to rename wins; no
lock is needed.
"""

import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.components import TARGET
from harness.data.feed import Patience, evaluation_batches
from harness.data.holding import free, held
from harness.data.known_store import read_known, write_known
from harness.data.readings import rows_in
from harness.data.shelf import READINGS
from harness.data.source import array_of, known_of
from harness.data.split import Split
from harness.durable import read_json, sync_directory, write_json
from harness.errors import DataError

MANIFEST = "manifest.json"


FORMAT = 2  # 1 kept what is known in known.json


SHARD_BYTES = 256 * 2**20  # what a build holds in memory, and what an interruption can cost


BLOCK_SAMPLES = 64


CheckLeave = Callable[[], None]


Progress = Callable[[int, int], None]


Chunk = NDArray[Any] | list[Any]  # samples of a column: (B, ...), or B arrays or texts


@dataclass(frozen=True)
class Entry:
    """An entry of the store; `num_samples` is None while it is unfinished."""

    key: str
    path: Path
    size_bytes: int
    num_samples: int | None
    made_of: Mapping[str, Any]
    columns: Mapping[str, str]


class Store:
    """The entries in a directory. Building, listing and pruning are rank 0's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, key: str) -> Path | None:
        """The entry of a key, if it is finished."""
        path = self.directory / key
        return path if (path / MANIFEST).exists() else None

    def build(
        self,
        key: str,
        split: Split,
        made_of: Mapping[str, Any],
        num_workers: int,
        check_leave: CheckLeave,
        progress: Progress,
    ) -> Path:
        """Make an entry of all samples of a split, in its order, going on after what is there.

        `check_leave` may raise, to end the build between blocks.

        Raises DataError: for samples that cannot be read or kept, or if the disk does not take
        them.
        """
        path = self.directory / key
        with ExitStack() as stack:
            with _explain_os_errors(path):
                stack.enter_context(held(path))
            self._fill(path, split, made_of, num_workers, check_leave, progress)
        return path

    def _fill(
        self,
        path: Path,
        split: Split,
        made_of: Mapping[str, Any],
        num_workers: int,
        check_leave: CheckLeave,
        progress: Progress,
    ) -> None:
        begin = number = 0
        columns: dict[str, str] = {}
        while begin < len(split):
            shard = path / f"shard-{number:05}"
            if not shard.is_dir():
                with _explain_os_errors(path):
                    _write_shard(
                        shard, _next_shard(split, begin, num_workers, check_leave, progress)
                    )
            described = read_json(shard / MANIFEST)
            columns |= described["columns"]
            begin += described["num_samples"]
            number += 1
            progress(begin, len(split))
        known = known_of(split.source)
        with _explain_os_errors(path):
            names = write_known(path, known)
            manifest = {
                "format": FORMAT,
                "num_samples": len(split),
                "num_shards": number,
                "columns": columns,
                "known": names,
                "made_of": made_of,
            }
            write_json(path / MANIFEST, manifest, sync=True)
            sync_directory(path)
        # Of builds that were killed, or of one that was slower than this
        for left in path.glob(".[sk]*-*"):
            shutil.rmtree(left, ignore_errors=True)

    def entries(self) -> list[Entry]:
        """All entries, by key, then the readings of files that they were made of."""
        readings = self.directory / READINGS
        found = []
        for path in (*_directories(self.directory), *_directories(readings)):
            manifest = read_json(path / MANIFEST) if (path / MANIFEST).exists() else None
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            about: tuple[Any, ...] = (None, {}, {})
            if manifest is not None and path.parent == readings:
                about = (rows_in(manifest), {"source": {TARGET: READINGS}}, {})
            elif manifest is not None:
                about = (manifest["num_samples"], manifest["made_of"], manifest["columns"])
            if path != readings:
                found.append(Entry(path.name, path, size, *about))
        return found

    def prune(self, keep: set[str]) -> list[Entry]:
        """Delete the entries whose keys are not in `keep`, and readings of none of these, except
        those that another process is making; returns them. An entry loses its manifest first: half
        of one is never taken for whole.
        """
        entries = self.entries()
        kept = {key for one in entries if one.key in keep for key in one.made_of.get(READINGS, ())}
        gone = []
        for entry in (one for one in entries if one.key not in keep | kept):
            with _explain_os_errors(entry.path), free(entry.path) as is_free:
                if not is_free:
                    warnings.warn(
                        f"{entry.path}: another process is making it: it stays.", stacklevel=2
                    )
                    continue
                (entry.path / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(entry.path)
                gone.append(entry)
        return gone


def _directories(directory: Path) -> list[Path]:
    return sorted(filter(Path.is_dir, directory.iterdir())) if directory.is_dir() else []


class EntrySource:
    """An entry as a source.

    A sample has the columns that were kept; ragged columns come as lists of arrays, text as lists
    of str.
    """

    def __init__(self, path: Path) -> None:
        manifest = read_json(path / MANIFEST)
        if manifest.get("format") not in (1, FORMAT):
            raise DataError(
                f"{path}: format {manifest.get('format')} of another version of fermarsi. Delete "
                "it: it will be built again."
            )
        self.path = path
        self.open: Callable[[], Any] | None = None  # what it was made of, where that is known
        self._known: list[str] | None = manifest.get("known")
        self.skipped: list[str] = manifest["made_of"].get("left_out", [])
        self._shards = [
            _Shard(path / f"shard-{number:05}") for number in range(manifest["num_shards"])
        ]
        self._begins = np.cumsum([0, *(shard.num_samples for shard in self._shards)])
        if self._begins[-1] != manifest["num_samples"]:
            raise DataError(
                f"{path}: {self._begins[-1]} of {manifest['num_samples']} samples are present. "
                "Delete it: it will be built again."
            )

    def __reduce__(self) -> tuple[type["EntrySource"], tuple[Path]]:
        return EntrySource, (self.path,)  # to a worker goes the path, not what is mapped

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{column: (B, ...) array | list of B}"""
        return self.gather(np.asarray(indices))

    def gather(self, wanted: NDArray[np.int64]) -> dict[str, Any]:
        """The same for an array of indices (B,): a list costs a third of a gather."""
        if len(self._shards) == 1:
            return self._shards[0].read(wanted)
        which = np.searchsorted(self._begins, wanted, side="right") - 1
        order = np.argsort(which, kind="stable")
        back = np.argsort(order)
        chunks = [
            self._shards[number].read(wanted[which == number] - self._begins[number])
            for number in np.unique(which)
        ]
        return {name: _take(_join([chunk[name] for chunk in chunks]), back) for name in chunks[0]}

    def known(self) -> Mapping[str, Sequence[str]]:
        """What the source knew of each sample."""
        if self._known is None:
            known: Mapping[str, Sequence[str]] = read_json(self.path / "known.json")
            return known
        try:
            return read_known(self.path, self._known)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: {error}. Delete it: it will be built again.") from error


class _Shard:
    def __init__(self, path: Path) -> None:
        described = read_json(path / MANIFEST)
        self.num_samples = int(described["num_samples"])
        self._columns: dict[str, tuple[str, list[NDArray[Any]]]] = {}
        for name, kind in described["columns"].items():
            files = (
                [f"{name}.npy"]
                if kind == "array"
                else [f"{name}.values.npy", f"{name}.offsets.npy"]
            )
            self._columns[name] = (kind, [_map_array(path / file) for file in files])

    def read(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, (kind, arrays) in self._columns.items():
            if kind == "array":
                found[name] = arrays[0][rows]
                continue
            values, offsets = arrays
            pieces = [
                values[begin:end]
                for begin, end in zip(
                    offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True
                )
            ]
            found[name] = (
                [piece.tobytes().decode() for piece in pieces]
                if kind == "text"
                else [piece.copy() for piece in pieces]
            )
        return found


def _next_shard(
    split: Split, begin: int, num_workers: int, check_leave: CheckLeave, progress: Progress
) -> dict[str, list[Chunk]]:
    """{column: blocks of samples} from sample `begin` on, until a shard is full or the split
    ends.
    """
    shard: dict[str, list[Chunk]] = {}
    size, done = 0, begin
    rest = np.arange(begin, len(split), dtype=np.int64)
    for block, batch in evaluation_batches(
        split,
        BLOCK_SAMPLES,
        0,
        1,
        torch.device("cpu"),
        num_workers,
        rest,
        Patience(check=check_leave),
    ):
        check_leave()
        if shard and shard.keys() != batch.keys():
            raise DataError(
                f"{split.where}: samples from {begin + block * BLOCK_SAMPLES} on have "
                f"{', '.join(batch)}; before: {', '.join(shard)}."
            )
        for name, values in batch.items():
            chunk: Chunk
            if isinstance(values, torch.Tensor):
                chunk = array_of(f"{split.where}: {name}", values)
                size += chunk.nbytes
            else:
                chunk = [_plain(item, name, split.where) for item in values]
                size += sum(
                    len(item.encode()) if isinstance(item, str) else item.nbytes for item in chunk
                )
            shard.setdefault(name, []).append(chunk)
        done += len(values)
        progress(done, len(split))
        if size >= SHARD_BYTES:
            break
    return shard


def _plain(item: Any, name: str, where: str) -> Any:
    array = array_of(f"{where}: {name}", item) if isinstance(item, torch.Tensor) else item
    if not isinstance(array, str) and not (
        isinstance(array, np.ndarray) and array.dtype.kind in "biuf" and array.ndim
    ):
        raise DataError(
            f"{where}: {name}: a {type(item).__name__} cannot be kept in a store. Convert it to "
            "an array or text by a treatment before."
        )
    return array


def _num_samples(shard: Mapping[str, list[Chunk]]) -> int:
    return sum(map(len, next(iter(shard.values()))))


def _write_shard(shard: Path, columns: Mapping[str, list[Chunk]]) -> None:
    making = shard.with_name(f".{shard.name}-{secrets.token_hex(4)}")
    try:
        _fill(making, columns)
        os.rename(making, shard)
    except OSError:
        shutil.rmtree(making, ignore_errors=True)
        if not shard.is_dir():  # if it is: another build was quicker, with the same samples
            raise
    sync_directory(shard.parent)


def _fill(making: Path, columns: Mapping[str, list[Chunk]]) -> None:
    making.mkdir()
    kinds = {}
    for name, chunks in columns.items():
        if "/" in name or name.startswith("."):
            raise DataError(
                f"{making.parent}: {name!r} is not a valid column name in a store. Rename it in "
                "the source."
            )
        joined = _join(chunks)
        if isinstance(joined, np.ndarray):
            kinds[name] = "array"
            _save(making / f"{name}.npy", joined)
            continue
        items: list[Any] = joined
        if isinstance(items[0], str):
            kinds[name] = "text"
            encoded = [np.frombuffer(item.encode(), dtype=np.uint8) for item in items]
        else:
            kinds[name] = "array" if len({item.shape for item in items}) == 1 else "ragged"
            encoded = items
        if kinds[name] == "array":
            _save(making / f"{name}.npy", np.stack(encoded))
        else:
            if len({(item.dtype, item.shape[1:]) for item in encoded}) > 1:
                raise DataError(
                    f"{making.parent}: {name}: samples differ in dtype or in an axis other than "
                    "the first. Give them one shape."
                )
            _save(making / f"{name}.values.npy", np.concatenate(encoded))
            _save(making / f"{name}.offsets.npy", np.cumsum([0, *(len(item) for item in encoded)]))
    write_json(
        making / MANIFEST,
        {"num_samples": _num_samples(columns), "columns": kinds},
        sync=True,
    )
    sync_directory(making)


def _save(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _map_array(path: Path) -> NDArray[Any]:
    try:
        # A plain array on the mapping: memmap's own indexing is slower
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: {error}. Delete {path.parent.parent}: it will be built again."
        ) from error


def _join(chunks: Sequence[Any]) -> Any:
    if (
        all(isinstance(chunk, np.ndarray) for chunk in chunks)
        and len({chunk.shape[1:] for chunk in chunks}) == 1
    ):
        return np.concatenate(chunks)
    return [item for chunk in chunks for item in chunk]


def _take(values: Any, order: NDArray[np.int64]) -> Any:
    return (
        values[order]
        if isinstance(values, np.ndarray)
        else [values[index] for index in order.tolist()]
    )


@contextmanager
def _explain_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.filename or path}: {error.strerror or error}"
        raise DataError(
            f"{what}. Free some space, or set another data.store.dir; finished parts are kept."
        ) from error
