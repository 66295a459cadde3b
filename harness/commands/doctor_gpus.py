"""What `fermarsi doctor` finds out about GPUs: driver, torch, memory, NCCL, and a product computed
on each.
"""

import os
import shutil
import subprocess

from harness.commands.finding import Finding
from harness.wording import first_line

_LIMIT_S = 20.0  # nvidia-smi hangs with a GPU that has fallen off the bus
_FREE = 0.9  # of the memory


def examine_gpus() -> list[Finding]:
    """The driver, and each GPU that torch uses. Each has a context for a moment: 0.5 GB."""
    import torch

    driver = _driver()
    if not torch.cuda.is_available():
        return [*driver, _unused()] if driver else [_none()]
    gpus = [_gpu(index) for index in range(torch.cuda.device_count())]
    return [*driver, *gpus, _nccl()]


def _driver() -> list[Finding]:
    """What the driver's own program says; nothing where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            asked, capture_output=True, text=True, timeout=_LIMIT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        to_do = "restart the machine: the driver waits for a GPU that does not answer"
        return [Finding("GPU driver", f"nvidia-smi does not answer in {_LIMIT_S:.0f} s", to_do)]
    said = (done.stdout or done.stderr).strip()
    if done.returncode:
        to_do = "restart the machine, or load the driver anew; in a container, update its libraries"
        if "mismatch" not in said:
            to_do = "install or load the driver; in docker, run with --gpus all"
        reason = said.splitlines()[0] if said else f"exit code {done.returncode}"
        return [Finding("GPU driver", f"nvidia-smi fails: {reason}", to_do)]
    versions = sorted({line.strip() for line in said.splitlines()})
    return [Finding("GPU driver", ", ".join(versions))]


def _unused() -> Finding:
    """Why torch uses none where there is a driver."""
    import torch

    found = "there is a driver, and torch uses none"
    if torch.version.cuda is None:
        return Finding("GPU", f"{found}: it is built without CUDA", "install a torch with CUDA")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        to_do = "unset it, or name GPUs that nvidia-smi -L shows, from 0"
        return Finding("GPU", f"{found}: CUDA_VISIBLE_DEVICES={visible!r}", to_do)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call] # torch has no types there
        reason = "no reason given"
    except (AssertionError, RuntimeError) as error:
        reason = first_line(error)
    to_do = (
        f"install a torch for the driver's CUDA (nvidia-smi shows it; this torch is for "
        f"{torch.version.cuda}), or a newer driver; or train with --cpu"
    )
    return Finding("GPU", f"{found}: {reason}", to_do)


def _none() -> Finding:
    to_do = "train on the CPU with launch/cpu.sh; precision bf16 works, fp16 does not"
    return Finding("GPU", "none", to_do)


def _gpu(index: int) -> Finding:
    """Its memory, and whether it computes what the CPU does."""
    import torch

    name = f"GPU {index}"
    try:
        device = torch.cuda.get_device_properties(index)
        kind = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
        free, whole = torch.cuda.mem_get_info(index)
        values = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64) / 4096
        there = values.to(f"cuda:{index}")
        is_right = torch.allclose((there @ there.t()).cpu(), values @ values.t(), rtol=1e-2)
    except (AssertionError, RuntimeError) as error:
        return Finding(name, f"does not compute: {first_line(error)}", _to_do(str(error)))
    if not is_right:
        to_do = "a broken GPU: nvidia-smi -q shows its errors (ECC); leave it out meanwhile"
        return Finding(name, f"{kind}: other products than the CPU's", to_do)
    bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
    found = f"{kind}, {free / 2**30:.0f} free, {bf16} bf16; torch for CUDA {torch.version.cuda}"
    busy = "another process is on it (nvidia-smi shows which): end that, or leave the GPU out"
    return Finding(name, found, busy if free < _FREE * whole else "")


def _to_do(reason: str) -> str:
    if "no kernel image" in reason:
        return "install a torch with code for this GPU: this one is older, or newer, than it knows"
    if "out of memory" in reason:
        return "another process fills it (nvidia-smi shows which): end that, or leave the GPU out"
    return "look at nvidia-smi -q; restart the machine, or leave it out by CUDA_VISIBLE_DEVICES"


def _nccl() -> Finding:
    """By which several GPUs exchange gradients; `two processes` tries it where there are two."""
    import torch

    try:
        version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call] # nor there
    except (AttributeError, ImportError, RuntimeError):
        return Finding("NCCL", "missing in torch", "for several GPUs install a torch with NCCL")
    return Finding("NCCL", ".".join(map(str, version)))
