"""What the machine denies a training, as one message: files, disks, memory."""

import math
import os
import resource
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.durable import remedy
from harness.ranks.heartbeat import EVALUATION
from harness.ranks.rows import local_of
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


def kinds_of_memory(network: nn.Module, optimizer: Optimizer) -> str:
    """What of a network this process is known to hold from step to step, in words."""
    parameters = list(network.parameters())
    gradients = [one.grad for one in parameters if one.grad is not None]
    states = [one for one in optimizer.state.values() if isinstance(one, Mapping)]
    kept = [one for state in states for one in state.values()]
    kinds: dict[str, Sequence[Tensor]] = {
        "parameters": parameters,
        "gradients": gradients,
        "the optimizer's state": [one for one in kept if isinstance(one, Tensor)],
        "buffers": list(network.buffers()),
    }
    sizes = {name: sum(local_of(one).nbytes for one in held) for name, held in kinds.items()}
    return ", ".join(f"{size / 1e9:,.2f} GB of {name}" for name, size in sizes.items() if size)


def available_bytes() -> float:
    """Memory that this process may still take on the host: of the machine, of its container and
    by its own limit (RLIMIT_DATA), as far as Linux tells; else infinite.
    """
    group, (own, _) = Path("/sys/fs/cgroup"), resource.getrlimit(resource.RLIMIT_DATA)
    found = [math.inf]
    with suppress(OSError, LookupError):
        found.append(_field("/proc/meminfo", "MemAvailable:"))
    with suppress(OSError, ValueError):  # ValueError: no limit is "max"
        most, now = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        found.append(int(most) - int(now))
    with suppress(OSError, LookupError):
        if own != resource.RLIM_INFINITY:
            found.append(own - _field("/proc/self/status", "VmData:"))
    return min(found)


def _field(path: str, name: str) -> int:
    return 1024 * int(Path(path).read_text().split(name)[1].split()[0])


def explain_machine_error(error: BaseException, phase: str = "") -> str | None:
    """What was refused in a phase and what to do; None for an error of another kind."""
    if isinstance(error, OSError) and error.errno and (advice := remedy(error)):
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{os.strerror(error.errno)}. {advice}"
    if is_out_of_memory(error):
        peak, kind = peak_bytes()
        noted = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        smaller = (
            "batch.micro_size (batch.size and the samples of each step stay as they are; last bits "
            "and what dropout draws do not), or train.recompute: auto where it is not set yet"
        )
        if phase == EVALUATION:
            smaller = "evaluation.micro_size"
        return (
            f"out of memory{noted} ({first_line(error)}); {peak / 1e9:,.2f} GB of {kind} memory "
            f"were in use at most. Set a smaller {smaller}, or train.precision: bf16, or "
            "give the process more memory"
        )
    return None
