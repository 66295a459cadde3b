"""Taking one consistent copy of a rank's share: all of a save that the training waits for."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.checkpoint import exact_json
from harness.checkpoint.files import Content
from harness.checkpoint.format import Spec, bytes_of, placement_of, spec_of
from harness.checkpoint.layout import Piece, Share, assign, divide, find_aliases
from harness.checkpoint.manifest import (
    CONFIG,
    FILE_NAME,
    HISTORY,
    MANIFEST,
    TRAINER_STATE,
    SaveReason,
)
from harness.errors import CheckpointError

_ALIGNMENT = 64
_SHARD_BYTES = 64 * 2**20  # what is smaller is not cut
_SHARDS_A_RANK = 4  # of a role, at most


@dataclass(frozen=True)
class Snapshot:
    """The state after a step.

    Every rank has the same, but for `rng`; rank 0's `trainer`, `metrics`, `facts`, `extra_files`
    and `history` are written.

    `model` is the network's state_dict (tied weights under each of their names), `optimizer` has
    keys "<state>/<parameter name>", `rng` is this rank's. `metrics` are those of an evaluation at
    this very step, or empty: checkpoints are ranked by them.
    """

    step: int
    epoch: int
    samples: int
    reason: SaveReason
    exact: bool
    exact_reason: str
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    rng: Mapping[str, Tensor]
    trainer: Mapping[str, Any]
    metrics: Mapping[str, float]
    facts: Mapping[str, Any]
    config_yaml: str
    extra_files: Mapping[str, str]
    history: Sequence[Any]


@dataclass(frozen=True)
class StagedShare:
    """What this rank will write: `contents` into files, rank 0 also `small_files()`; `pieces` tell
    which tensors stand where.
    """

    contents: list[Content]
    pieces: list[dict[str, Any]]
    aliases: dict[str, str]
    total_bytes: int  # of all ranks' tensor files, nearly
    trainer: Any  # as exact_json encodes it
    texts: Mapping[str, tuple[str, str]]  # by file: role, text

    def small_files(self) -> list[Content]:
        """Rank 0's files that hold no tensors."""
        trainer = Content(TRAINER_STATE, "trainer", [exact_json.to_bytes(self.trainer)])
        return [
            trainer,
            *(Content(name, role, [text.encode()]) for name, (role, text) in self.texts.items()),
        ]


@dataclass(frozen=True)
class _File:
    name: str
    role: str
    head: bytes
    pieces: list[Piece]
    begins: list[int]  # of each piece in the host memory
    begin: int  # of all of them
    end: int


@dataclass(frozen=True)
class _Plan:
    """Where everything goes: a function of names, dtypes and shapes, the same at every save of a
    run, and so made once.
    """

    files: list[_File]
    pieces: list[dict[str, Any]]
    indexes: dict[str, tuple[str, str]]
    tensor_bytes: int  # of all ranks
    memory_bytes: int


class Stage:
    """Host memory that is filled again at each save; pinned where tensors come from a GPU."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._bytes = memoryview(b"")  # of the same memory
        self._planned_for: object = None
        self._plan = _Plan([], [], {}, 0, 0)

    def take(self, snapshot: Snapshot, rank: int, num_ranks: int) -> StagedShare:
        """Copy this rank's share of the state.

        No collective; the host waits for the device. Raises CheckpointError.
        """
        aliases, trainer, texts = self.check(snapshot, rank, num_ranks)
        contents = self._copy(
            {"model": snapshot.model, "optimizer": snapshot.optimizer, "rng": snapshot.rng}
        )
        return StagedShare(
            contents, self._plan.pieces, aliases, self._plan.tensor_bytes, trainer, texts
        )

    def check(
        self, snapshot: Snapshot, rank: int, num_ranks: int
    ) -> tuple[dict[str, str], Any, dict[str, tuple[str, str]]]:
        """All of `take` but the copy: (tied names, trainer state in JSON, texts by file).

        Raises CheckpointError for what a checkpoint cannot hold.
        """
        model = {name: spec_of(tensor, f"model {name}") for name, tensor in snapshot.model.items()}
        optimizer = {
            name: spec_of(tensor, f"optimizer {name}")
            for name, tensor in snapshot.optimizer.items()
        }
        rng = {name: spec_of(tensor, f"rng {name}") for name, tensor in snapshot.rng.items()}
        aliases = find_aliases(snapshot.model)
        key = (model, optimizer, rng, aliases, rank, num_ranks)
        if key != self._planned_for:
            shares = assign(
                {name: spec for name, spec in model.items() if name not in aliases},
                optimizer,
                num_ranks,
            )
            self._plan, self._planned_for = _plan(shares, rank, rng), key
        trainer = exact_json.encode(dict(snapshot.trainer), "trainer state") if rank == 0 else None
        texts = {CONFIG: ("config", snapshot.config_yaml), **self._plan.indexes}
        if not all(
            re.match(FILE_NAME, name) for name in snapshot.extra_files
        ) or snapshot.extra_files.keys() & {*texts, TRAINER_STATE, HISTORY, MANIFEST}:
            raise CheckpointError(
                f"extra files {sorted(snapshot.extra_files)}: a name that is the checkpoint's own, "
                "or no plain file name."
            )
        texts |= {name: ("beside", text) for name, text in snapshot.extra_files.items()}
        return aliases, trainer, texts

    def _copy(self, sources: Mapping[str, Mapping[str, Tensor]]) -> list[Content]:
        plan = self._plan
        on_gpu = any(
            sources[file.role][piece.name].device.type != "cpu"
            for file in plan.files
            for piece in file.pieces
        )
        self._reserve(plan.memory_bytes, on_gpu)
        for file in plan.files:
            for piece, begin in zip(file.pieces, file.begins, strict=True):
                source = sources[file.role][piece.name].detach()
                self._copy_one(
                    source if piece.rows is None else source[piece.rows[0] : piece.rows[1]], begin
                )
        if on_gpu:
            torch.accelerator.current_stream().synchronize()
        return [
            Content(file.name, file.role, [file.head, self._bytes[file.begin : file.end]])
            for file in plan.files
        ]

    def _copy_one(self, tensor: Tensor, begin: int) -> None:
        end = begin + tensor.nbytes
        if (
            tensor.device.type == "cpu"
            and tensor.is_contiguous()
            and not (tensor.is_conj() or tensor.is_neg())
        ):
            # One plain memcpy: torch shares each tensor among its threads, which takes many times
            # longer where data workers use the cores [measured].
            self._bytes[begin:end] = bytes_of(tensor)
        else:
            self._memory[begin:end].view(tensor.dtype).view(tensor.shape).copy_(
                tensor, non_blocking=True
            )

    def _reserve(self, size_bytes: int, pinned: bool) -> None:
        if self._memory.numel() < size_bytes or (pinned and not self._memory.is_pinned()):
            # Given back before the larger one is taken
            self._memory, self._bytes = torch.empty(0, dtype=torch.uint8), memoryview(b"")
            self._memory = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned)
            self._bytes = bytes_of(self._memory)


def _plan(shares: Sequence[Share], rank: int, rng: Mapping[str, Spec]) -> _Plan:
    """What this rank writes, and rank 0's indexes."""
    shards = {role: _shards(shares, role) for role in ("model", "optimizer")}
    held = [
        (name, role, pieces)
        for role, by_rank in shards.items()
        for name, pieces in by_rank[rank].items()
    ]
    held.append(
        (
            f"rng-{rank:05}-of-{len(shares):05}.safetensors",
            "rng",
            [Piece(name, spec) for name, spec in rng.items()],
        )
    )
    files: list[_File] = []
    end = 0
    for name, role, pieces in held:
        placement = placement_of({piece.key: piece.spec for piece in pieces})
        begin, head_bytes = end, len(placement.head)
        end = begin + placement.size_bytes - head_bytes
        files.append(
            _File(
                name,
                role,
                placement.head,
                pieces,
                [begin - head_bytes + placement.begins[one.key] for one in pieces],
                begin,
                end,
            )
        )
        end += -end % _ALIGNMENT
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
    indexes = (
        {
            f"{role}.safetensors.index.json": ("index", _index(by_rank))
            for role, by_rank in shards.items()
        }
        if rank == 0
        else {}
    )
    return _Plan(files, described, indexes, sum(share.size_bytes for share in shares), end)


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
