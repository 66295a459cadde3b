"""Choosing, verifying and loading checkpoints.

Nothing here is a collective; the caller wraps it in `ranks.decide` or `ranks.together`.

No header is parsed and no size believed before it was compared with the manifest, whose own hash is
checked first: no lie makes us allocate much.
"""

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from harness.bounded import open_regular, read_bytes
from harness.checkpoint import exact_json
from harness.checkpoint.files import prefix_sha256
from harness.checkpoint.manifest import (
    HISTORY,
    MANIFEST,
    MAX_HISTORY_BYTES,
    TRAINER_STATE,
    FileEntry,
    Manifest,
    parse_manifest,
)
from harness.checkpoint.pointers import target_of
from harness.checkpoint.stored import NUM_READERS, StoredTensors, owners_of
from harness.durable import remedy
from harness.errors import CheckpointError
from harness.wording import first_line, some

Verify = Literal["full", "size"]
# Ends the name of a checkpoint that is being replaced by another of the same step; see commit.py
OLD = ".old"
_STEP = re.compile(r"step-([0-9]{8,18})(\.old)?")
# What is small, and parsed: hashed whenever a checkpoint is looked at
_DOCUMENTS = ("trainer", "config", "index", "beside", "history")


@dataclass(frozen=True)
class Choice:
    """The checkpoint to resume from, None to start afresh; and why newer ones were skipped."""

    path: Path | None
    skipped: list[str]


@dataclass(frozen=True)
class LoadedState:
    """A checkpoint: tensors are read as they are asked for. `rng` is None if it was written by
    another number of ranks.
    """

    manifest: Manifest
    trainer: Any
    model: StoredTensors
    optimizer: StoredTensors
    rng: dict[str, Tensor] | None


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint directory; `manifest` is None if it is invalid, `problems` say why."""

    path: Path
    step: int
    manifest: Manifest | None
    problems: list[str]

    @property
    def size_bytes(self) -> int:
        return (
            0
            if self.manifest is None
            else sum(entry.size_bytes for entry in self.manifest.files.values())
        )


def step_name(step: int) -> str:
    """The name of a step's directory."""
    return f"step-{step:08}"


def step_names(directory: Path) -> list[tuple[int, str]]:
    """(step, name) of all checkpoint directories of a run, valid or not, oldest first; of one step,
    the one that is being replaced first.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"{directory}: {error.strerror}. {remedy(error) or 'Fix the disk or its permissions'}."
        ) from error
    found = [
        (int(match[1]), match[2] is None, match[0])
        for match in map(_STEP.fullmatch, names)
        if match
    ]
    return [
        (step, name) for step, _, name in sorted(found) if name.removesuffix(OLD) == step_name(step)
    ]


def list_checkpoints(directory: Path, verify: Verify = "size") -> list[CheckpointInfo]:
    """All checkpoint directories of a run, valid or not, by step."""
    return [inspect(directory / name, step, verify) for step, name in step_names(directory)]


def newest_step(directory: Path) -> int:
    """Of the newest valid checkpoint, by all but the hashes of its tensors; -1 if there is none."""
    for step, name in reversed(step_names(directory)):
        if inspect(directory / name, step).manifest is not None:
            return step
    return -1


def inspect(path: Path, step: int | None = None, verify: Verify = "size") -> CheckpointInfo:
    """One checkpoint directory, valid or not.

    `step`: what it must be of; by default what its name says, if it says anything.
    """
    named = _STEP.fullmatch(path.name)
    if step is None and named is not None:
        step = int(named[1])
    try:
        manifest = read_manifest(path)
        problems = _problems(path, manifest, verify)
    except CheckpointError as error:
        return CheckpointInfo(path, -1 if step is None else step, None, [str(error)])
    except OSError as error:
        return CheckpointInfo(
            path, -1 if step is None else step, None, [f"{path}: {error.strerror}"]
        )
    if step is not None and manifest.step != step:
        problems.append(f"{path.name}: its manifest is of step {manifest.step}")
    return CheckpointInfo(path, manifest.step, None if problems else manifest, problems)


def choose(
    directory: Path,
    resume: str | int | Path,
    *,
    verify: Verify = "full",
    damage: Mapping[str, Sequence[str]] | None = None,
) -> Choice:
    """The checkpoint that `resume` asks for: "auto", "must", "never", a step, a path (also relative
    to `directory`, e.g. "best").

    damage: what `find_damage` has found, by the checkpoint's path.

    Raises CheckpointError if it is not there, is not valid, or if there are checkpoints and none is
    valid.
    """
    damage = damage or {}
    if isinstance(resume, Path) or resume not in ("auto", "must", "never"):
        return Choice(_choose_one(directory, resume, verify, damage, "run.resume: "), [])
    present = step_names(directory)
    if resume == "never" and present:
        raise CheckpointError(
            f"{directory}: run.resume is never, but there are checkpoints. Choose another run.dir "
            "or set run.overwrite: true."
        )
    skipped: list[str] = []
    for step, name in reversed(present):
        listed = inspect(directory / name, step, verify)
        problems = _all_problems(listed, damage)
        if not problems:
            return Choice(listed.path, skipped)
        skipped.append(_skipped(listed.path, problems))
    if skipped:
        reasons = "\n".join(skipped)
        raise CheckpointError(
            f"{directory}: there are checkpoints, but none is valid:\n{reasons}\nFix them, or move "
            f"{directory} away to start over."
        )
    if resume == "must":
        raise CheckpointError(
            f"{directory}: run.resume is must, but there is no checkpoint. Set run.resume: auto to "
            "start afresh."
        )
    return Choice(None, [])


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`, or of the run there: its best if the link to it is good, else its
    newest valid one, with a warning that names those that were skipped. Raises CheckpointError.
    """
    found, skipped = look_for_checkpoint(path, "full", {})
    if skipped:
        warnings.warn(f"{found.name} is taken instead: {'; '.join(skipped)}", stacklevel=3)
    return found


def look_for_checkpoint(
    path: Path, verify: Verify, damage: Mapping[str, Sequence[str]]
) -> tuple[Path, list[str]]:
    """The same, and why others were skipped.

    damage: what `find_damage` has found, by the checkpoint's path. Raises CheckpointError.
    """
    if (path / MANIFEST).exists():
        return _choose_one(path.parent, path.resolve(), verify, damage, ""), []
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    best, skipped = target_of(directory, "best"), []
    if best is not None:
        problems = _all_problems(inspect(best, verify=verify), damage)
        if not problems:
            return best, []
        skipped.append(_skipped(best, problems))
    choice = choose(directory, "auto", verify=verify, damage=damage)
    if choice.path is None:
        raise CheckpointError(
            f"{path}: neither a checkpoint nor a run that has one. Give the directory of one of "
            "them."
        )
    return choice.path, list(dict.fromkeys([*skipped, *choice.skipped]))


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint directory, checked in itself. Raises CheckpointError."""
    try:
        data = read_bytes(path / MANIFEST, exact_json.MAX_BYTES)
    except OSError as error:
        raise CheckpointError(
            f"{path}: no readable {MANIFEST}: {error.strerror}. It is no checkpoint, or a part of "
            "one."
        ) from error
    try:
        return parse_manifest(data)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_trainer(path: Path) -> Any:
    """Only what trainer_state.json holds. Raises CheckpointError."""
    file = path / TRAINER_STATE
    try:
        return exact_json.loads(read_bytes(file, exact_json.MAX_BYTES), str(file))
    except OSError as error:
        raise CheckpointError(
            f"{file}: {error.strerror}. Resume from another checkpoint."
        ) from error


@contextmanager
def document_errors(path: Path) -> Iterator[None]:
    """Around what uses a checkpoint's documents: one that a training would not have written,
    though its hash is right, is reported as a CheckpointError.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its {TRAINER_STATE}, {HISTORY} or {MANIFEST} is not what a training leaves: "
            f"{type(error).__name__}: {first_line(error)}. Resume from another checkpoint."
        ) from error


def load(path: Path, *, rank: int, num_ranks: int) -> LoadedState:
    """What is in a checkpoint. Hashes are `choose`'s or `find_damage`'s to verify. Raises
    CheckpointError.
    """
    manifest = read_manifest(path)
    problems = _problems(path, manifest, "size")
    if problems:
        raise CheckpointError(
            f"{path}: {some(problems, separator='; ')}. Resume from another checkpoint."
        )
    placements = manifest.placements()
    names = {alias: manifest.model[name] for alias, name in manifest.aliases.items()}
    model = StoredTensors(path, manifest.model | names, placements)
    optimizer = StoredTensors(path, manifest.optimizer, placements)
    rng = (
        StoredTensors(path, manifest.rng[rank], placements).read()
        if num_ranks == manifest.world_size
        else None
    )
    return LoadedState(manifest, load_trainer(path), model, optimizer, rng)


def model_of(path: Path, manifest: Manifest) -> StoredTensors:
    """The network's tensors, tied ones once."""
    return StoredTensors(path, manifest.model, manifest.placements())


def _choose_one(
    directory: Path,
    resume: str | int | Path,
    verify: Verify,
    damage: Mapping[str, Sequence[str]],
    where: str,
) -> Path:
    by_step = isinstance(resume, int) or (isinstance(resume, str) and resume.isdecimal())
    wanted = (
        Path(step_name(int(str(resume))))
        if by_step
        else Path(resume)
        if not isinstance(resume, int)
        else Path()
    )
    path = directory / wanted if (directory / wanted).exists() or by_step else wanted
    if str(wanted) in ("best", "latest"):
        path = target_of(directory, str(wanted)) or path
    if by_step and not path.exists() and path.with_name(path.name + OLD).exists():
        path = path.with_name(path.name + OLD)
    listed = inspect(path.resolve(), verify=verify)
    problems = _all_problems(listed, damage)
    if problems:
        present = ", ".join(name for _, name in step_names(directory)) or "none"
        raise CheckpointError(
            f"{where}{path}: {some(problems, separator='; ')}. In {directory} there are: {present}."
        )
    return listed.path


def _all_problems(listed: CheckpointInfo, damage: Mapping[str, Sequence[str]]) -> list[str]:
    return [*listed.problems, *damage.get(str(listed.path), ())]


def _skipped(path: Path, problems: Sequence[str]) -> str:
    return f"{path}: skipped, not valid: {some(problems, 3, separator='; ')}"


def find_damage(path: Path, rank: int, num_ranks: int) -> list[str]:
    """Compare the hashes of this rank's share of a checkpoint's tensor files; the ranks together
    have them all. Raises CheckpointError if there is no checkpoint for this rank.
    """
    manifest = read_manifest(path)
    owners = owners_of(manifest.placements(), num_ranks)
    mine = [name for name, owner in owners.items() if owner == rank]
    return _problems_of(path, manifest, "full", mine)


def _problems(path: Path, manifest: Manifest, verify: Verify) -> list[str]:
    """What is wrong with the files of a checkpoint whose manifest is sound."""
    shards = [name for name in os.listdir(path) if name.endswith((".safetensors", ".index.json"))]
    found = [
        f"{name}: not of this checkpoint" for name in sorted(shards) if name not in manifest.files
    ]
    return found + _problems_of(path, manifest, verify, manifest.files)


def _problems_of(path: Path, manifest: Manifest, verify: Verify, names: Iterable[str]) -> list[str]:
    placements = manifest.placements()

    def check(name: str) -> str | None:
        head = placements[name].head if name in placements else b""
        return _problem(path / name, manifest.files[name], head, verify)

    largest_first = sorted(names, key=lambda name: -manifest.files[name].size_bytes)
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return [problem for problem in pool.map(check, largest_first) if problem is not None]


def _problem(path: Path, entry: FileEntry, head: bytes, verify: Verify) -> str | None:
    try:
        with open_regular(path) as file:
            size_bytes, is_history = os.fstat(file.fileno()).st_size, entry.role == "history"
            if size_bytes < entry.size_bytes or (size_bytes > entry.size_bytes and not is_history):
                return f"{path.name}: {size_bytes} bytes instead of {entry.size_bytes}"
            most = MAX_HISTORY_BYTES if is_history else exact_json.MAX_BYTES
            if entry.role in _DOCUMENTS and entry.size_bytes > most:
                return f"{path.name}: {entry.size_bytes} bytes; no more than {most} are read"
            if os.pread(file.fileno(), len(head), 0) != head:
                return f"{path.name}: its header is not the one that was written"
            hashed = verify == "full" or entry.role in _DOCUMENTS
            if hashed and prefix_sha256(file, entry.size_bytes) != entry.sha256:
                return f"{path.name}: its SHA-256 is not the one that was written"
    except OSError as error:
        return f"{path.name}: {error.strerror}"
    return None
