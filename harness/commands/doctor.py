"""`fermarsi doctor`: what this machine offers, what is missing, and how to fix it."""

import importlib.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.commands.doctor_gpus import examine_gpus
from harness.commands.doctor_machine import examine_machine
from harness.commands.doctor_trials import try_collective, try_decoders
from harness.commands.finding import Finding
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
# What decoders need is told by decoding
EXTRAS = {
    "timm": "images",
    "pillow_heif": "images",
    "xlrd": "tables",
    "transformers": "text",
    "tokenizers": "text",
    "pyedflib": "devices",
    "wfdb": "devices",
    "h5py": "devices",
    "peft": "adapters",
    "optuna": "search",
    "onnxscript": "export",
    "cleanlab": "labels",
    "ipywidgets": "notebook",
    "tensorboard": "tracking",
    "trackio": "tracking",
}


def diagnose(directory: Path) -> tuple[Listing, int]:
    """All findings for runs in a directory, and the exit code: 2 if a training cannot run here."""
    findings = examine(directory)
    code = 0 if all(finding.good for finding in findings) else 2
    columns = ("", "what", "found", "to do")
    return Listing(f"fermarsi doctor, for runs in {directory}", columns, findings), code


def examine(directory: Path) -> list[Finding]:
    """Check everything; takes about as long as importing torch in three processes."""
    packages = [_package(name) for name in REQUIRED]
    findings = [_python(), *packages]
    if all(finding.good for finding in packages):
        findings += [
            _processors(),
            *examine_gpus(),
            _determinism(),
            try_collective(),
            *try_decoders(),
        ]
    return [
        *findings,
        *map(_extra, EXTRAS),
        *examine_machine(directory),
        _program("accelerate"),
        _wandb(),
        _slurm(),
    ]


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
    used = torch.get_num_threads()
    return Finding("cores", f"{cores}; torch uses {used} thread{'s' if used > 1 else ''}", to_do)


def _determinism() -> Finding:
    value = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    return Finding(
        "CUBLAS_WORKSPACE_CONFIG",
        value or "unset: set at the start of a run",
        "",
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


def _slurm() -> Finding:
    if "SLURM_JOB_ID" in os.environ:
        return Finding("Slurm", f"in job {os.environ['SLURM_JOB_ID']}")
    found = shutil.which("sbatch")
    return Finding("Slurm", f"{found}: submit launch/slurm.sbatch" if found else "none")
