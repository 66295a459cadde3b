"""What rank 0 does around the writing: a temporary directory, the commit by rename, links,
retention. Everything else only reads.

Order is what makes it safe: files are durable before the manifest, the manifest before the rename,
the rename before anything is deleted; and what is deleted is first renamed, durably, so that half
of it never looks like a checkpoint. Each function says which state a power cut during it leaves.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

from harness.checkpoint.files import (
    TEMPORARY,
    TRASH,
    Content,
    translate_errors,
    write_files,
)
from harness.checkpoint.manifest import MANIFEST, Manifest, dump_manifest
from harness.checkpoint.pointers import point, target_of
from harness.checkpoint.read import OLD, inspect, list_checkpoints, step_name, step_names
from harness.checkpoint.retention import KeptCheckpoint, Ranking, Retention, best_first
from harness.durable import make_directory, sync_directory
from harness.errors import CheckpointError

_SPARE_BYTES = 16 * 2**20  # for directories, the manifest, and whatever else the file system needs

Fence = Callable[[], None]  # raises CheckpointError if another launch has taken the run over


def collect_leftovers(directory: Path, fence: Fence) -> list[str]:
    """Remove what dead attempts left and finish what they had begun; returns the names removed.
    Raises CheckpointError.

    Only for the holder of the run's lease: the temporary directory of a launch that was fenced out
    goes too, so that it cannot be committed any more.
    """
    with translate_errors(f"collecting leftovers in {directory}"):
        return _collect(directory, fence)


def begin(
    directory: Path, step: int, size_bytes: int, fence: Fence, *, written: bool
) -> str | None:
    """Make the temporary directory of a save and return its name; None if the step is already
    there.

    `written`: this process has committed this very state, so that only its presence needs a look.
    Raises CheckpointError.
    Leaves: a temporary directory.
    """
    target = directory / step_name(step)
    with translate_errors(f"beginning {target.name}"):
        make_directory(directory)
        # Tried again at the next save; if it was in the way, what follows fails
        with suppress(OSError):
            _collect(directory, fence)
        if written and inspect(target).manifest is not None:
            return None
        free, needed = shutil.disk_usage(directory).free, size_bytes + _SPARE_BYTES
        if free < needed:
            raise CheckpointError(
                f"{directory}: {free / 1e6:.0f} MB free and {needed / 1e6:.0f} MB needed. Free "
                "some or keep fewer checkpoints."
            )
        name = f"{TEMPORARY}{target.name}-{secrets.token_hex(4)}"
        os.mkdir(directory / name)
        return name


def commit(
    directory: Path,
    temporary: str,
    manifest: Manifest,
    fence: Fence,
    hasher: Executor,
) -> None:
    """Put the manifest into the temporary directory and make it the checkpoint of its step.

    Raises CheckpointError. Leaves: the old state or the new one.

    A checkpoint of the same step gives up its name but stays readable as `<name>.old` until the new
    one bears it.
    """
    source, target = directory / temporary, directory / step_name(manifest.step)
    with translate_errors(f"committing {target.name}"):
        document = dump_manifest(manifest)
        write_files(source, [Content(MANIFEST, "manifest", [document])], hasher)
        sync_directory(source)
        # A launch that is stopped between here and the rename, and wakes up when another one has
        # taken over, finds its temporary directory collected.
        fence()
        if os.path.lexists(target):
            os.rename(target, directory / f"{target.name}{OLD}")
        os.rename(source, target)
        sync_directory(directory)


def tidy(
    directory: Path,
    committed: KeptCheckpoint,
    retention: Retention,
    ranked_by: Ranking | None,
    known: Mapping[str, KeptCheckpoint],
    fence: Fence,
) -> tuple[list[str], dict[str, KeptCheckpoint], list[str]]:
    """After a commit: `latest` and `best`, then retention, whatever becomes of the former.

    Returns (names deleted, what is now known of the checkpoints by name, what of `latest` and
    `best` could not be done). Raises CheckpointError.

    `known`: what this process wrote, or found valid before, which is not looked at again; a file
    system that failed once may read the others now. Leaves: more checkpoints than asked for, or
    trash.
    """
    name = step_name(committed.step)
    with translate_errors(f"tidying up after {name}"):
        fence()
        present = [one for _, one in step_names(directory)]
        if f"{name}{OLD}" in present:
            _retire_superseded(directory, f"{name}{OLD}", keep=name not in known)
        kept = _survey(directory, {**known, name: committed})
        wanted = {"latest": name}
        ranked = best_first(list(kept.values()), ranked_by)
        if ranked:
            wanted["best"] = step_name(ranked[0])
        troubles = [_point(directory, pointer, target) for pointer, target in wanted.items()]
        surplus = [
            step_name(step)
            for step in retention.to_delete(list(kept.values()), ranked_by, committed.step)
        ]
        _delete(directory, surplus)
        left = {one: what for one, what in kept.items() if one not in surplus}
        return surplus, left, [trouble for trouble in troubles if trouble is not None]


def prune(directory: Path, retention: Retention, ranked_by: Ranking | None) -> list[str]:
    """Apply a retention to the checkpoints of a run that is not training (hold its lease); returns
    the names deleted. Raises CheckpointError.

    Hashes are verified first: what is invalid neither counts as kept nor is deleted. The newest
    valid one and the best always stay; where `ranked_by` is None, the best is what the link says.
    """
    with translate_errors(f"pruning {directory}"):
        valid = [
            one
            for one in list_checkpoints(directory, verify="full")
            if not one.path.name.endswith(OLD)
        ]
        kept = [_kept_checkpoint(one.manifest) for one in valid if one.manifest is not None]
        if not kept:
            return []
        surplus = [
            step_name(step)
            for step in retention.to_delete(kept, ranked_by, max(one.step for one in kept))
        ]
        if ranked_by is None and (chosen := target_of(directory, "best")) is not None:
            surplus = [name for name in surplus if name != chosen.name]
        _delete(directory, surplus)
        _collect(directory, lambda: None)  # what an earlier one left when it was killed
        return surplus


def set_aside_newer(directory: Path, step: int) -> list[str]:
    """Rename the checkpoints after `step`, so that a run that resumes from there is not overtaken
    by its own past. Returns their names.

    For the holder of the run's lease. Raises CheckpointError. Leaves: the newest of them set aside,
    or more.
    """
    with translate_errors(f"setting checkpoints aside in {directory}"):
        newer = [name for number, name in step_names(directory) if number > step]
        for name in reversed(newer):
            os.rename(directory / name, directory / _aside(name))
        if newer:
            sync_directory(directory)
        return newer


def _collect(directory: Path, fence: Fence) -> list[str]:
    names = os.listdir(directory) if directory.is_dir() else []
    leftovers = [name for name in names if name.startswith((TEMPORARY, TRASH))]
    superseded = [name for name in names if name.endswith(OLD)]
    if leftovers or superseded:
        fence()
    for name in superseded:
        _retire_superseded(directory, name, keep=True)
    _delete(directory, leftovers)
    return leftovers


def _retire_superseded(directory: Path, name: str, *, keep: bool) -> None:
    """Finish a commit over a checkpoint of the same step.

    If the new one bears the name the old one goes, or is kept aside; else it gets it back.
    """
    target = directory / name.removesuffix(OLD)
    if not target.exists():
        os.rename(directory / name, target)
    elif keep:  # another launch wrote it: its owner may want to look at it
        os.rename(directory / name, directory / _aside(target.name))
    else:
        _delete(directory, [name])


def _aside(name: str) -> str:
    return f"aside-{name}-{secrets.token_hex(4)}"


def _survey(directory: Path, known: Mapping[str, KeptCheckpoint]) -> dict[str, KeptCheckpoint]:
    found: dict[str, KeptCheckpoint] = {}
    for step, name in step_names(directory):
        if name in known:
            found[name] = known[name]
        elif not name.endswith(OLD):
            manifest = inspect(directory / name, step).manifest
            if manifest is not None:
                found[name] = _kept_checkpoint(manifest)
    return found


def known_from(directory: Path, found: Path | None) -> dict[str, KeptCheckpoint]:
    """What a launch knows of the run's checkpoints when it begins: the one that it resumes from,
    and may write again.
    """
    manifest = (
        None
        if found is None or found.resolve().parent != directory.resolve()
        else inspect(found).manifest
    )
    return {} if manifest is None else {step_name(manifest.step): _kept_checkpoint(manifest)}


def _kept_checkpoint(manifest: Manifest) -> KeptCheckpoint:
    return KeptCheckpoint(manifest.step, manifest.epoch, dict(manifest.metrics))


def _point(directory: Path, pointer: str, name: str) -> str | None:
    try:
        return point(directory, pointer, name)
    except OSError as error:
        return f"{directory / pointer}: cannot be written: {error.strerror or error}"


def _delete(directory: Path, names: Sequence[str]) -> None:
    """Rename to the trash, make that durable, then remove.

    Leaves: each one whole under its name, or trash.
    """
    trash = [
        name if name.startswith((TEMPORARY, TRASH)) else f"{TRASH}{name}-{secrets.token_hex(4)}"
        for name in names
    ]
    for name, gone in zip(names, trash, strict=True):
        if gone != name:
            os.rename(directory / name, directory / gone)
    if trash != list(names):
        sync_directory(directory)
    for path in (directory / gone for gone in trash):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)
