"""The manifest: what a checkpoint is and which bytes belong to it.

A directory without a valid one is no checkpoint.

Everything in it is checked before it is believed: a manifest may come from anywhere.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.checkpoint import exact_json
from harness.checkpoint.format import Placement, Spec, known_dtype, placement_of
from harness.errors import CheckpointError
from harness.wording import some

FORMAT = "fermarsi-checkpoint"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
CLASSES = "classes"  # of the facts: names by column, in the order of their numbers
CONFIG = "config.yaml"
HISTORY = "history.jsonl"
MAX_SIZE = 2**60  # of any number of bytes or elements
MAX_HISTORY_BYTES = 2**31  # millions of evaluations

Role = Literal["model", "optimizer", "rng", "trainer", "config", "index", "beside", "history"]
SaveReason = Literal["schedule", "best", "interrupted", "final"]
Count = Annotated[int, Field(ge=0, le=MAX_SIZE)]
FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$"  # no directory, nothing hidden
FileName = Annotated[str, Field(pattern=FILE_NAME)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class FileEntry(_Strict):
    """One file of a checkpoint; of a history its first bytes: more may stand behind."""

    size_bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    role: Role


class PieceEntry(_Strict):
    """Where a tensor, or some of its rows [first, last), stands."""

    file: FileName
    key: str
    rows: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None


class TensorEntry(_Strict):
    """One tensor and the pieces that make it up, in the order of rows."""

    dtype: str
    shape: Annotated[list[Count], Field(max_length=64)]
    parts: Annotated[list[PieceEntry], Field(min_length=1)]

    @property
    def spec(self) -> Spec:
        return Spec(self.dtype, tuple(self.shape))


class Manifest(_Strict):
    """What `manifest.json` holds.

    `metrics` and `facts` hold floats exactly; `written_at` is for information only.

    `num_evaluations`: the rows of the history; None in format 1, whose trainer state holds them.
    """

    format: Literal["fermarsi-checkpoint"] = "fermarsi-checkpoint"
    format_version: Literal[1, 2] = 2
    run_id: str
    attempt: str
    step: Count
    epoch: Count
    samples: Count
    world_size: Annotated[int, Field(ge=1, le=2**20)]
    reason: SaveReason
    exact: bool
    exact_reason: str
    metrics: dict[str, float]
    facts: dict[str, Any]
    num_evaluations: Count | None = None
    versions: dict[str, str]
    written_at: str
    files: dict[FileName, FileEntry]
    model: dict[str, TensorEntry]
    aliases: dict[str, str]
    optimizer: dict[str, TensorEntry]
    rng: list[dict[str, TensorEntry]]

    def tensors(self) -> Iterable[tuple[str, Role, TensorEntry]]:
        """Every tensor with its name and the role of the files it may stand in."""
        yield from ((name, "model", entry) for name, entry in self.model.items())
        yield from ((name, "optimizer", entry) for name, entry in self.optimizer.items())
        for rank, entries in enumerate(self.rng):
            yield from ((f"rank {rank}'s {name}", "rng", entry) for name, entry in entries.items())

    def placements(self) -> dict[str, Placement]:
        """For each tensor file, what its header must be and where its tensors lie."""
        specs: dict[str, dict[str, Spec]] = {
            name: {}
            for name, entry in self.files.items()
            if entry.role in ("model", "optimizer", "rng")
        }
        for _, _, entry in self.tensors():
            for piece in entry.parts:
                specs[piece.file][piece.key] = (
                    entry.spec
                    if piece.rows is None
                    else entry.spec.rows(piece.rows[1] - piece.rows[0])
                )
        return {file: placement_of(held) for file, held in specs.items()}

    def problems(self) -> list[str]:
        """What contradicts itself: a tensor not covered exactly once, a file of the wrong size or
        role.
        """
        found: list[str] = []
        seen: set[tuple[str, str]] = set()
        for name, role, entry in self.tensors():
            if not known_dtype(entry.dtype) or not _is_covered(entry):
                found.append(
                    f"{name}: its pieces do not make up a {entry.dtype} tensor of shape "
                    f"{entry.shape}"
                )
            for piece in entry.parts:
                if (
                    piece.file not in self.files
                    or self.files[piece.file].role != role
                    or (piece.file, piece.key) in seen
                ):
                    found.append(
                        f"{name}: its piece in {piece.file} is missing, of another kind, or used "
                        "twice"
                    )
                seen.add((piece.file, piece.key))
        found += [
            f"alias {alias} of {name}: no such tensor"
            for alias, name in self.aliases.items()
            if name not in self.model or alias in self.model
        ]
        if len(self.rng) != self.world_size:
            found.append(f"random states of {len(self.rng)} ranks, not of {self.world_size}")
        found += [f"no {name}" for name in (TRAINER_STATE, CONFIG) if name not in self.files]
        histories = [name for name, entry in self.files.items() if entry.role == "history"]
        if histories != [HISTORY] * (self.format_version > 1) or (
            (self.num_evaluations is None) == bool(histories)
        ):
            found.append(f"its history of evaluations is not {HISTORY}, or not counted")
        found += [] if MANIFEST not in self.files else [f"{MANIFEST} lists itself"]
        if not found:
            sizes = {file: placement.size_bytes for file, placement in self.placements().items()}
            found += [
                f"{file}: its size does not fit its tensors"
                for file, size in sizes.items()
                if self.files[file].size_bytes != size
            ]
        return found


def dump_manifest(manifest: Manifest) -> bytes:
    """The document for a manifest, with its own hash.

    Raises CheckpointError if the manifest contradicts itself.
    """
    problems = manifest.problems()
    if problems:
        raise CheckpointError(
            f"step {manifest.step}: ranks do not hold the same state: "
            f"{some(problems, separator='; ')}."
        )
    body = manifest.model_dump()
    body["metrics"] = exact_json.encode(body["metrics"], "metrics")
    body["facts"] = exact_json.encode(body["facts"], "facts")
    return _document({**body, "sha256": _own_hash(body)})


def parse_manifest(data: bytes) -> Manifest:
    """The inverse of `dump_manifest`.

    Raises CheckpointError for anything that `dump_manifest` would not have written.
    """
    body = exact_json.parse(data, MANIFEST)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise CheckpointError(f"{MANIFEST}: not a fermarsi checkpoint.")
    version = body.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{MANIFEST}: format {version}; this fermarsi reads up to {FORMAT_VERSION}. Use the "
            "newer fermarsi that wrote it."
        )
    is_canonical = data in (_document(body), _indented(body))
    if body.pop("sha256", None) != _own_hash(body) or not is_canonical:
        raise CheckpointError(f"{MANIFEST}: its own hash does not hold: it was damaged or edited.")
    try:
        body["metrics"] = exact_json.decode(body.get("metrics"))
        body["facts"] = exact_json.decode(body.get("facts"))
        manifest = Manifest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"{MANIFEST}: {'.'.join(map(str, first['loc']))}: {first['msg']}."
        ) from error
    except RecursionError as error:
        raise CheckpointError(f"{MANIFEST}: nested too deeply.") from error
    problems = manifest.problems()
    if problems:
        raise CheckpointError(f"{MANIFEST}: {some(problems, separator='; ')}.")
    return manifest


def join_pieces(pieces: Sequence[Mapping[str, Any]]) -> dict[str, TensorEntry]:
    """Entries for the pieces {name, dtype, shape (of the whole), key, file, rows} that the ranks
    reported. Raises CheckpointError.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for piece in pieces:
        by_name.setdefault(piece["name"], []).append(piece)
    entries: dict[str, TensorEntry] = {}
    for name, held in by_name.items():
        held.sort(key=lambda piece: piece["rows"] or [0, 0])
        dtype, shape = held[0]["dtype"], list(held[0]["shape"])
        if any((piece["dtype"], list(piece["shape"])) != (dtype, shape) for piece in held):
            raise CheckpointError(f"{name}: ranks hold it with different dtypes or shapes.")
        entries[name] = TensorEntry(
            dtype=dtype,
            shape=shape,
            parts=[PieceEntry(file=one["file"], key=one["key"], rows=one["rows"]) for one in held],
        )
    return entries


def _is_covered(entry: TensorEntry) -> bool:
    if entry.parts[0].rows is None:
        return len(entry.parts) == 1
    if not entry.shape:
        return False
    bounds = [piece.rows for piece in entry.parts if piece.rows is not None]
    ends = [0, *(last for _, last in bounds)]
    in_order = [first for first, _ in bounds] == ends[:-1] and ends == sorted(set(ends))
    return len(bounds) == len(entry.parts) and in_order and ends[-1] == entry.shape[0]


def _document(body: Mapping[str, Any]) -> bytes:
    """One entry a line. Where json indents, it encodes in Python, which would take longer than all
    the rest of a save of a small network.
    """
    lines = []
    for key in sorted(body):
        value = body[key]
        if isinstance(value, dict) and value:
            entries = (f"  {_compact(name)}: {_compact(value[name])}" for name in sorted(value))
            lines.append(f" {_compact(key)}: {{\n" + ",\n".join(entries) + "\n }")
        else:
            lines.append(f" {_compact(key)}: {_compact(value)}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _indented(body: Mapping[str, Any]) -> bytes:
    """As manifests were written before."""
    return (json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


# Made once: json.dumps would make one for each of the document's lines
_compact = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def _own_hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_compact(body).encode()).hexdigest()
