"""What the machine denies a training, as one message: files, disks, memory."""

import errno
import os
import resource

import torch

from harness.wording import first_line

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
_NO_MEMORY = ("can't allocate memory", "not enough memory", "cannot allocate memory")


def explain_machine_error(error: BaseException) -> str | None:
    """What was refused and what to do; None for an error of another kind."""
    if isinstance(error, OSError) and error.errno in _ADVICE:
        where = "" if error.filename is None else f"{error.filename}: "
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        advice = _ADVICE[error.errno].format(files=files)
        return f"{where}{os.strerror(error.errno)}. {advice}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    ):
        return (
            f"out of memory ({first_line(error)}). Set a smaller batch.micro_size, which leaves "
            "batch.size as it is, or give the process more memory"
        )
    return None
