"""The facts of a machine that decide bits: it decides the choice of kernels, so a run that goes on
elsewhere may end differently. Written into each manifest, and compared on a resume.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from harness.ranks.ranks import Ranks
from harness.training.determinism import NCCL

Environment = Mapping[str, str]


def environment_of(device: torch.device) -> dict[str, str]:
    """What decides the bits of this process on its device, by name."""
    found = {
        "device": device.type,
        "torch": torch.__version__,
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "float32 matmul": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        found |= {
            "GPU": torch.cuda.get_device_name(device),
            "compute capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "driver": driver_version(),
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call] # torch's
            "NCCL": str(torch.cuda.nccl.version()),  # type: ignore[no-untyped-call] # torch's
            "TF32": f"{torch.backends.cuda.matmul.allow_tf32} {torch.backends.cudnn.allow_tf32}",
            **{name: os.environ[name] for name in sorted(NCCL) if name in os.environ},
        }
    return found


def driver_version() -> str:
    """The version of NVIDIA's kernel module, as Linux reports it; "unknown" elsewhere."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    match = re.search(r"Kernel Module\D*([\d.]+)", text)
    return match[1] if match else "unknown"


def environments(ranks: Ranks, device: torch.device) -> list[dict[str, str]]:
    """One for each rank, or a single one where all are alike. Called by every rank."""
    found = ranks.gather(environment_of(device))
    return found[:1] if all(one == found[0] for one in found) else found


def differences(before: Sequence[Environment], now: Sequence[Environment]) -> list[str]:
    """What differs between two launches, as "GPU: A100 -> H100"; a run that was saved before these
    facts were kept differs in nothing.
    """
    if not before:
        return []
    names = dict.fromkeys(name for one in (*before, *now) for name in one)
    changes = []
    for name in names:
        old, new = _values(name, before), _values(name, now)
        if old != new:
            changes.append(f"{name}: {old} -> {new}")
    return changes


def _values(name: str, environments: Sequence[Environment]) -> str:
    """The value on all ranks, or each distinct one."""
    return ", ".join(sorted({one.get(name, "none") for one in environments}))
