"""The tensors of a checkpoint, read straight to where they belong: no second copy of them is held.

Several ranks read them all, or each its part and the rest from the others, whichever is faster:
both are tried. Which rank reads what for all is a function of the files' sizes.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from harness.bounded import open_regular
from harness.checkpoint.format import Placement, bytes_of
from harness.checkpoint.layout import spread
from harness.checkpoint.manifest import TensorEntry
from harness.errors import CheckpointError
from harness.ranks.ranks import Ranks
from harness.ranks.rows import local_of, own_range
from harness.ranks.slowly import together_slowly

NUM_READERS = 4
_CHUNK_BYTES = 16 * 2**20  # of a file, read by one thread in one go
_TRIED_OWNERS = 4
# Less is read by each rank: it takes no longer than to find out whether peers are faster
_TRY_FROM_BYTES = 2**29


@dataclass(frozen=True)
class _Read:
    """Bytes of a tensor, from its byte `begin` on."""

    name: str
    begin: int
    size_bytes: int


@dataclass(frozen=True)
class _Chunk:
    """A stretch of a file, and the tensors' bytes that it is made of, one after the other."""

    file: str
    begin: int
    reads: list[_Read]

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.reads)


class StoredTensors(Mapping[str, Tensor]):
    """Tensors of a checkpoint; each is read when it is asked for, and kept by nobody. Raises
    CheckpointError then.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, TensorEntry], placements: Mapping[str, Placement]
    ) -> None:
        self._path = path
        self._entries = entries
        self._placements = placements

    def read(self) -> dict[str, Tensor]:
        """All of them on the CPU, each in memory of its own, as fresh ones are, so that no kernel
        meets another alignment; what is stored as one is one.
        """
        first = {id(entry): name for name, entry in reversed(list(self._entries.items()))}
        tensors = {
            name: torch.empty(entry.shape, dtype=entry.spec.torch_dtype)
            for name, entry in self._entries.items()
            if first[id(entry)] == name
        }
        self.fill(tensors)
        return {name: tensors[first[id(entry)]] for name, entry in self._entries.items()}

    def fill(self, targets: Mapping[str, Tensor], ranks: Ranks | None = None) -> None:
        """Read some of them into tensors of their dtypes and shapes, on any device; of a sharded
        one the rows that this rank holds, and no others.

        ranks: called by every rank, with the same names.
        """
        into = {name: _Target(local_of(tensor)) for name, tensor in targets.items()}
        rows = {name: own for name, one in targets.items() if (own := own_range(one)) is not None}
        chunks = self._chunks((name for name in targets if name not in rows), {})
        own_chunks = self._chunks(rows, rows)
        if ranks is None or ranks.size == 1:
            self._read_all([*chunks, *own_chunks], into)
            return
        self._fill_among(ranks, chunks, into)
        if rows:
            together_slowly(ranks, lambda: self._read_all(own_chunks, into))

    def kind(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """The dtype and shape of one; nothing is read."""
        spec = self._entries[name].spec
        return spec.torch_dtype, spec.shape

    def are_one(self, one: str, other: str) -> bool:
        """Whether two names are of one tensor."""
        return self._entries[one] is self._entries[other]

    def renamed(self, names: Mapping[str, str]) -> "StoredTensors":
        """Those that `names` has, by their new names."""
        kept = {new: self._entries[old] for new, old in names.items()}
        return StoredTensors(self._path, kept, self._placements)

    def without(self, prefix: str) -> "StoredTensors":
        """Those whose names do not begin with it."""
        kept = {name: one for name, one in self._entries.items() if not name.startswith(prefix)}
        return StoredTensors(self._path, kept, self._placements)

    def __getitem__(self, name: str) -> Tensor:
        return StoredTensors(self._path, {name: self._entries[name]}, self._placements).read()[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _chunks(self, names: Iterable[str], held: Mapping[str, tuple[int, int]]) -> list[_Chunk]:
        """What is to be read, in the order of files and of the bytes in them; of some tensors the
        rows that are `held` alone, from the first of which on a target's bytes count.
        """
        wanted: dict[str, list[tuple[int, _Read]]] = {}
        for name in names:
            entry = self._entries[name]
            rows = entry.spec.num_rows
            row_bytes = entry.spec.size_bytes // max(1, rows)
            for piece in entry.parts:
                first, last = piece.rows or (0, rows)
                own, end = held.get(name, (0, rows))
                low, high = max(first, own), min(last, end)
                if low >= high and name in held:
                    continue
                read = _Read(name, (low - own) * row_bytes, (high - low) * row_bytes)
                begin = self._placements[piece.file].begins[piece.key] + (low - first) * row_bytes
                wanted.setdefault(piece.file, []).append((begin, read))
        chunks: list[_Chunk] = []
        for file in sorted(wanted):
            chunks += _in_chunks(file, sorted(wanted[file], key=lambda one: one[0]))
        return chunks

    def _read_all(self, chunks: Sequence[_Chunk], into: "Mapping[str, _Target]") -> None:
        def read(chunk: _Chunk) -> None:
            with open_regular(self._path / chunk.file) as file:
                begin = chunk.begin
                for one in chunk.reads:
                    into[one.name].read_from(file, begin, one)
                    begin += one.size_bytes

        with self._explained(), ThreadPoolExecutor(NUM_READERS) as pool:
            for _ in pool.map(read, chunks):
                pass

    def _fill_among(
        self, ranks: Ranks, chunks: Sequence[_Chunk], into: "Mapping[str, _Target]"
    ) -> None:
        """Both ways are tried with a chunk of some ranks; the faster one does the rest."""
        owners = owners_of(self._placements, ranks.size)
        owned: list[list[_Chunk]] = [[] for _ in range(ranks.size)]
        for chunk in chunks:
            owned[owners[chunk.file]].append(chunk)

        def alone(some: Sequence[Sequence[_Chunk]]) -> None:
            flat = [chunk for of_rank in some for chunk in of_rank]
            together_slowly(ranks, lambda: self._read_all(flat, into))

        def among(some: Sequence[Sequence[_Chunk]]) -> None:
            self._pass_around(ranks, some, into)

        if sum(one.size_bytes for one in chunks) < _TRY_FROM_BYTES:
            alone(owned)
            return
        spent_s = [_seconds_a_byte(way, _take_some(owned)) for way in (alone, among)]
        slowest = [max(times) for times in zip(*ranks.gather(spent_s), strict=True)]
        (alone if slowest[0] <= slowest[1] else among)(owned)

    def _pass_around(
        self, ranks: Ranks, owned: Sequence[Sequence[_Chunk]], into: "Mapping[str, _Target]"
    ) -> None:
        """Each rank reads one chunk of its own at a time, while the ranks send each other those
        that they have read before.
        """
        devices = {one.device for one in into.values()}
        device = max(devices, key=lambda one: one.type != "cpu")
        mine = owned[ranks.rank]
        sizes = [chunk.size_bytes for of_rank in owned for chunk in of_rank]
        largest = max(sizes, default=0)
        # In one block: of smaller ones malloc keeps some when they are freed
        rooms = torch.empty(3, largest, dtype=torch.uint8)
        room = rooms[2] if device.type == "cpu" else torch.empty_like(rooms[2], device=device)

        def read(number: int) -> Tensor | None:
            return self._read_chunk(mine[number], rooms[number % 2]) if number < len(mine) else None

        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(read, 0)
            for number in range(max(map(len, owned))):
                octets = ranks.together(ahead.result)
                ahead = reader.submit(read, number + 1)
                for owner, of_rank in enumerate(owned):
                    if number < len(of_rank):
                        chunk = of_rank[number]
                        received = room[: chunk.size_bytes]
                        if owner == ranks.rank:
                            assert octets is not None
                            received = octets.to(device)
                        ranks.broadcast_from(owner, received)
                        begin = 0
                        for one in chunk.reads:
                            end = begin + one.size_bytes
                            into[one.name].put(received[begin:end], one)
                            begin = end

    def _read_chunk(self, chunk: _Chunk, room: Tensor) -> Tensor:
        octets = room[: chunk.size_bytes]
        with self._explained(), open_regular(self._path / chunk.file) as file:
            _read_into(file, chunk.begin, bytes_of(octets))
        return octets

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self._path}: cannot be read: {error}. Resume from another checkpoint."
            ) from error


class _Target:
    """A tensor whose bytes come in pieces, in any order, from several threads."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.detach()
        self.device = tensor.device
        self._left = tensor.nbytes
        self._lock = threading.Lock()
        # Bytes in the order in which they are stored: the tensor's own, where it has that
        self._octets: Tensor | None = None
        self._is_plain = tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())

    def read_from(self, file: FileIO, begin: int, read: _Read) -> None:
        """Take what stands in a file from the byte `begin` on. Raises OSError."""
        if self.device.type == "cpu":
            _read_into(file, begin, bytes_of(self._place(read)))
            self._note(read)
        else:
            octets = torch.empty(read.size_bytes, dtype=torch.uint8)
            _read_into(file, begin, bytes_of(octets))
            self.put(octets, read)

    def put(self, octets: Tensor, read: _Read) -> None:
        """Take these bytes."""
        self._place(read).copy_(octets)
        self._note(read)

    def _place(self, read: _Read) -> Tensor:
        with self._lock:
            if self._octets is None:
                plain = (
                    self._tensor if self._is_plain else self._tensor.new_empty(self._tensor.shape)
                )
                self._octets = plain.reshape(-1).view(torch.uint8)
            return self._octets[read.begin : read.begin + read.size_bytes]

    def _note(self, read: _Read) -> None:
        with self._lock:
            self._left -= read.size_bytes
            if self._left or self._is_plain:
                return
            assert self._octets is not None
            self._tensor.copy_(self._octets.view(self._tensor.dtype).view(self._tensor.shape))
            self._octets = None


def owners_of(placements: Mapping[str, Placement], num_ranks: int) -> dict[str, int]:
    """The rank that verifies each tensor file, and reads it for all: about as many bytes each."""
    sizes = {name: one.size_bytes for name, one in placements.items()}
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    ranks = spread([sizes[name] for name in names], [0] * num_ranks)
    return dict(zip(names, ranks, strict=True))


def _take_some(owned: Sequence[list[_Chunk]]) -> list[list[_Chunk]]:
    """A chunk each of the first ranks that have any, which are no longer theirs then."""
    takers = [rank for rank, of_rank in enumerate(owned) if of_rank][:_TRIED_OWNERS]
    return [[one.pop()] if rank in takers else [] for rank, one in enumerate(owned)]


def _seconds_a_byte(
    way: Callable[[Sequence[Sequence[_Chunk]]], None], owned: Sequence[Sequence[_Chunk]]
) -> float:
    began = time.monotonic()
    way(owned)
    size_bytes = sum(chunk.size_bytes for of_rank in owned for chunk in of_rank)
    return (time.monotonic() - began) / max(1, size_bytes)


def _in_chunks(file: str, reads: Sequence[tuple[int, _Read]]) -> list[_Chunk]:
    """The reads of a file, by the byte in it at which each begins, in stretches without gaps that
    keep all readers busy to the end.
    """
    chunks: list[_Chunk] = []
    end = left = 0  # of the last chunk: where the next byte would stand, and how many may be added
    for begin, read in reads:
        done = 0
        while done < read.size_bytes:
            if left == 0 or end != begin + done:
                chunks.append(_Chunk(file, begin + done, []))
                left = _CHUNK_BYTES
            count = min(read.size_bytes - done, left)
            chunks[-1].reads.append(_Read(read.name, read.begin + done, count))
            done += count
            left -= count
            end = begin + done
    return chunks


def _read_into(file: FileIO, begin: int, target: memoryview) -> None:
    done = 0
    while done < len(target):
        count = os.preadv(file.fileno(), [target[done:]], begin + done)
        if count == 0:
            raise OSError(errno.EIO, "ends early", file.name)
        done += count
