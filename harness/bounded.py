"""Reading files that somebody else may have put there: regular ones, of a bounded size."""

import errno
import os
import stat
from io import BufferedReader, FileIO
from pathlib import Path

# Of one small file of a run directory
MAX_BYTES = 16 * 2**20


def open_regular(path: Path, *, links: bool = True) -> FileIO:
    """Open a regular file for reading; anything else, such as a pipe, is refused without waiting
    for it, and so is a link where there may be none. Raises OSError.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, "a link, which is not followed here", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return FileIO(descriptor, "rb")


def read_bytes(path: Path, most: int = MAX_BYTES, *, links: bool = True) -> bytes:
    """The content of a regular file of at most so many bytes. Raises OSError."""
    with BufferedReader(open_regular(path, links=links)) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > most:
            raise OSError(errno.EFBIG, f"{size_bytes:,} bytes, of at most {most:,}", str(path))
        return file.read(size_bytes)
