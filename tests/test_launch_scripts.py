"""The scripts of launch/, with a stand-in for the training that tells what it was given."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"
STAND_IN = """
import json, os, signal, sys, time
place = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION")}
if "wait" in sys.argv:
    told = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: told.append(signal.Signals(number).name))
    open(f"ready-{place['RANK']}", "w").close()
    deadline = time.monotonic() + 60
    while not told and time.monotonic() < deadline:
        time.sleep(0.02)
    place["told"] = told
with open(f"told-{place['RANK']}.json", "w") as file:
    json.dump({"arguments": sys.argv, "place": place}, file)
sys.exit(3 if "fail" in sys.argv else 0)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without .venv, at a path with spaces."""
    root = tmp_path / "my work" / "a checkout"
    shutil.copytree(LAUNCH, root / "launch")
    (root / "harness").mkdir()
    (root / "harness" / "train.py").write_text(STAND_IN)
    return root


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The working directory of the one who launches."""
    directory = tmp_path / "else where"
    directory.mkdir()
    return directory


def start(script: Path, *arguments: str, directory: Path, **environment: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "ACCELERATE_USE_CPU")}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(script), *arguments], cwd=directory, env=env | environment, **pipes)


def run(script: Path, *arguments: str, directory: Path, **environment: str) -> "tuple[int, str]":
    process = start(script, *arguments, directory=directory, **environment)
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def told(directory: Path) -> list[dict[str, Any]]:
    """What each process was given, by rank; one process alone has no rank."""
    return [json.loads(path.read_text()) for path in sorted(directory.glob("told-*.json"))]


def test_two_processes_on_the_cpu_share_its_cores(checkout: Path, elsewhere: Path) -> None:
    code, errors = run(checkout / "launch" / "cpu.sh", "2", "a config.yaml", "run.name=two words", directory=elsewhere)
    assert code == 0, errors
    first, second = told(elsewhere)
    assert first["arguments"] == second["arguments"] == [str(checkout / "harness" / "train.py"), "a config.yaml", "run.name=two words"]
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    common = {"WORLD_SIZE": "2", "OMP_NUM_THREADS": threads, "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"}
    assert [one["place"] for one in (first, second)] == [{"RANK": "0", **common}, {"RANK": "1", **common}]
    assert "default" not in errors  # nothing was guessed, no config of the user's was read


def test_one_process_needs_no_launcher_and_keeps_its_exit_code(checkout: Path, elsewhere: Path) -> None:
    code, _ = run(checkout / "launch" / "cpu.sh", "1", "c.yaml", "fail", directory=elsewhere, OMP_NUM_THREADS="7")
    assert code == 3
    (alone,) = told(elsewhere)
    assert alone["place"] == {
        "RANK": None,
        "WORLD_SIZE": None,
        "OMP_NUM_THREADS": "7",
        "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_MIXED_PRECISION": None,
    }


def test_a_link_to_a_script_finds_its_checkout(checkout: Path, elsewhere: Path) -> None:
    (elsewhere / "train-here").symlink_to(checkout / "launch" / "cpu.sh")
    code, errors = run(elsewhere / "train-here", "1", "c.yaml", directory=elsewhere)
    assert code == 0, errors
    assert told(elsewhere)[0]["arguments"][0] == str(checkout / "harness" / "train.py")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_script_reaches_every_process(checkout: Path, elsewhere: Path, number: signal.Signals) -> None:
    process = start(checkout / "launch" / "cpu.sh", "2", "c.yaml", "wait", directory=elsewhere)
    deadline = time.monotonic() + 120
    while len(list(elsewhere.glob("ready-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert [one["place"]["told"] for one in told(elsewhere)] == [[number.name]] * 2


def test_several_machines_meet(checkout: Path, elsewhere: Path) -> None:
    script = checkout / "launch" / "multinode.sh"
    environment = {"PER_NODE": "1", "ACCELERATE_USE_CPU": "true"}
    nodes = [
        start(script, str(node), "2", f"127.0.0.1:{29400 + os.getpid() % 1000}", "c.yaml", directory=elsewhere, **environment) for node in range(2)
    ]
    for node in nodes:
        _, errors = node.communicate(timeout=240)
        assert node.returncode == 0, errors
    assert [one["place"]["WORLD_SIZE"] for one in told(elsewhere)] == ["2", "2"]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("cpu.sh", []),
        ("cpu.sh", ["2"]),
        ("cpu.sh", ["0", "c.yaml"]),
        ("cpu.sh", ["c.yaml", "2"]),
        ("gpu.sh", []),
        ("multinode.sh", ["0", "2", "head"]),
        ("multinode.sh", ["2", "2", "head", "c.yaml"]),
    ],
)
def test_mistaken_arguments_are_answered_with_the_usage(script: str, arguments: list[str], elsewhere: Path) -> None:
    code, errors = run(LAUNCH / script, *arguments, directory=elsewhere)
    assert code == 2
    assert f"launch/{script} " in errors
    assert "set -euo" not in errors


def test_no_gpu_is_said_in_one_line(checkout: Path, elsewhere: Path) -> None:
    code, errors = run(checkout / "launch" / "gpu.sh", "c.yaml", directory=elsewhere, CUDA_VISIBLE_DEVICES="")
    assert code == 2
    assert errors.count("\n") == 1
    assert "torch sees no GPU here" in errors
