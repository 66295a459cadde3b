"""`fermarsi doctor`: what this machine offers, what is missing, and how to fix it."""

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.commands.show import Listing

REQUIRED = (
    "torch",
    "accelerate",
    "datasets",
    "safetensors",
    "wandb",
    "torchmetrics",
    "pydantic",
    "omegaconf",
)


EXTRAS = {
    "torchvision": "images",
    "soundfile": "audio",
    "av": "video",
    "python_calamine": "tables",
    "timm": "images",
}


_PROBE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Finding:
    """One result. `good` is False only for what a training requires."""

    what: str
    found: str
    to_do: str = ""
    good: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """What, found, to do."""
        return self.what, self.found, self.to_do


def diagnose() -> tuple[Listing, int]:
    """All findings, and the exit code: 2 if a training cannot run here."""
    findings = examine()
    code = 0 if all(finding.good for finding in findings) else 2
    return Listing("fermarsi doctor", ("what", "found", "to do"), findings), code


def examine() -> list[Finding]:
    """Check everything; takes about as long as importing torch."""
    packages = [_package(name) for name in REQUIRED]
    findings = [_python(), *packages]
    if all(finding.good for finding in packages):
        findings += [_processors(), *_devices(), _determinism()]
    return [*findings, *map(_extra, EXTRAS), _disk(), _program("accelerate"), _wandb()]


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    return Finding(
        "python", platform.python_version(), "" if good else "use Python 3.11 or newer", good
    )


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "missing", "pip install -e . in fermarsi's checkout", good=False)


def _extra(module: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(
            module,
            "missing (optional)",
            f"pip install 'fermarsi[{EXTRAS[module]}]' if you need {EXTRAS[module]}",
        )
    return Finding(module, "installed")


def _processors() -> Finding:
    import torch

    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = os.environ.get("OMP_NUM_THREADS")
    to_do = (
        ""
        if threads
        else "with several processes set OMP_NUM_THREADS to cores / processes (launch/*.sh do)"
    )
    return Finding("cores", f"{cores}; torch uses {torch.get_num_threads()} threads", to_do)


def _devices() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        return [
            Finding(
                "GPU",
                "none",
                "train on the CPU with launch/cpu.sh; precision bf16 works, fp16 does not",
            )
        ]
    findings = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
        findings.append(
            Finding(
                f"GPU {index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16} bf16"
            )
        )
    return findings


def _determinism() -> Finding:
    value = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    return Finding(
        "CUBLAS_WORKSPACE_CONFIG",
        value or "unset",
        "" if value else "set by fermarsi at the start of a run",
    )


def _disk() -> Finding:
    """How fast the disk of the working directory makes bytes durable: a lower bound for a save."""
    try:
        with tempfile.NamedTemporaryFile(dir=Path.cwd()) as file:
            begun = time.monotonic()
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
            rate = _PROBE_BYTES / (time.monotonic() - begun)
    except OSError as error:
        return Finding(
            "disk",
            f"{Path.cwd()}: {error.strerror}",
            "set run.dir to a writable directory",
        )
    return Finding(
        "disk",
        f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free, write + fsync {rate / 1e6:.0f} "
        "MB/s",
    )


def _program(name: str) -> Finding:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    return Finding(
        f"{name} (command)",
        found or "missing",
        "" if found else "activate fermarsi's environment",
        found is not None,
    )


def _wandb() -> Finding:
    there = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").exists()
    return Finding(
        "W&B key",
        "found" if there else "none",
        "" if there else "run `wandb login`, or track offline: tracking.wandb.mode=offline",
    )
