"""The connections of this process's groups: to cut them is the only way out of a collective of
gloo's whose peer neither answers nor ends, before its time limit (torch 2.15: `abort` returns at
once, and nothing is woken).
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_known: set[tuple[int, str]] = set()
_making = 0


@contextmanager
def noted_sockets() -> Iterator[None]:
    """Take note of the connections that are made inside. Linux only: elsewhere none is noted."""
    global _making
    before = _open()
    _making += 1
    try:
        yield
    finally:
        _making -= 1
        _known.update(_open() - before)


def are_made() -> bool:
    """Whether connections are being made at present."""
    return _making > 0


def cut_sockets(store_port: int) -> None:
    """Cut those that are still open, but for the ones to the store of the launch."""
    for number, _ in _known & _open():
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as one:
            is_inet = one.family in (socket.AF_INET, socket.AF_INET6)
            if is_inet and one.getpeername()[1] != store_port:
                one.shutdown(socket.SHUT_RDWR)
    _known.clear()


def _open() -> set[tuple[int, str]]:
    found = set()
    with suppress(OSError):
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                name = os.readlink(f"/proc/self/fd/{number}")
                if name.startswith("socket:"):
                    found.add((int(number), name))
    return found
