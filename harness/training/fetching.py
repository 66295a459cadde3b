"""Networks of a checkpoint that reach for other machines while they are built: their weights come
from the checkpoint, so that nothing has to be fetched, and a fetch is not to go unnoticed.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from harness.errors import ConfigError
from harness.wording import some

_INSTEAD = "give the pretrained network as an argument, which checkpoints replace"


@contextmanager
def built_for_a_checkpoint(tell: Callable[[str], None]) -> Iterator[None]:
    """Around what builds a network whose weights a checkpoint has.

    tell: is given a text if this thread asks for another machine. Raises ConfigError, which says
    what to change, if it asked for one and cannot be built.
    """
    hosts: dict[str, None] = {}
    look_up, builder = socket.getaddrinfo, threading.get_ident()

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == builder:  # trackers have threads of their own
            hosts[host.decode() if isinstance(host, bytes) else str(host)] = None
        return look_up(host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo
    try:
        yield
    except ConfigError as error:
        if not hosts:
            raise
        raise ConfigError(
            f"{error} It asked for {some(hosts)} while it was built, though the checkpoint has its "
            f"weights. Let it load none by itself (weights: null, pretrained: false), or {_INSTEAD}"
            " (docs/networks.md)."
        ) from error
    finally:
        socket.getaddrinfo = look_up
    if hosts:
        tell(
            f"network: asked for {some(hosts)} while it was built, though the checkpoint has its "
            f"weights. To do without, {_INSTEAD}."
        )
