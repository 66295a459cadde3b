"""Where a rank's share goes: files, the host memory in which they are put together, and what ranks
give each other before. Made once for all saves of a run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.checkpoint.format import Spec, placement_of
from harness.checkpoint.layout import Held, Piece, Share, divide, sources_of
from harness.ranks.rows import Rows

_ALIGNMENT = 64
_SHARD_BYTES = 64 * 2**20  # what is smaller is not cut
_SHARDS_A_RANK = 4  # of a role, at most


@dataclass(frozen=True)
class Cut:
    """What this rank copies: a tensor, or some of the rows that it holds, counted from its first;
    and where that goes in the host memory.
    """

    role: str
    name: str
    rows: tuple[int, int] | None
    begin: int


@dataclass(frozen=True)
class PlannedFile:
    """A file that this rank writes, and where it is put together."""

    name: str
    role: str
    head: bytes
    pieces: list[Piece]
    cuts: list[Cut]
    begin: int  # in the host memory
    end: int


@dataclass(frozen=True)
class Move:
    """Bytes in the host memory that go to a peer, or come from one."""

    peer: int
    begin: int
    end: int


@dataclass
class Round:
    """What this rank sends and receives at one time."""

    sends: list[Move] = field(default_factory=list)
    receives: list[Move] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """Where everything goes: a function of names, dtypes and shapes, the same at every save of a
    run, and so made once.

    `outbox`: what is copied for other ranks to write.
    """

    files: list[PlannedFile]
    outbox: list[Cut]
    rounds: list[Round]
    pieces: list[dict[str, Any]]
    indexes: dict[str, tuple[str, str]]
    tensor_bytes: int  # of all ranks
    memory_bytes: int


def plan_of(shares: Sequence[Share], rank: int, rng: Mapping[str, Spec], held: Held) -> Plan:
    """What this rank writes, and rank 0's indexes."""
    shards = {role: _shards(shares, role) for role in ("model", "optimizer")}
    named = [
        (name, role, pieces)
        for role, by_rank in shards.items()
        for name, pieces in by_rank[rank].items()
    ]
    named.append(
        (
            f"rng-{rank:05}-of-{len(shares):05}.safetensors",
            "rng",
            [Piece(name, spec) for name, spec in rng.items()],
        )
    )
    files: list[PlannedFile] = []
    begins: dict[str, int] = {}  # of the model's pieces in the host memory
    end = 0
    for name, role, pieces in named:
        placement = placement_of({piece.key: piece.spec for piece in pieces})
        begin, head_bytes = end, len(placement.head)
        end = begin + placement.size_bytes - head_bytes
        cuts = []
        for piece in pieces:
            where = begin - head_bytes + placement.begins[piece.key]
            cuts += _own_cuts(role, piece, held.get((role, piece.name)), rank, where)
            if role == "model":
                begins[piece.key] = where
        files.append(PlannedFile(name, role, placement.head, pieces, cuts, begin, end))
        end += -end % _ALIGNMENT
    outbox, rounds, end = _exchange(shares, rank, held, begins, end)
    described = [
        {
            "role": file.role,
            "name": one.name,
            "dtype": one.whole.dtype,
            "shape": one.whole.shape,
            "key": one.key,
            "file": file.name,
            "rows": one.rows,
        }
        for file in files
        for one in file.pieces
    ]
    in_rows = any(one.rows for share in shares for one in share.pieces["model"])
    indexes = (
        {
            f"{role}{'-rows' * (in_rows and role == 'model')}.safetensors.index.json": (
                "index",
                _index(by_rank),
            )
            for role, by_rank in shards.items()
        }
        if rank == 0
        else {}
    )
    size_bytes = sum(share.size_bytes for share in shares)
    return Plan(files, outbox, rounds, described, indexes, size_bytes, end)


def _own_cuts(role: str, piece: Piece, rows: Rows | None, rank: int, begin: int) -> list[Cut]:
    """What a rank has itself of a piece that it writes from `begin` on."""
    if rows is None:
        return [Cut(role, piece.name, piece.rows, begin)]
    own = rows[rank][0]
    return [
        Cut(role, piece.name, (one.first - own, one.last - own), begin + _offset(piece, one.first))
        for one in sources_of(piece, rank, rows)
        if one.rank == rank
    ]


def _offset(piece: Piece, row: int) -> int:
    """Where a row begins in a piece, in bytes."""
    first = 0 if piece.rows is None else piece.rows[0]
    return (row - first) * (piece.whole.size_bytes // piece.whole.num_rows)


def _exchange(
    shares: Sequence[Share], rank: int, held: Held, begins: Mapping[str, int], end: int
) -> tuple[list[Cut], list[Round], int]:
    """What this rank copies for others from the byte `end` of the host memory on, the rounds in
    which rows go to those that write them, as many on every rank, and the end of it all.
    """
    outbox: list[Cut] = []
    rounds: list[Round] = []
    for writer, share in enumerate(shares):
        pieces = [one for one in share.pieces["model"] if ("model", one.name) in held]
        for number, piece in enumerate(pieces):
            rows = held["model", piece.name]
            for one in sources_of(piece, writer, rows):
                if one.rank == writer:
                    continue
                while len(rounds) <= number:
                    rounds.append(Round())
                size_bytes = _offset(piece, one.last) - _offset(piece, one.first)
                if writer == rank:
                    begin = begins[piece.key] + _offset(piece, one.first)
                    rounds[number].receives.append(Move(one.rank, begin, begin + size_bytes))
                elif one.rank == rank:
                    own = rows[rank][0]
                    cut = (one.first - own, one.last - own)
                    outbox.append(Cut("model", piece.name, cut, end))
                    rounds[number].sends.append(Move(writer, end, end + size_bytes))
                    end += size_bytes + -size_bytes % _ALIGNMENT
    return outbox, rounds, end


def _shards(shares: Sequence[Share], role: str) -> list[dict[str, list[Piece]]]:
    """For each rank its files of this role, numbered without gaps over all ranks.

    A large share is cut into up to `_SHARDS_A_RANK` files, because hashing one is the work of one
    core.
    """
    cuts = [
        divide(share.pieces[role], min(_SHARDS_A_RANK, -(-share.bytes_of(role) // _SHARD_BYTES)))
        for share in shares
    ]
    total = sum(map(len, cuts))
    numbers = iter(range(1, total + 1))
    return [
        {f"{role}-{next(numbers):05}-of-{total:05}.safetensors": pieces for pieces in cut}
        for cut in cuts
    ]


def _index(by_rank: Sequence[Mapping[str, Sequence[Piece]]]) -> str:
    """The index by which other tools find a tensor's file:
    https://huggingface.co/docs/safetensors/metadata_parsing.
    """
    where = {
        piece.key: name for files in by_rank for name, pieces in files.items() for piece in pieces
    }
    total = sum(
        piece.spec.size_bytes for files in by_rank for pieces in files.values() for piece in pieces
    )
    return (
        json.dumps(
            {"metadata": {"total_size": total}, "weight_map": where}, indent=1, sort_keys=True
        )
        + "\n"
    )
