"""Two machines, as two network namespaces with a cable between them, which is cut in the middle of
a training.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.operations.test_lost_processes import ELASTIC, ONWARD_S, assert_same_steps
from tests.pool import train_on_ranks
from tests.resume.test_exact import STORM, assert_same, events

pytestmark = pytest.mark.torture

ROOT = Path(__file__).parents[2]
SLOW = ["data.train.source._target_=tests.operations.parts.Slow"]  # DELAY_S a micro-batch
LONG = ["stop.budget.steps=200"]
TIMEOUT_S = 5
# Beyond the time limit: for a last save, for the board that is out of reach, on a busy machine
LEAVING_S = 15.0


class Cable:
    """Namespaces a and b, 10.77.0.1 and 10.77.0.2."""

    def __init__(self, name: str) -> None:
        self.hosts = [f"{name}a", f"{name}b"]

    def lay(self) -> None:
        a, b = self.hosts
        for host in self.hosts:
            ip("netns", "add", host)
        ip("link", "add", a, "netns", a, "type", "veth", "peer", "name", b, "netns", b)
        for number, host in enumerate(self.hosts, 1):
            ip("-n", host, "address", "add", f"10.77.0.{number}/24", "dev", host)
            ip("-n", host, "link", "set", host, "up")
            ip("-n", host, "link", "set", "lo", "up")

    def cut(self) -> None:
        ip("-n", self.hosts[1], "link", "set", self.hosts[1], "down")

    def mend(self) -> None:
        ip("-n", self.hosts[1], "link", "set", self.hosts[1], "up")

    def remove(self) -> None:
        for host in self.hosts:
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, check=False)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    cable = Cable(f"f{os.getpid() % 100_000}")
    try:
        cable.lay()
    except (OSError, subprocess.CalledProcessError) as error:
        cable.remove()
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
    yield cable
    cable.remove()


def start(host: str, rank: int, run: Path) -> "subprocess.Popen[str]":
    """A rank as a launcher of the machine `host` would start it."""
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "10.77.0.1",
        "MASTER_PORT": "29555",
    }
    env = {
        **os.environ,
        **place,
        "GLOO_SOCKET_IFNAME": host,
        "DELAY_S": "0.03",
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_MIXED_PRECISION": "no",
    }
    limits = [f"run.timeout_s={TIMEOUT_S}", f"checkpoint.timeout_s={TIMEOUT_S}"]
    command = [
        sys.executable,
        str(ROOT / "harness" / "train.py"),
        str(STORM),
        f"run.dir={run}",
        *limits,
        *SLOW,
    ]
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *command],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_cut_cable_is_noticed_on_both_sides_and_the_run_goes_on_exactly(
    tmp_path: Path, cable: Cable
) -> None:
    run = tmp_path / "run"
    processes = [start(host, rank, run) for rank, host in enumerate(cable.hosts)]
    try:
        deadline = time.monotonic() + 120
        while not list(run.glob("checkpoints/step-*")):
            assert time.monotonic() < deadline, "no checkpoint"
            assert all(process.poll() is None for process in processes), [
                process.communicate()[0] for process in processes
            ]
            time.sleep(0.05)
        cable.cut()
        cut_at = time.monotonic()
        told = [process.communicate(timeout=TIMEOUT_S + LEAVING_S)[0] for process in processes]
        assert time.monotonic() - cut_at < TIMEOUT_S + LEAVING_S
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 1], told
    for rank, text in enumerate(told):
        assert re.search(rf"^RankError: rank {rank}, step \d+: lost ", text, re.MULTILINE), text
        assert "Traceback" not in text
    for one in (run, tmp_path / "whole"):
        ends = train_on_ranks(2, STORM, [f"run.dir={one}", *SLOW])
        assert [end.exit_code for end in ends] == [0, 0], ends[0].stderr
    assert_same(run, tmp_path / "whole")


def test_a_host_that_is_lost_and_comes_back_costs_seconds_and_no_sample(
    tmp_path: Path, cable: Cable
) -> None:
    """From a copy in the memory of the machine that is left, whose checkpoint is of step 7."""
    run, processes = tmp_path / "run", []
    copied = ["checkpoint.in_memory.steps=2"]
    program = "import sys; from harness.cli import main; main(sys.argv[1:])"
    settings = [*SLOW, *LONG, *ELASTIC, *copied]
    for number, host in enumerate(cable.hosts):
        options = ["--cpu", "--processes", "2", "--min-processes", "2", "--nodes", "2"]
        place = ["--node", str(number), "--head", "10.77.0.1:29555"]
        command = [sys.executable, "-c", program, "launch", *options, *place, str(STORM)]
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, *command, f"run.dir={run}", *settings],
                cwd=ROOT,
                env={**os.environ, "GLOO_SOCKET_IFNAME": host, "DELAY_S": "0.15"},
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )

    def wait_for(what: Callable[[], bool], limit_s: float) -> float:
        begun = time.monotonic()
        while not what():
            assert time.monotonic() - begun < limit_s
            assert all(one.poll() is None for one in processes), [
                one.communicate()[0] for one in processes
            ]
            time.sleep(0.05)
        return time.monotonic() - begun

    def sizes() -> list[int]:
        found = events(run) if (run / "metrics.jsonl").exists() else []
        return [one["world_size"] for one in found if one["event"] == "launch"]

    def steps() -> int:
        file = run / "trace.jsonl"
        return len(file.read_text().splitlines()) if file.exists() else 0

    try:
        wait_for(lambda: steps() >= 12, 120)
        cable.cut()
        cut_at = time.monotonic()
        wait_for(lambda: sizes() == [4, 2], 30)
        before = steps()
        wait_for(lambda: steps() > before, 10)
        onward_s = time.monotonic() - cut_at
        cable.mend()
        wait_for(lambda: sizes()[-1] == 4, 120)
        (run / "STOP").touch()
        told = [one.communicate(timeout=120)[0] for one in processes]
    finally:
        for one in processes:
            one.terminate()
            with suppress(subprocess.TimeoutExpired):
                one.wait(20)
            one.kill()
    assert [one.returncode for one in processes] == [0, 0], told
    assert onward_s < ONWARD_S
    assert ", a copy in memory" in told[0]
    assert [one["step"] for one in events(run) if one["event"] == "launch"][1] > 7
    ends = train_on_ranks(2, STORM, [f"run.dir={tmp_path / 'whole'}", *LONG, *ELASTIC])
    assert [end.exit_code for end in ends] == [0, 0], ends[0].stderr
    assert_same_steps(run, tmp_path / "whole")
