"""Taking one consistent copy of a rank's share: all of a save that the training waits for."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.checkpoint import exact_json
from harness.checkpoint.copying import Copy, HostMemory, Part
from harness.checkpoint.files import Content
from harness.checkpoint.format import Spec, placement_of, spec_of
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
_LATER_FROM_BYTES = 2**21  # what is less is copied sooner than a thread takes over


@dataclass(frozen=True)
class Snapshot:
    """The state after a step.

    Every rank has the same, but for `rng`; rank 0's `trainer`, `metrics`, `facts`, `extra_files`
    and `history` are written.

    `model` is the network's state_dict (tied weights under each of their names), `optimizer` has
    keys "<state>/<parameter name>", `rng` is this rank's. `metrics` are those of an evaluation at
    this very step, or empty: checkpoints are ranked by them.

    `stable`: by role, the tensors that nothing changes before the next optimizer step: they may be
    copied until then.
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
    stable: Mapping[str, Collection[str]] = field(default_factory=dict)


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
    copy: Copy | None  # what of it is still under way

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
    """Takes this rank's share of the state, into memory that is filled again at each save."""

    def __init__(self) -> None:
        self._memory = HostMemory()
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="fermarsi-copy")
        self._copy: Copy | None = None
        self._planned_for: object = None
        self._plan = _Plan([], [], {}, 0, 0)

    def take(self, snapshot: Snapshot, rank: int, num_ranks: int) -> StagedShare:
        """Copy this rank's share of the state; what is stable until `finish`.

        No collective; the host waits for the device. Raises CheckpointError.
        """
        aliases, trainer, texts = self.check(snapshot, rank, num_ranks)
        contents = self._fill(snapshot)
        return StagedShare(
            contents,
            self._plan.pieces,
            aliases,
            self._plan.tensor_bytes,
            trainer,
            texts,
            self._copy,
        )

    def finish(self) -> None:
        """Before an optimizer step: until the copy that is under way no longer needs the present
        values. By the thread that called `take`.
        """
        if self._copy is not None:
            self._copy.finish()
            self._copy = None

    def is_copying(self) -> bool:
        """Whether `finish` is still to be called."""
        return self._copy is not None

    def close(self) -> None:
        """Give the memory back, once nothing reads it."""
        self._copier.shutdown(wait=False)
        self._memory = HostMemory()

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

    def _fill(self, snapshot: Snapshot) -> list[Content]:
        plan = self._plan
        sources = {"model": snapshot.model, "optimizer": snapshot.optimizer, "rng": snapshot.rng}
        now: list[Part] = []
        later: list[list[Part]] = []
        for file in plan.files:
            stable = snapshot.stable.get(file.role, ())
            later.append([])
            for piece, begin in zip(file.pieces, file.begins, strict=True):
                tensor = sources[file.role][piece.name].detach()
                rows = tensor if piece.rows is None else tensor[piece.rows[0] : piece.rows[1]]
                # Torch counts no writes to those of its inference mode
                may_wait = piece.name in stable and not tensor.is_inference()
                (later[-1] if may_wait else now).append(Part(piece.name, rows, begin))
        deferred = [part for parts in later for part in parts]
        if sum(part.tensor.nbytes for part in deferred) < _LATER_FROM_BYTES:
            now += deferred
            deferred = []
        on_gpu = any(part.tensor.device.type != "cpu" for part in (*now, *deferred))
        self._memory.reserve(plan.memory_bytes, on_gpu)
        self._copy = Copy(self._memory, later, self._copier) if deferred else None
        for part in now:
            self._memory.fill(part)
        if on_gpu and now:
            torch.accelerator.current_stream().synchronize()
        return [
            Content(
                file.name, file.role, [file.head, self._memory.bytes[file.begin : file.end]], one
            )
            for file, one in zip(plan.files, self._ready(), strict=True)
        ]

    def _ready(self) -> Sequence[Future[None] | None]:
        return [None] * len(self._plan.files) if self._copy is None else self._copy.ready


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
