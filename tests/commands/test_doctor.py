"""`fermarsi doctor` tries things out, and says how to mend what does not work."""

import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.commands import doctor, doctor_machine, doctor_trials
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
    monkeypatch.setattr(doctor_trials, "_RANK", "raise OSError('no route to host')")
    found = doctor_trials.try_collective()
    assert found.state == "warning"
    assert "OSError: no route to host" in found.found
    assert "GLOO_SOCKET_IFNAME" in found.to_do


def test_a_decoder_that_is_missing_or_broken() -> None:
    missing = ModuleNotFoundError("No module named 'av'", name="av")
    for error, words in ((missing, "av is missing (optional)"), (ValueError("half"), "half")):
        found = doctor_trials._decode("video", "av", "video", raising(error))
        assert found.state == "warning"
        assert words in found.found
        assert "pip install 'fermarsi[video]'" in found.to_do


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_limits_that_a_training_runs_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known: bus error with 64 MB of /dev/shm in docker (pytorch 2244), too many open files
    (pytorch 11201).
    """
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 1_048_576))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 0, 64 * 2**20))
    monkeypatch.setattr(socket, "getaddrinfo", raising(socket.gaierror("unknown")))
    an_hour_ago = time.time() - 3600
    monkeypatch.setattr(os, "utime", partial(os.utime, times=(an_hour_ago, an_hour_ago)))
    found = by_name(doctor_machine.examine_machine(tmp_path))
    assert "ulimit -n 4096" in found["open files"].to_do
    assert "--shm-size" in found["shared memory"].to_do
    assert "free some" in found["disk"].to_do
    assert "/etc/hosts" in found["own name"].to_do
    assert "chrony" in found["clock"].to_do


def test_a_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(30, "Read-only file system")
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", raising(error))
    [disk] = doctor_machine._disk(tmp_path)
    assert (disk.state, disk.good) == ("error", False)
    assert "Read-only" in disk.found
