"""`fermarsi doctor` tries things out, and says how to mend what does not work."""

import os
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from harness.commands import doctor, doctor_gpus, doctor_machine, doctor_trials
from harness.commands.finding import Finding


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {one.what: one for one in findings}


def test_everything_is_tried_here(tmp_path: Path) -> None:
    listing, code = doctor.diagnose(tmp_path / "runs")
    found = by_name(list(listing.rows))  # type: ignore[arg-type] # a Listing's rows are any
    assert code == 0
    assert found["two processes"].state == "ok", found["two processes"]
    for kind in ("images", "sound", "video", "Excel", "Parquet"):
        assert found[kind].state == "ok", found[kind]
    looked_at = ["disk", "clock", "shared memory", "open files", "locked memory", "own name"]
    assert {*looked_at, "port 29400", "Slurm", "W&B key"} <= {*found}
    assert not (tmp_path / "runs").exists()
    assert all(one.to_json()["state"] in ("ok", "warning") for one in found.values())


def test_processes_that_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    found = doctor_trials.try_collective()
    assert found.state == "warning"
    assert "did not meet over gloo" in found.found
    assert "nowhere0" in found.found
    assert "GLOO_SOCKET_IFNAME" in found.to_do


def test_decoders_that_are_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    # As a library of another version writes: half of each file
    monkeypatch.setattr(Path, "write_bytes", half)
    found = by_name(doctor_trials.try_decoders())
    for kind, words in (("video", "av is missing (optional)"), ("images", "is not read")):
        assert found[kind].state == "warning", found[kind]
        assert words in found[kind].found
        assert f"pip install 'fermarsi[{kind}]'" in found[kind].to_do
    assert found["Parquet"].state == "ok"


def half(path: Path, data: bytes) -> int:
    with path.open("wb") as file:
        return file.write(data[: len(data) // 2])


DRIVERS = {
    "echo 580.65.06; echo 580.65.06": ("580.65.06", ""),
    "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18": (
        "nvidia-smi fails: Failed to initialize NVML: Driver/library version mismatch",
        "restart the machine, or load the driver anew; in a container, update its libraries",
    ),
    "echo 'No devices were found' >&2; exit 6": (
        "nvidia-smi fails: No devices were found",
        "install or load the driver; in docker, run with --gpus all",
    ),
    "exit 9": ("nvidia-smi fails: exit code 9", "install or load the driver"),
    "exec sleep 60": ("nvidia-smi does not answer in 0 s", "restart the machine: the driver waits"),
}


@pytest.mark.parametrize("script", DRIVERS)
def test_what_a_driver_says(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known: a driver that was updated under its module (nvidia-container-toolkit 171), a GPU that
    fell off the bus. Torch then says "no CUDA-capable device", or nothing.
    """
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor_gpus, "_LIMIT_S", 0.2 if "sleep" in script else 20.0)
    [driver] = doctor_gpus._driver()
    found, to_do = DRIVERS[script]
    assert (driver.found, to_do in driver.to_do) == (found, True)
    assert driver.state == ("warning" if to_do else "ok")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells why there is no GPU")
def test_why_torch_uses_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    refused = [doctor_gpus._unused()]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    refused.append(doctor_gpus._unused())
    monkeypatch.setattr(torch.version, "cuda", None)
    refused.append(doctor_gpus._unused())
    assert all(one.state == "warning" for one in refused)
    by_init, by_environment, by_build = refused
    to_do = "install a torch for the driver's CUDA (nvidia-smi shows it; this torch is for 13.2)"
    assert to_do in by_init.to_do
    assert "CUDA_VISIBLE_DEVICES='7'" in by_environment.found
    assert "name GPUs that nvidia-smi -L shows, from 0" in by_environment.to_do
    assert by_build.found.endswith("torch uses none: it is built without CUDA")
    # A GPU that torch has listed, and cannot use
    lost = doctor_gpus._gpu(0)
    assert lost.found.startswith("does not compute: ")
    assert lost.to_do.startswith("look at nvidia-smi -q; restart the machine, or leave it out by")
    assert doctor_gpus._to_do("CUDA error: no kernel image is available for execution").startswith(
        "install a torch with code for this GPU: this one is older, or newer, than it knows"
    )
    assert doctor_gpus._to_do("CUDA out of memory").startswith("another process fills it")


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def test_limits_that_a_training_runs_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known: bus error with 64 MB of /dev/shm in docker (pytorch 2244), too many open files
    (pytorch 11201).
    """
    with limited(resource.RLIMIT_NOFILE, 1000):
        assert doctor_machine._open_files().to_do.startswith("ulimit -n ")
    with limited(resource.RLIMIT_MEMLOCK, 2**16):
        locked = doctor_machine._locked_memory(tmp_path)
        assert "ulimit -l unlimited (docker run --ulimit memlock=-1)" in locked.to_do
        assert doctor_machine._locked_memory(tmp_path / "none").state == "ok"
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        taken = doctor_machine._port(other.getsockname()[1])
        assert "give another: fermarsi launch --head HOST:PORT" in taken.to_do
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 0, 64 * 2**20))
    monkeypatch.setattr(socket, "getaddrinfo", raising(socket.gaierror("unknown")))
    an_hour_ago = time.time() - 3600
    monkeypatch.setattr(os, "utime", partial(os.utime, times=(an_hour_ago, an_hour_ago)))
    found = by_name(doctor_machine.examine_machine(tmp_path))
    assert "--shm-size" in found["shared memory"].to_do
    assert "free some" in found["disk"].to_do
    assert "/etc/hosts" in found["own name"].to_do
    assert "chrony" in found["clock"].to_do


def test_a_folder_that_cannot_be_written_is_an_error() -> None:
    [disk] = doctor_machine._disk(Path("/proc/self/fdinfo/runs"))
    assert (disk.state, disk.good) == ("error", False)
    assert disk.found.startswith("/proc/")
    assert disk.to_do == "set run.dir to a writable directory"
