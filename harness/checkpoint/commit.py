"""What rank 0 does around the writing: a temporary directory, the commit by rename, links, retention. Everything else only reads.

Order is what makes it safe: files are durable before the manifest, the manifest before the rename, the rename before anything is deleted; and what is deleted
is first renamed, durably, so that half of it never looks like a checkpoint. Each function says which state a power cut in its midst leaves.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from harness.checkpoint.files import Content, make_directory, sync_directory, telling, write_files
from harness.checkpoint.manifest import MANIFEST, FileEntry, Manifest, dump_manifest, join_parts
from harness.checkpoint.read import list_checkpoints, step_name, verify_checkpoint
from harness.checkpoint.retention import BestRank, Kept, Retention, ranking
from harness.errors import CheckpointError

TEMPORARY = ".tmp-"
TRASH = ".trash-"
_SPARE_BYTES = 16 * 2**20  # for directories, the manifest, and whatever else the file system needs


def collect_leftovers(directory: Path) -> list[str]:
    """Remove what dead attempts left; returns the names. Only for the holder of the run's lease. Raises OSError."""
    found = [name for name in os.listdir(directory) if name.startswith((TEMPORARY, TRASH))] if directory.is_dir() else []
    for name in found:
        _remove(directory / name)
    return found


def begin(directory: Path, step: int, size_bytes: int, trusted: bool) -> str | None:
    """Make the temporary directory of a save and return its name; None if the step is already there and valid.

    `trusted`: this process committed it, so that its hashes need not be computed again. Raises CheckpointError. Leaves: a temporary directory.
    """
    target = directory / step_name(step)
    with telling(f"beginning {target.name}"):
        make_directory(directory)
        collect_leftovers(directory)
        if target.is_dir() and not (_size_problems(target) if trusted else verify_checkpoint(target)):
            return None
        free_bytes = shutil.disk_usage(directory).free
        if free_bytes < size_bytes + _SPARE_BYTES:
            raise CheckpointError(
                f"{directory}: {free_bytes / 1e6:.0f} MB free and {(size_bytes + _SPARE_BYTES) / 1e6:.0f} MB needed. Free some or keep fewer checkpoints."
            )
        name = f"{TEMPORARY}{target.name}-{secrets.token_hex(4)}"
        os.mkdir(directory / name)
        return name


def commit(directory: Path, temporary: str, step: int, small: Sequence[Content], manifest: Callable[[list[dict[str, Any]]], Manifest],
           fence: Callable[[], None], hasher: Executor) -> None:
    """Complete the temporary directory and make it the checkpoint of its step. Raises CheckpointError. Leaves: the old state or the new one."""
    source, target = directory / temporary, directory / step_name(step)
    with telling(f"committing {target.name}"):
        records = write_files(source, small, hasher)
        document = dump_manifest(manifest(records))
        write_files(source, [Content(MANIFEST, "manifest", [document])], hasher)
        sync_directory(source)
        fence()
        if os.path.lexists(target):  # begin() found it invalid: it is not lost, but it gives up its name
            os.rename(target, directory / f"invalid-{target.name}-{temporary[-8:]}")
        os.rename(source, target)
        sync_directory(directory)
