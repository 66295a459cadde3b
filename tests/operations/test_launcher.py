"""`fermarsi launch` on real processes: one message where something fails, and the training's exit
code; and what is left below our message under accelerate's launcher alone.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.commands.launch import Machines, launch_training
from harness.errors import ConfigError

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests" / "training" / "small.yaml"
LONG = ("stop.budget.steps=100000", "checkpoint.every={steps: 1000}", "stop.every={steps: 10}")
LAUNCH = (sys.executable, "-c", "from harness.cli import main; main()", "launch", "--cpu")
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--config_file")
FAILS = "network={_target_: tests.operations.parts.FailsOnRank1}"


def start(*arguments: str | Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(one) for one in arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "ACCELERATE_USE_CPU": "true",
        },
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def run(*arguments: str | Path) -> tuple[int, str]:
    process = start(*arguments)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    """By rank."""
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    return [int(one) for one in found.stdout.split()]


def test_a_mistake_is_one_message_and_starts_nothing(tmp_path: Path) -> None:
    mistake = ("--processes", "2", SMALL, "batch.size=7", f"run.dir={tmp_path / 'run'}")
    code, output = run(*LAUNCH, *mistake)
    assert code == 2
    assert output.startswith("ConfigError: ")
    assert output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_processes_that_cannot_share_a_batch_are_refused_before_they_start() -> None:
    with pytest.raises(ConfigError, match=r"4 slots .* cannot be divided among 3 processes"):
        launch_training(SMALL, (), 3, Machines(), cpu=True, quiet=False, debug=False)


def test_a_port_in_use_is_told_without_options_of_others() -> None:
    """github.com/huggingface/accelerate/issues/508: which port, and what to do about it."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        head = f"127.0.0.1:{taken.getsockname()[1]}"
        code, output = run(*LAUNCH, "--nodes", "2", "--node", "0", "--head", head, SMALL)
    assert code == 1
    waiting, message = output.splitlines()
    assert waiting == f"fermarsi launch: waiting for 2 machines at {head}, ten minutes at most"
    assert message.startswith("RankError: machine 0 (")
    assert "another process" in message
    assert "its port free there" in message
    assert "main_process_port" not in message


def test_asked_to_leave_and_killed(tmp_path: Path) -> None:
    """The last line names what happened; the agent's report lies in the run directory."""
    evaluated = tmp_path / "metrics.jsonl"
    ends = []
    for how in ("ask", "kill"):
        process = start(*LAUNCH, "--processes", "2", SMALL, *LONG, f"run.dir={tmp_path}")
        before = evaluated.stat().st_size if evaluated.exists() else 0
        deadline = time.monotonic() + 90
        while not evaluated.exists() or evaluated.stat().st_size <= before:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if how == "ask":
            process.send_signal(signal.SIGTERM)
        else:
            os.kill(workers_of(process)[1], signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        ends.append((process.returncode, output))
    (asked, said), (killed, named) = ends
    assert asked == 75, said
    assert "interrupted: SIGTERM came" in said
    assert killed == 128 + signal.SIGKILL, named
    *_, message, last = named.splitlines()
    assert message.startswith("RankError: rank 0, ")
    report = tmp_path / "launcher.txt"
    assert last == (
        f"fermarsi launch: rank 1 was killed by SIGKILL. The launcher's report: {report}"
    )
    assert "exitcode  : -9" in report.read_text()
    assert "Traceback" not in said + named


def test_a_rank_that_fails_is_the_last_that_is_read(tmp_path: Path) -> None:
    """Accelerate's launcher alone cannot be kept from its own report, which ends with ours."""
    failing = (SMALL, FAILS, "run.dir=" + str(tmp_path / "run"))
    code, output = run(*LAUNCH, "--processes", "2", *failing)
    assert code == 1
    assert "torch.distributed" not in output
    assert output.splitlines()[-1].startswith("fermarsi launch: rank ")
    assert output.splitlines()[-2] == "rank 1, step 2: ValueError: rank 1 cannot (traceback above)"
    settings = ROOT / "launch" / "accelerate-cpu.yaml"
    script = ROOT / "harness" / "train.py"
    code, output = run(*ACCELERATE, settings, "--main_process_port", "0", script, *failing)
    assert code == 1
    assert "rank 1 cannot" in output[output.rindex("Root Cause") :]


def test_an_error_of_one_ends_a_launch_that_goes_on_without_lost_ones(tmp_path: Path) -> None:
    """Its peer meets a broken collective, as after a loss, but does not go on alone."""
    least = ("--processes", "2", "--min-processes", "1")
    code, output = run(*LAUNCH, *least, SMALL, FAILS, f"run.dir={tmp_path / 'run'}")
    assert code == 1, output
    assert output.splitlines()[-1] == "rank 1, step 2: ValueError: rank 1 cannot (traceback above)"
    assert "launch 2" not in output
    assert "lost process" not in output


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ((2, 2), "--node 2: of 2 machines they are 0 to 1"),
        ((2, 0), "--head: give machine 0 as the others reach it"),
        ((2, 0, "a:b"), "--head a:b: b is no port"),
    ],
)
def test_machines_that_cannot_be(machines: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Machines(*machines)
