"""Which rank writes what: a pure function of the tensors' names, dtypes and shapes, and of the rows
of sharded ones that each rank holds; the same on every rank.

The model's tensors stay whole; large optimizer tensors may be cut between rows. No load exceeds the
mean by more than the largest thing that is not cut. Sharded tensors are written by ranks that hold
their rows, those of the model only where they are not to be whole.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from harness.checkpoint.format import Spec
from harness.ranks.rows import Rows, local_of

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


# The rows of each sharded tensor by (role, name)
Held = Mapping[tuple[str, str], Rows]


@dataclass(frozen=True)
class Source:
    """Rows [first, last) of a piece, and the rank from which its writer has them."""

    rank: int
    first: int
    last: int


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
        local = local_of(tensor)
        # Also on a rank that holds none of its rows, where FSDP2 keeps memory for one all the same
        storage = local.untyped_storage()
        if tensor.numel() == 0 or storage.nbytes() == 0:
            continue
        begin = storage.data_ptr(), local.storage_offset()
        memory = (local.device, *begin, tensor.dtype, tensor.shape, local.stride())
        if memory in first:
            aliases[name] = first[memory]
        else:
            first[memory] = name
    return aliases


def assign(
    model: Mapping[str, Spec],
    optimizer: Mapping[str, Spec],
    num_ranks: int,
    held: Held | None = None,
    *,
    whole_model: bool = True,
) -> list[Share]:
    """The share of each rank. Each tensor, and each row of a cut one, is in exactly one share.

    `held`: of the sharded ones; `whole_model`: whether the model's are written whole all the same.
    """
    held = held or {}
    shares = [Share() for _ in range(num_ranks)]
    pieces = [("model", Piece(name, spec)) for name, spec in model.items()]
    pieces += [("optimizer", Piece(name, spec)) for name, spec in optimizer.items()]
    pieces.sort(key=lambda item: (-item[1].whole.size_bytes, item[0], item[1].name))
    whole, cut = [], []
    for role, piece in pieces:
        if (role, piece.name) in held and not (role == "model" and whole_model):
            _add_rows(role, piece.name, piece.whole, held[role, piece.name], shares)
        elif role == "optimizer" and _may_cut(piece.whole):
            cut.append((piece.name, piece.whole))
        else:
            whole.append((role, piece))
    loads = [share.size_bytes for share in shares]
    for (role, piece), rank in zip(
        whole, spread([piece.whole.size_bytes for _, piece in whole], loads), strict=True
    ):
        shares[rank].add(role, piece)
    _fill(sorted(cut, key=lambda one: one[0]), shares)
    return shares


def sources_of(piece: Piece, writer: int, rows: Rows) -> list[Source]:
    """Where the rank that writes a piece of a sharded tensor has its rows from, in their order: as
    far as it can, from itself.
    """
    first, last = piece.rows or (0, piece.whole.num_rows)
    found = []
    for (begin, end), holders in _stretches(rows):
        low, high = max(first, begin), min(last, end)
        if low < high:
            rank = writer if writer in holders else holders[writer % len(holders)]
            found.append(Source(rank, low, high))
    return found


def _stretches(rows: Rows) -> list[tuple[tuple[int, int], list[int]]]:
    """The rows that ranks hold, in order, and for each stretch of them its holders."""
    holders: dict[tuple[int, int], list[int]] = {}
    for rank, stretch in enumerate(rows):
        if stretch[0] < stretch[1]:
            holders.setdefault(stretch, []).append(rank)
    return sorted(holders.items())


def _add_rows(role: str, name: str, spec: Spec, rows: Rows, shares: Sequence[Share]) -> None:
    """Each stretch of a sharded tensor to a rank that holds it: what is large to all of them in
    equal parts, what is small to the one that has the least.
    """
    for (first, last), holders in _stretches(rows):
        if spec.rows(last - first).size_bytes < CUT_BYTES:
            holders = [min(holders, key=lambda rank: (shares[rank].size_bytes, rank))]
        count = -(-(last - first) // len(holders))
        for index, rank in enumerate(holders):
            begin, end = first + index * count, min(last, first + (index + 1) * count)
            if begin < end:
                is_whole = end - begin == spec.num_rows
                shares[rank].add(role, Piece(name, spec, None if is_whole else (begin, end)))


def divide(pieces: Sequence[Piece], count: int) -> list[list[Piece]]:
    """The pieces in up to `count` groups of about the same size, none of them empty."""
    ordered = sorted(pieces, key=lambda piece: (-piece.spec.size_bytes, piece.key))
    groups: list[list[Piece]] = [[] for _ in range(count)]
    for piece, index in zip(
        ordered, spread([piece.spec.size_bytes for piece in ordered], [0] * count), strict=True
    ):
        groups[index].append(piece)
    return [group for group in groups if group]


def spread(sizes: Sequence[int], loads: Sequence[int]) -> list[int]:
    """For each size, largest first, the bin it goes into: the lightest (Graham's
    longest-processing-time rule). `loads`: what the bins hold already.
    """
    bins = [(load, index) for index, load in enumerate(loads)]
    heapq.heapify(bins)
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
