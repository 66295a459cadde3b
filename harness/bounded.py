"""Reading files that may be somebody else's, or damaged by a crash: only regular files, of bounded
size, as JSON of bounded depth.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

# Of one small file of a run directory
MAX_BYTES = 16 * 2**20

# Of one line of a longer one; tables of many classes are long
MAX_LINE_BYTES = 256 * 2**20

_DIGITS = 18  # of a whole number; one with more is a float, which takes any
_LONG = re.compile(f"[0-9]{{{_DIGITS + 1}}}|-[0-9]{{{_DIGITS}}}")


def open_regular(path: Path, *, links: bool = True) -> FileIO:
    """Open a regular file for reading; anything else, such as a pipe, is refused without waiting,
    and so is a link unless allowed. Raises OSError.
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


def parse_json(data: bytes | str) -> Any:
    """One JSON value. Raises ValueError, also for one that is nested too deeply."""
    if isinstance(data, bytes):  # as json.loads does
        data = data.decode(json.detect_encoding(data), "surrogatepass")
    try:  # the hook is called for each number: only where it is needed
        return json.loads(data, parse_int=_whole if _LONG.search(data) else None)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path) -> Any:
    """What a small file of a run directory holds; no link is followed. Raises OSError and
    ValueError.
    """
    return parse_json(read_bytes(path, links=False))


def json_lines(path: Path, *, links: bool = False) -> Iterator[tuple[bytes, Any]]:
    """Each line of a file that is JSON, with its value; others, such as half a line left by a crash
    at the end, are skipped. Raises OSError.
    """
    with BufferedReader(open_regular(path, links=links)) as file:
        while line := file.readline(MAX_LINE_BYTES):
            if len(line) == MAX_LINE_BYTES:
                raise OSError(errno.EFBIG, f"a line of more than {len(line):,} bytes", str(path))
            try:
                found = parse_json(line)
            except ValueError:
                continue
            yield line, found


def _whole(text: str) -> int | float:
    return int(text) if len(text) <= _DIGITS else float(text)
