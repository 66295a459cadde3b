"""Pinned memory of exactly the size that is asked for: torch's own allocator takes the next power
of two, and keeps it.
"""

import weakref
from contextlib import suppress

import torch
from torch import Tensor

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for all devices of the process


def pinned(size_bytes: int) -> tuple[Tensor, str | None]:
    """Pinned memory, (size_bytes,) uint8, and why it is torch's; None where it is of its own.

    Raises RuntimeError where there is none of either.
    """
    if not torch.cuda.is_available():  # another accelerator
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True), None
    memory = torch.empty(size_bytes, dtype=torch.uint8)
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call] # it is
    begin = memory.data_ptr()
    code = int(runtime.cudaHostRegister(begin, size_bytes, _PORTABLE))
    if code == 0:
        weakref.finalize(memory, runtime.cudaHostUnregister, begin).atexit = False
        return memory, None
    # CUDA keeps the error for whoever asks next: the launch of a kernel would be blamed for it
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda")
    trouble = (
        f"{size_bytes / 1e6:,.0f} MB could not be pinned (CUDA error {code}: is the memory that "
        "may be locked limited, `ulimit -l`?); torch's pinned memory is used, which takes up to "
        "twice as much"
    )
    return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True), trouble
