"""The history of evaluations: one file of a launch, to which each of its checkpoints has a hard
link; a short one is each checkpoint's own.

A checkpoint vouches for a beginning of it. What stands behind, of later evaluations or of a write
that was cut off, belongs to no checkpoint or to a later one, and is never read. What a checkpoint
vouches for is never written to again, and another launch begins a file of its own: so it does not
matter which checkpoints are deleted, set aside or copied elsewhere.
"""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from harness.bounded import MAX_LINE_BYTES, open_regular
from harness.checkpoint import exact_json
from harness.checkpoint.files import CHUNK_BYTES, Content, prefix_sha256, write_files
from harness.checkpoint.manifest import HISTORY, MAX_HISTORY_BYTES, FileEntry
from harness.checkpoint.read import read_manifest
from harness.errors import CheckpointError

_ROWS_A_WRITE = 1000
# Shorter ones are written anew: a damage to one checkpoint is then no other's
SHARED_FROM_BYTES = 2**16


@dataclass(frozen=True)
class _Prefix:
    """What one checkpoint vouches for. `digest`: SHA-256, which the next save continues."""

    num_rows: int
    size_bytes: int
    digest: "hashlib._Hash"

    def record(self) -> dict[str, Any]:
        return {
            "name": HISTORY,
            "role": "history",
            "size_bytes": self.size_bytes,
            "sha256": self.digest.hexdigest(),
        }


_NOTHING = _Prefix(0, 0, hashlib.sha256())


class HistoryFile:
    """The file of this launch, on rank 0. It has no name but those in checkpoints: each is linked
    from the one committed before.

    Only what is committed counts: after a failure the next checkpoint writes the same bytes again.
    """

    def __init__(self) -> None:
        self._path: Path | None = None  # in the last checkpoint
        self._committed = self._put = _NOTHING

    def put_into(
        self, checkpoint: Path, history: Sequence[Any], num_rows: int, hasher: Executor
    ) -> dict[str, Any]:
        """Give the directory of a checkpoint its history: the first `num_rows` rows, of which those
        are written that are not in the file yet. Returns {name, role, size_bytes, sha256}.

        Where no link can be made, as on FAT and some network mounts, it is a copy. Raises OSError,
        and CheckpointError for a row that cannot be stored.
        """
        last = self._open_last(num_rows)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(checkpoint / HISTORY, flags, 0o666) if last is None else last
        try:
            written = _NOTHING if last is None else self._committed
            self._put = _append(descriptor, written, history, num_rows)
            if last is not None:
                self._give(descriptor, checkpoint, hasher)
        finally:
            os.close(descriptor)
        return self._put.record()

    def note_commit(self, checkpoint: Path) -> None:
        """That the directory that it was put into is the checkpoint of this name now."""
        self._path, self._committed = checkpoint / HISTORY, self._put

    def _open_last(self, num_rows: int) -> int | None:
        """The file in the last checkpoint; None if there is none, it is short, or somebody has cut
        it short, or it holds more than is asked for: another one is begun then.
        """
        last = self._committed
        if self._path is None or num_rows < last.num_rows or last.size_bytes < SHARED_FROM_BYTES:
            return None
        with suppress(OSError):
            descriptor = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            if os.fstat(descriptor).st_size >= self._committed.size_bytes:
                return descriptor
            os.close(descriptor)
        return None

    def _give(self, descriptor: int, checkpoint: Path, hasher: Executor) -> None:
        assert self._path is not None
        target = checkpoint / HISTORY
        with suppress(OSError):  # whatever the reason: a copy is as good
            os.link(self._path, target)
            return
        # Network mounts may say that a link failed that they made
        if target.exists() and os.path.samestat(target.stat(), os.fstat(descriptor)):
            return
        size_bytes = self._put.size_bytes
        chunks = [
            os.pread(descriptor, min(CHUNK_BYTES, size_bytes - begin), begin)
            for begin in range(0, size_bytes, CHUNK_BYTES)
        ]
        if write_files(checkpoint, [Content(HISTORY, "history", chunks)], hasher) != [
            self._put.record()
        ]:
            path, self._path = self._path, None
            raise OSError(errno.EIO, "no longer what was written", str(path))


def _append(descriptor: int, written: _Prefix, history: Sequence[Any], num_rows: int) -> _Prefix:
    """Write and fsync the rows that follow what is `written`. Raises OSError, CheckpointError."""
    digest, end = written.digest.copy(), written.size_bytes
    for first in range(written.num_rows, num_rows, _ROWS_A_WRITE):
        block = b"".join(
            exact_json.dumps(history[number], f"evaluation {number + 1}")
            for number in range(first, min(first + _ROWS_A_WRITE, num_rows))
        )
        if end + len(block) > MAX_HISTORY_BYTES:
            raise CheckpointError(
                f"{num_rows:,} evaluations are more than a checkpoint holds "
                f"({MAX_HISTORY_BYTES:,} bytes). Evaluate less often (stop.every)."
            )
        digest.update(block)
        done = 0
        while done < len(block):
            done += os.pwrite(descriptor, block[done:], end + done)
        end += done
    os.fsync(descriptor)
    return _Prefix(num_rows, end, digest)


def read_history(path: Path) -> list[Any] | None:
    """The rows of a checkpoint's history, as exact_json brings them back; None in format 1, whose
    trainer state holds them. Raises CheckpointError, also if they are not those that were written.
    """
    manifest = read_manifest(path)
    entry = manifest.files.get(HISTORY)
    if entry is None:
        return None
    file = path / HISTORY
    try:
        rows = list(_rows(file, entry))
    except OSError as error:
        raise CheckpointError(
            f"{file}: {error.strerror}. Resume from another checkpoint."
        ) from error
    if len(rows) != manifest.num_evaluations:
        raise CheckpointError(
            f"{file}: {len(rows)} evaluations instead of {manifest.num_evaluations}. Resume from "
            "another checkpoint."
        )
    return rows


def _rows(path: Path, entry: FileEntry) -> Iterator[Any]:
    with open_regular(path) as raw, BufferedReader(raw) as file:
        if prefix_sha256(raw, entry.size_bytes) != entry.sha256:
            raise OSError(errno.EIO, "its SHA-256 is not the one that was written", str(path))
        file.seek(0)
        left = entry.size_bytes
        while left > 0 and (line := file.readline(min(left, MAX_LINE_BYTES))):
            left -= len(line)
            yield exact_json.loads(line, str(path))
