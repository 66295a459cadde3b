"""Durable files: each call to the system is plain (open, write, fsync, rename), so that a power cut
between any two can be reasoned about.
"""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from harness.bounded import open_regular
from harness.durable import remedy
from harness.errors import CheckpointError

CHUNK_BYTES = 8 * 2**20
_READ_BYTES = 2**18
_SMALL_BYTES = 2**16


# What a directory that is being written, or is to go, is called.
TEMPORARY = ".tmp-"
TRASH = ".trash-"


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file that is there already."""

    path: Path
    begin: int
    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, so many at a time. Raises OSError, also if there are fewer."""
        with open_regular(self.path) as file:
            for begin in range(0, self.size_bytes, CHUNK_BYTES):
                count = min(CHUNK_BYTES, self.size_bytes - begin)
                octets = os.pread(file.fileno(), count, self.begin + begin)
                if len(octets) < count:
                    raise OSError(errno.EIO, "ends early", str(self.path))
                yield memoryview(octets)


@dataclass(frozen=True)
class Content:
    """The bytes of a file to be written, in order; they must not change before it is written.

    `ready`: when they are there; None if they are.
    """

    name: str
    role: str
    chunks: Sequence[bytes | memoryview | Stretch]
    ready: Future[None] | None = None

    @property
    def size_bytes(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)

    @property
    def is_small(self) -> bool:
        """Whether it is hashed sooner than a thread takes over."""
        return self.size_bytes <= _SMALL_BYTES

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, so many at a time, once they are there."""
        if self.ready is not None:
            self.ready.result()
        for one in self.chunks:
            if isinstance(one, Stretch):
                yield from one.pieces()
                continue
            view = memoryview(one)
            for begin in range(0, len(view), CHUNK_BYTES):
                yield view[begin : begin + CHUNK_BYTES]


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """An OSError inside becomes a CheckpointError that says what was being done."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or what}: {what} failed: {error.strerror or error}. "
            f"{remedy(error) or 'Fix the disk or its permissions'}."
        ) from error


def write_files(
    directory: Path, contents: Sequence[Content], hasher: Executor
) -> list[dict[str, object]]:
    """Create, fill and fsync new files; returns {name, role, size_bytes, sha256} of each. Large
    ones are hashed in parallel with writing. Raises OSError.
    """
    hashes = {one.name: hasher.submit(_sha256, one) for one in contents if not one.is_small}
    digests: dict[str, str] = {}
    try:
        with ExitStack() as small:
            unsynced: list[int] = []
            for content in contents:
                if not content.is_small:
                    _write_large(directory / content.name, content)
                    continue
                descriptor = _create(directory / content.name)
                small.callback(os.close, descriptor)
                _fill(descriptor, content)
                digests[content.name] = _sha256(content)
                unsynced.append(descriptor)
            # One after the other: a journal takes several at once
            for descriptor in unsynced:
                os.fsync(descriptor)
    finally:
        # Also after a failure: the bytes may be reused from here on
        digests |= {name: digest.result() for name, digest in hashes.items()}
    return [
        {
            "name": content.name,
            "role": content.role,
            "size_bytes": content.size_bytes,
            "sha256": digests[content.name],
        }
        for content in contents
    ]


def _write_large(path: Path, content: Content) -> None:
    descriptor = _create(path)
    try:
        _reserve(descriptor, content.size_bytes)
        _fill(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def _fill(descriptor: int, content: Content) -> None:
    end = 0
    for chunk in content.pieces():
        written = 0
        while written < len(chunk):
            written += os.pwrite(descriptor, chunk[written:], end + written)
        end += written


def _reserve(descriptor: int, size_bytes: int) -> None:
    """Find out that the disk is full before the first byte is written, where system and file system
    can tell.
    """
    if size_bytes == 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def prefix_sha256(file: FileIO, size_bytes: int) -> str:
    """The hash of the next bytes of a file. Raises OSError, also if there are fewer."""
    digest, left = hashlib.sha256(), size_bytes
    buffer = memoryview(bytearray(min(size_bytes, _READ_BYTES)))
    while left:
        count = file.readinto(buffer[:left])
        if not count:
            raise OSError(errno.EIO, "ends early")
        digest.update(buffer[:count])
        left -= count
    return digest.hexdigest()


def _sha256(content: Content) -> str:
    digest = hashlib.sha256()
    for chunk in content.pieces():
        digest.update(chunk)
    return digest.hexdigest()
