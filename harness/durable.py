"""Files and directories that survive a power cut."""

import errno
import json
import os
import resource
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.bounded import parse_json, read_bytes
from harness.errors import DataError

_ADVICE = {
    errno.EMFILE: "Raise the limit of open files (ulimit -n; now {files}), or use fewer data "
    "workers",
    errno.ENFILE: "The machine is at its limit of open files: end the processes that hold them",
    errno.ENOSPC: "Make room on that disk",
    errno.EDQUOT: "Make room within that quota",
    errno.EROFS: "Make that disk writable: it may have been remounted after an error",
    errno.EIO: "Check that disk",
    errno.ESTALE: "Check the file server",
    errno.ENOMEM: "Give the process more memory",
}


def remedy(error: OSError) -> str:
    """What to do where a machine is at its limits or its disks fail; "" for other errors."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _ADVICE.get(error.errno or 0, "").format(files=files)


def sync_directory(directory: Path) -> None:
    """Make the directory's entries durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Create a directory and its missing parents, durably. Raises OSError."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def replace(source: Path, target: Path) -> None:
    """Give a file the name of another, which goes. At once where the file system can; where it
    refuses to rename over a file (some FUSE and network mounts), the other goes first, and a crash
    in between leaves neither. Raises OSError.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        refused = (errno.EEXIST, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS)
        if error.errno not in refused or not os.path.lexists(target):
            raise
        target.unlink()
        os.rename(source, target)


def replace_file(path: Path, text: str, *, sync: bool) -> None:
    """Write a file at once: whoever reads it, in another process too, finds the old text or the new
    one. Several may write; the last one counts. A link of that name is replaced, not followed.

    `sync`: the file's bytes are on the disk before it takes the name
    (`sync_directory` makes the name durable too); without it, a power cut may leave an empty file.
    Raises OSError; the old file stays as it was then.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("x") as file:
            file.write(text)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(
    path: Path, value: Any, *, sync: bool, indent: int | None = None, end: str = ""
) -> None:
    """Write a JSON file as `replace_file` does; `end`: what follows the value."""
    replace_file(path, json.dumps(value, indent=indent) + end, sync=sync)


def read_json(path: Path) -> Any:
    """The content of a file that can be rebuilt. Raises DataError."""
    try:
        return parse_json(read_bytes(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: {error}. Delete {path.parent}: it will be built again."
        ) from error
