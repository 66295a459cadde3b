"""Parts of a training on a file system that refuses a call."""

import os
from typing import Any

from tests.resume.parts import Blobs


class OnPoorDisk(Blobs):
    """Points like `Blobs`, in a process whose file system refuses the call REFUSED: `symlink`,
    `link`, `flock`, or `replace` over a file that exists.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        super().__init__(count, seed)
        name = os.environ["REFUSED"]
        if name == "flock":
            import fcntl

            fcntl.flock = fcntl.lockf = _refuse  # type: ignore[assignment]
            return
        real = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            if name == "replace" and not os.path.lexists(args[1]):
                return real(*args, **options)
            return _refuse()

        setattr(os, name, call)


def _refuse(*_: Any, **__: Any) -> Any:
    raise OSError(95, "Operation not supported")
