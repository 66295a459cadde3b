"""What the machine denies a training, as one message: files, disks, memory."""

import os
import resource

import torch

from harness.durable import remedy
from harness.ranks.heartbeat import EVALUATION
from harness.wording import first_line

_NO_MEMORY = ("can't allocate memory", "not enough memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused, on the host or on a device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    )


def peak_bytes() -> tuple[int, str]:
    """The most memory that this process had in use, and of what."""
    on_device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    if on_device:
        return on_device, "device"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "host"  # Linux: in KiB


def explain_machine_error(error: BaseException, phase: str = "") -> str | None:
    """What was refused in a phase and what to do; None for an error of another kind."""
    if isinstance(error, OSError) and error.errno and (advice := remedy(error)):
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{os.strerror(error.errno)}. {advice}"
    if is_out_of_memory(error):
        peak, kind = peak_bytes()
        noted = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        smaller = "batch.micro_size, which leaves batch.size as it is"
        if phase == EVALUATION:
            smaller = "evaluation.micro_size"
        return (
            f"out of memory{noted} ({first_line(error)}); {peak / 1e9:,.2f} GB of {kind} memory "
            f"were in use at most. Set a smaller {smaller}, or train.precision: bf16, or give the "
            "process more memory"
        )
    return None
