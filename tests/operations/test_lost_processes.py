"""`fermarsi launch --min-processes`: a process is killed in the middle, the others go on within
seconds, and another takes its place.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.in_memory import COPIES
from harness.cli import main
from tests.pool import train_on_ranks
from tests.resume.test_exact import STORM, events

ROOT = Path(__file__).parents[2]
# A step takes a while, so that it can be met in its midst
SLOW = ["data.train.source._target_=tests.operations.parts.Slow"]
ELASTIC = ["run.exactness=elastic"]
ONWARD_S = 10.0  # from a loss to the next step


class Launch:
    """`fermarsi launch` of storm.yaml, whose 12 slots fit 1, 2, 3, 4 and 6 processes."""

    def __init__(
        self,
        run: Path,
        processes: int,
        *options: str,
        delay_s: float = 0.05,
        settings: Sequence[str] = (),
    ) -> None:
        self.run = run
        settings = [f"run.dir={run}", *SLOW, *ELASTIC, *settings]
        program = "import sys; from harness.cli import main; main(sys.argv[1:])"
        arguments = ["launch", "--cpu", "--processes", str(processes), *options, str(STORM)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments, *settings],
            cwd=ROOT,
            env={**os.environ, "DELAY_S": str(delay_s), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def children(self) -> list[int]:
        number = self.process.pid
        text = Path(f"/proc/{number}/task/{number}/children").read_text()
        return [int(one) for one in text.split()]

    def trace(self) -> list[dict[str, Any]]:
        with suppress(OSError):
            lines = (self.run / "trace.jsonl").read_text().splitlines(keepends=True)
            return [json.loads(line) for line in lines if line.endswith("\n")]
        return []

    def launches(self) -> list[dict[str, Any]]:
        with suppress(OSError, ValueError):
            return [one for one in events(self.run) if one["event"] == "launch"]
        return []

    def wait_for(self, what: Callable[[], object], limit_s: float = 90.0) -> float:
        """Seconds until it was true."""
        begun = time.monotonic()
        while not what():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() - begun < limit_s, "nothing happens"
            time.sleep(0.02)
        return time.monotonic() - begun

    def kill(self) -> None:
        """With its processes."""
        for one in self.children() if self.process.poll() is None else []:
            os.kill(one, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def end(self) -> tuple[int, str]:
        text, _ = self.process.communicate(timeout=90)
        return self.process.returncode, text


@contextmanager
def launched(
    run: Path,
    processes: int,
    *options: str,
    delay_s: float = 0.05,
    settings: Sequence[str] = (),
) -> Iterator[Launch]:
    launch = Launch(run, processes, *options, delay_s=delay_s, settings=settings)
    try:
        yield launch
    finally:
        launch.kill()


def assert_same_steps(run: Path, reference: Path) -> None:
    """Each step once, with the samples, loss and weights of a run that lost nobody, which may have
    gone further.
    """
    mine, other = (
        [json.loads(line) for line in (at / "trace.jsonl").read_text().splitlines()]
        for at in (run, reference)
    )
    assert mine == other[: len(mine)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    ends = train_on_ranks(3, STORM, [f"run.dir={run}", *ELASTIC])
    assert [one.exit_code for one in ends] == [0, 0, 0], ends[0].stderr
    return run


def test_survivors_of_rank_0_go_on_in_seconds_and_another_takes_its_place(
    tmp_path: Path, reference: Path
) -> None:
    """From a copy in memory, the last checkpoint being of step 7; though it was to begin anew."""
    run = tmp_path / "run"
    copied = ["checkpoint.in_memory.steps=2", "run.resume=never", "run.overwrite=true"]
    with launched(run, 4, "--min-processes", "2", settings=copied) as launch:
        launch.wait_for(lambda: len(launch.trace()) >= 10)
        survivors = launch.children()[1:]
        environment = Path(f"/proc/{survivors[0]}/environ").read_text().split("\0")
        [copies] = [Path(one.partition("=")[2]) for one in environment if COPIES in one]
        assert list(copies.glob("step-*"))
        os.kill(launch.children()[0], signal.SIGKILL)
        launch.wait_for(lambda: len(launch.launches()) == 2)
        assert set(survivors) <= set(launch.children())  # the same processes
        steps = len(launch.trace())
        assert launch.wait_for(lambda: len(launch.trace()) > steps) < ONWARD_S
        code, text = launch.end()
    assert code == 0, text
    assert "killed by SIGKILL" in text
    assert "3 processes go on" in text
    sizes = [one["world_size"] for one in launch.launches()]
    assert sizes in ([4, 3, 4], [4, 3]), text  # it may be over before another process has begun
    assert_same_steps(run, reference)
    assert len(launch.trace()) == 40
    assert launch.launches()[1]["step"] > 7
    assert "a copy in memory" in text
    assert not copies.exists()


def test_a_signal_to_the_launcher_saves_and_leaves_with_75(tmp_path: Path) -> None:
    with launched(tmp_path / "run", 2, "--min-processes", "1") as launch:
        launch.wait_for(lambda: len(launch.trace()) >= 3)
        launch.process.send_signal(signal.SIGTERM)
        code, text = launch.end()
    assert code == 75, text
    assert "SIGTERM came at step" in text
    assert "saved; to be resumed" in text
    assert "lost process" not in text


def test_more_processes_at_least_than_there_are_is_one_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for processes, least, words in (
        ("2", "3", "--min-processes 3: 2 processes are launched in all"),
        ("5", "5", "of 5 processes, 4 can share the 12 slots of a batch"),
    ):
        options = ["--cpu", "--processes", processes, "--min-processes", least]
        with pytest.raises(SystemExit) as ended:
            main(["launch", *options, str(STORM)])
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
