"""`latest` and `best` of a run: relative links to checkpoints, or, on file systems without links
(exFAT, SMB, some FUSE mounts), files `latest.json` and `best.json` that name them.

They are hints for people and for `fermarsi evaluate`, never the authority on what is there.
"""

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from harness.checkpoint.files import TEMPORARY
from harness.durable import read_json, replace, write_json
from harness.errors import DataError

_NAME = re.compile(r"step-\d{8,}")


def point(directory: Path, pointer: str, name: str) -> str | None:
    """Point `latest` or `best` at a checkpoint of the directory, at once; returns why it is a file
    instead of a link, None if it is a link.

    Raises OSError if neither can be written. Leaves: the pointer as it was or as it is to be.
    """
    path, file = directory / pointer, directory / f"{pointer}.json"
    if path.is_symlink() and os.readlink(path) == name:
        return None
    temporary = directory / f"{TEMPORARY}{pointer}-{secrets.token_hex(4)}"
    try:
        os.symlink(name, temporary)
        replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        write_json(file, {"checkpoint": name}, sync=False)
        with suppress(OSError):
            path.unlink(missing_ok=True)  # a link from before, which would now point elsewhere
        return f"{path}: no link can be made here ({error.strerror or error}); {file.name} names it"
    with suppress(OSError):
        file.unlink(missing_ok=True)
    return None


def target_of(directory: Path, pointer: str) -> Path | None:
    """The checkpoint of the directory that `latest` or `best` names, valid or not; None if it names
    none.
    """
    path, file = directory / pointer, directory / f"{pointer}.json"
    name = None
    if path.is_symlink():
        name = os.readlink(path)
    elif file.is_file():
        with suppress(DataError):
            found = read_json(file)
            name = found.get("checkpoint") if isinstance(found, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    return directory / name if (directory / name).is_dir() else None
