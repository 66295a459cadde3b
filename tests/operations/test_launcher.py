"""Under the real launcher: its workers killed, itself killed, itself asked to leave.

A worker that is left alone saves and goes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.rundir.status import read_status
from tests.pool import Launched, train_on_ranks
from tests.resume.test_exact import STORM, assert_same, finish

ROOT = Path(__file__).parents[2]
LIMIT_S = 120.0
ORPHANS_LIMIT_S = 10.0
AGENT = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
SLOW = ["data.train.source._target_=tests.operations.parts.Slow"]  # DELAY_S a micro-batch


class Launcher:
    """`accelerate launch ... harness/train.py storm.yaml`, and its workers."""

    def __init__(
        self, directory: Path, flags: Sequence[str], *overrides: str, **environment: str
    ) -> None:
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(ROOT / "launch" / "accelerate-cpu.yaml"),
            *flags,
        ]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHELASTIC_ERROR_FILE": "", **environment}
        self.log = directory.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *command,
                    str(ROOT / "harness" / "train.py"),
                    str(STORM),
                    f"run.dir={directory}",
                    *overrides,
                ],
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.directory = directory

    def workers(self) -> list[int]:
        found = subprocess.run(
            ["pgrep", "-f", f"harness/train.py .*run.dir={self.directory}( |$)"],
            capture_output=True,
            text=True,
            check=False,
        )
        return [
            int(pid)
            for pid in found.stdout.split()
            if int(pid) != self.process.pid and "accelerate.commands" not in command_of(int(pid))
        ]

    def until(self, condition: Callable[[], Any], limit_s: float = LIMIT_S) -> float:
        """Wait for a condition; the seconds that it took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < limit_s, self.log.read_text()
            time.sleep(0.05)
        return time.monotonic() - began

    def until_step(self, step: int) -> None:
        """Wait until a checkpoint of this step or a later one is there."""
        self.until(
            lambda: (
                self.process.poll() is not None
                or any(number >= step for number in steps_of(self.directory))
            )
        )
        assert self.process.poll() is None, self.log.read_text()

    def end(self) -> None:
        for pid in [self.process.pid, *self.workers()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return "accelerate.commands"  # gone


def steps_of(directory: Path) -> list[int]:
    return [
        int(path.name.removeprefix("step-"))
        for path in (directory / "checkpoints").glob("step-" + "[0-9]" * 8)
    ]


@pytest.fixture
def launcher() -> Iterator[Callable[..., Launcher]]:
    started: list[Launcher] = []

    def start(*args: Any, **environment: str) -> Launcher:
        started.append(Launcher(*args, **environment))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.mark.torture
def test_a_worker_that_is_killed_is_started_again_by_the_agent_and_the_run_goes_on_exactly(
    tmp_path: Path, launcher: Any
) -> None:
    finish(tmp_path / "whole", 2)
    # Counted in each launch: the second ends at 40 before
    launched = launcher(tmp_path / "run", [*AGENT, "--max_restarts", "3"], DIE_AT="1:25")
    assert launched.process.wait(LIMIT_S) == 0, launched.log.read_text()
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert (outcome["reason"], outcome["launches"]) == ("budget", 2)
    assert "step 25: lost rank 1" in launched.log.read_text()
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("flags", "ranks", "number"),
    [
        pytest.param(AGENT, 2, signal.SIGKILL, id="agent-killed"),
        pytest.param(
            ["--config_file", "{directory}/one.yaml"],
            1,
            signal.SIGTERM,
            id="one-process-launcher-tells-nobody",
            marks=pytest.mark.torture,
        ),
    ],
)
def test_workers_whose_launcher_is_gone_save_and_leave(
    tmp_path: Path, launcher: Any, flags: list[str], ranks: int, number: int
) -> None:
    long = ["stop.budget.steps=100000", *SLOW]
    (tmp_path / "one.yaml").write_text(
        "{compute_environment: LOCAL_MACHINE, distributed_type: 'NO', mixed_precision: 'no', "
        "num_processes: 1}"
    )
    launched = launcher(
        tmp_path / "run", [flag.format(directory=tmp_path) for flag in flags], *long, DELAY_S="0.02"
    )
    launched.until_step(7)
    workers = launched.workers()
    assert len(workers) == ranks
    os.kill(launched.process.pid, number)
    launched.process.wait(LIMIT_S)
    took_s = launched.until(lambda: not launched.workers(), ORPHANS_LIMIT_S)
    assert took_s < ORPHANS_LIMIT_S
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["reason"] == "interrupted"
    assert "the launcher ended" in outcome["detail"]
    assert outcome["checkpoint"].endswith(f"step-{outcome['step']:08}")


@pytest.mark.torture
def test_a_signal_to_the_agent_reaches_all_and_the_next_launch_goes_on_exactly(
    tmp_path: Path, launcher: Any
) -> None:
    launched = launcher(tmp_path / "run", AGENT, *SLOW, DELAY_S="0.05")
    launched.until_step(7)
    launched.process.terminate()
    # Whatever its workers said: scripts ask `fermarsi status`
    assert launched.process.wait(LIMIT_S) == 1
    assert read_status(tmp_path / "run").exit_code == 75, launched.log.read_text()
    for one in (tmp_path / "run", tmp_path / "whole"):
        ends: list[Launched] = train_on_ranks(2, STORM, [f"run.dir={one}", *SLOW])
        assert [end.exit_code for end in ends] == [0, 0], ends[0].stderr
    assert_same(tmp_path / "run", tmp_path / "whole")
