"""Taking one consistent copy of a rank's share: the only part of a save that holds the training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.checkpoint import exact_json
from harness.checkpoint.files import Content
from harness.checkpoint.format import Placement, Spec, place, spec_of
from harness.checkpoint.layout import Piece, Share, assign, find_aliases
from harness.checkpoint.manifest import CONFIG, MANIFEST, TRAINER_STATE, Reason
from harness.errors import CheckpointError

_ALIGNMENT = 64


@dataclass(frozen=True)
class Snapshot:
    """The state after a step. Every rank has the same, but for `rng`; rank 0's `trainer`, `metrics`, `facts` and `beside` are written.

    `model` is the network's state_dict (tied weights under each of their names), `optimizer` has keys "<state>/<parameter name>", `rng` is this rank's.
    `metrics` are those of an evaluation at this very step, or empty: checkpoints are ranked by them.
    """

    step: int
    epoch: int
    samples: int
    reason: Reason
    exact: bool
    exact_reason: str
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    rng: Mapping[str, Tensor]
    trainer: Mapping[str, Any]
    metrics: Mapping[str, float]
    facts: Mapping[str, Any]
    config_yaml: str
    beside: Mapping[str, str]


@dataclass(frozen=True)
class Staged:
    """What this rank will write: `contents` into files (rank 0 also `small` ones); `pieces` tell which tensors stand where."""

    contents: list[Content]
    small: list[Content]
    pieces: list[dict[str, Any]]
    aliases: dict[str, str]
    total_bytes: int  # of all ranks' tensor files, nearly


class Stage:
    """Host memory that is filled again at each save; pinned where tensors come from a GPU."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def take(self, snapshot: Snapshot, rank: int, num_ranks: int) -> Staged:
        """Copy this rank's share of the state. No collective; the host waits for the device. Raises CheckpointError."""
        model = {name: spec_of(tensor, f"model {name}") for name, tensor in snapshot.model.items()}
        optimizer = {name: spec_of(tensor, f"optimizer {name}") for name, tensor in snapshot.optimizer.items()}
        rng = {name: spec_of(tensor, f"rng {name}") for name, tensor in snapshot.rng.items()}
        aliases = find_aliases(snapshot.model)
        shares = assign({name: spec for name, spec in model.items() if name not in aliases}, optimizer, num_ranks)
        files = _files_of(shares, rank, rng)
        sources: dict[str, Mapping[str, Tensor]] = {"model": snapshot.model, "optimizer": snapshot.optimizer, "rng": snapshot.rng}
        contents = self._copy(files, sources)
        small = _small_files(snapshot, shares) if rank == 0 else []
        pieces = [
            {"role": role, "name": piece.name, "dtype": piece.whole.dtype, "shape": piece.whole.shape, "key": piece.key, "file": name, "rows": piece.rows}
            for name, role, held in files
            for piece in held
        ]
        total = sum(share.size_bytes for share in shares) + sum(content.size_bytes for content in small)
        return Staged(contents, small, pieces, aliases, total)

    def _copy(self, files: Sequence[tuple[str, str, Sequence[Piece]]], sources: Mapping[str, Mapping[str, Tensor]]) -> list[Content]:
        placements = [place({piece.key: piece.spec for piece in held}) for _, _, held in files]
        begins = [0]
        for placement in placements:
            size = placement.size_bytes - len(placement.head)
            begins.append(begins[-1] + size + (-size % _ALIGNMENT))
        on_gpu = any(tensor.is_cuda for _, role, held in files for tensor in (sources[role][piece.name] for piece in held))
        self._reserve(begins[-1], on_gpu)
        contents = []
        with torch.no_grad():
            for (name, role, held), placement, begin in zip(files, placements, begins, strict=False):
                for piece in held:
                    self._copy_one(sources[role][piece.name], piece, begin + placement.begins[piece.key] - len(placement.head))
                contents.append(Content(name, role, [placement.head, self._view(placement, begin)]))
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return contents

    def _copy_one(self, source: Tensor, piece: Piece, begin: int) -> None:
        part = source if piece.rows is None else source[piece.rows[0] : piece.rows[1]]
        room = self._memory[begin : begin + piece.spec.size_bytes]
        room.view(piece.spec.torch_dtype).view(piece.spec.shape).copy_(part, non_blocking=True)

    def _view(self, placement: Placement, begin: int) -> memoryview:
        return memoryview(self._memory[begin : begin + placement.size_bytes - len(placement.head)].numpy())

    def _reserve(self, size_bytes: int, pinned: bool) -> None:
        if self._memory.numel() < size_bytes or (pinned and not self._memory.is_pinned()):
            self._memory = torch.empty(0, dtype=torch.uint8)  # given back before the larger one is taken
            self._memory = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned)


def _files_of(shares: Sequence[Share], rank: int, rng: Mapping[str, Spec]) -> list[tuple[str, str, list[Piece]]]:
    """This rank's files: (name, role, pieces)."""
    files = [(_shards(shares, role)[rank], role, held) for role, held in shares[rank].pieces.items() if held]
    files.append((f"rng-{rank:05}-of-{len(shares):05}.safetensors", "rng", [Piece(name, spec) for name, spec in rng.items()]))
    return files


def _shards(shares: Sequence[Share], role: str) -> dict[int, str]:
    """The file of each rank that has tensors of this role, numbered without gaps."""
    writers = [rank for rank, share in enumerate(shares) if share.pieces[role]]
    return {rank: f"{role}-{index:05}-of-{len(writers):05}.safetensors" for index, rank in enumerate(writers, start=1)}


def _small_files(snapshot: Snapshot, shares: Sequence[Share]) -> list[Content]:
    """Rank 0's files that hold no tensors; encoded now, because the state they come from goes on changing."""
    small = [
        Content(TRAINER_STATE, "trainer", [exact_json.dumps(dict(snapshot.trainer), "trainer state")]),
        Content(CONFIG, "config", [snapshot.config_yaml.encode()]),
        _index(shares, "model"),
        _index(shares, "optimizer"),
    ]
    small += [Content(name, "beside", [text.encode()]) for name, text in snapshot.beside.items()]
    if len({content.name for content in small} | {MANIFEST}) <= len(small):
        raise CheckpointError(f"beside: {sorted(snapshot.beside)}: a name that is the checkpoint's own.")
    return small


def _index(shares: Sequence[Share], role: str) -> Content:
    """The index by which other tools find a tensor's file: https://huggingface.co/docs/safetensors/metadata_parsing."""
    where = {piece.key: file for rank, file in _shards(shares, role).items() for piece in shares[rank].pieces[role]}
    total = sum(piece.spec.size_bytes for share in shares for piece in share.pieces[role])
    document = {"metadata": {"total_size": total}, "weight_map": where}
    return Content(f"{role}.safetensors.index.json", "index", [(json.dumps(document, indent=1, sort_keys=True) + "\n").encode()])
