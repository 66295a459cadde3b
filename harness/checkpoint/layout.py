"""Which rank writes what: a pure function of the tensors' names, dtypes and shapes, the same on
every rank.

The model's tensors stay whole; large optimizer tensors may be cut between rows. No load exceeds the
mean by more than the largest thing that is not cut.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from harness.checkpoint.format import Spec

CUT_BYTES = 2**20  # tensors from this size on may be cut


@dataclass(frozen=True)
class Piece:
    """A tensor, or the rows [first, last) of one, as it stands in a file under `key`."""

    name: str
    whole: Spec
    rows: tuple[int, int] | None = None

    @property
    def spec(self) -> Spec:
        return self.whole if self.rows is None else self.whole.rows(self.rows[1] - self.rows[0])

    @property
    def key(self) -> str:
        return self.name if self.rows is None else f"{self.name}[{self.rows[0]}:{self.rows[1]}]"


@dataclass
class Share:
    """What one rank writes, by role."""

    pieces: dict[str, list[Piece]] = field(default_factory=lambda: {"model": [], "optimizer": []})
    size_bytes: int = 0

    def add(self, role: str, piece: Piece) -> None:
        self.pieces[role].append(piece)
        self.size_bytes += piece.spec.size_bytes

    def bytes_of(self, role: str) -> int:
        return sum(piece.spec.size_bytes for piece in self.pieces[role])


def find_aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name that shares an earlier one's memory (tied weights), that earlier name."""
    first: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if memory in first:
            aliases[name] = first[memory]
        else:
            first[memory] = name
    return aliases


def assign(model: Mapping[str, Spec], optimizer: Mapping[str, Spec], num_ranks: int) -> list[Share]:
    """The share of each rank. Each tensor, and each row of a cut one, is in exactly one share."""
    shares = [Share() for _ in range(num_ranks)]
    whole = [("model", Piece(name, spec)) for name, spec in model.items()]
    whole += [
        ("optimizer", Piece(name, spec)) for name, spec in optimizer.items() if not _may_cut(spec)
    ]
    whole.sort(key=lambda item: (-item[1].spec.size_bytes, item[0], item[1].name))
    for (role, piece), rank in zip(
        whole, spread([piece.spec.size_bytes for _, piece in whole], num_ranks), strict=True
    ):
        shares[rank].add(role, piece)
    _fill(
        [(name, optimizer[name]) for name in sorted(optimizer) if _may_cut(optimizer[name])], shares
    )
    return shares


def divide(pieces: Sequence[Piece], count: int) -> list[list[Piece]]:
    """The pieces in up to `count` groups of about the same size, none of them empty."""
    ordered = sorted(pieces, key=lambda piece: (-piece.spec.size_bytes, piece.key))
    groups: list[list[Piece]] = [[] for _ in range(count)]
    for piece, index in zip(
        ordered, spread([piece.spec.size_bytes for piece in ordered], count), strict=True
    ):
        groups[index].append(piece)
    return [group for group in groups if group]


def spread(sizes: Sequence[int], count: int) -> list[int]:
    """For each size, largest first, the bin it goes into: the lightest (Graham's
    longest-processing-time rule).
    """
    bins = [(0, index) for index in range(count)]
    chosen = []
    for size in sizes:
        load, index = heapq.heappop(bins)
        chosen.append(index)
        heapq.heappush(bins, (load + size, index))
    return chosen


def _may_cut(spec: Spec) -> bool:
    return spec.num_rows > 1 and spec.size_bytes >= CUT_BYTES


def _fill(tensors: Sequence[tuple[str, Spec]], shares: Sequence[Share]) -> None:
    """Fill the shares up to one level, rank by rank, cutting tensors between rows where a rank is
    full.
    """
    left = sum(spec.size_bytes for _, spec in tensors)
    rank = 0
    level = _level([share.size_bytes for share in shares], left)
    for name, spec in tensors:
        row_bytes = spec.size_bytes // spec.num_rows
        begin = 0
        while begin < spec.num_rows:
            room = max(0, round((level - shares[rank].size_bytes) / row_bytes))
            count = (
                spec.num_rows - begin
                if rank == len(shares) - 1
                else min(room, spec.num_rows - begin)
            )
            if count:
                rows = None if count == spec.num_rows else (begin, begin + count)
                shares[rank].add("optimizer", Piece(name, spec, rows))
                left -= count * row_bytes
                begin += count
            if begin < spec.num_rows:
                rank += 1
                level = _level([share.size_bytes for share in shares[rank:]], left)


def _level(loads: Sequence[int], amount: int) -> float:
    """How high `amount` stands when poured over columns of these heights."""
    filled = 0
    for count, load in enumerate(sorted(loads)):
        if count and (amount + filled) / count <= load:
            return (amount + filled) / count
        filled += load
    return (amount + filled) / len(loads)
