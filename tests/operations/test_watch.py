"""A rank that stands still is named by the others, with the place of its main thread, and left."""

import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.checkpoint.read import list_checkpoints
from tests.pool import RanksFailed, train_on_ranks

SMALL = Path(__file__).parents[1] / "training" / "small.yaml"
PARTS = (
    "network={_target_: tests.operations.stuck_parts.Net}",
    "optimizer={_target_: tests.operations.stuck_parts.Sgd, lr: 0.01}",
    "task={_target_: tests.operations.stuck_parts.Task, input: x, target: label}",
    "data.train.source={_target_: tests.operations.stuck_parts.Points, count: 64}",
    "stop.budget.steps=10000",
)
# What the message says of each place
PHASES = {
    "forward": "forward",
    "backward": "backward",
    "step": "optimizer step",
    "data": "data",
    "evaluation": "evaluation",
    "metrics": "metrics",
    "save": "copy for a save",
    "log": "log",
    "verdict": "verdict",
}


@dataclass(frozen=True)
class Ended:
    """How a launch ended, by rank; a process that could not end in order has an exit code all the
    same.
    """

    codes: Sequence[int | None]
    stderr: Sequence[str]
    stdout: str
    took_s: float


def launch(
    directory: Path, ranks: int, stuck: str, *overrides: str, least_s: float = 2.0, **more: str
) -> Ended:
    """more: environment. What cannot leave by itself is killed after a while, as torch's agent
    would.
    """
    begun = time.monotonic()
    asked = [f"run.dir={directory}", *PARTS, *overrides]
    env = {"STUCK": stuck, "LEAST_S": str(least_s), **more}
    _, rank, how = stuck.split(":")

    def end(pids: Sequence[int]) -> None:
        if how in ("gil", "stop"):
            limit_s = (7 if stuck.startswith("data") else 1) * least_s + 20
            threading.Timer(limit_s, _kill, [pids[int(rank)]]).start()

    try:
        ends = train_on_ranks(ranks, SMALL, asked, env=env, timeout_s=600, meanwhile=end)
    except RanksFailed as failed:
        failures, results = failed.failures, failed.results
        codes = [
            failures[one].exit_code if one in failures else results[one].exit_code
            for one in range(ranks)
        ]
        stderr = [
            failures[one].traceback if one in failures else results[one].stderr
            for one in range(ranks)
        ]
        return Ended(codes, stderr, "", time.monotonic() - begun)
    took_s = time.monotonic() - begun
    return Ended(
        [one.exit_code for one in ends], [one.stderr for one in ends], ends[0].stdout, took_s
    )


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def check(ended: Ended, rank: int, phase: str, how: str = "stands still") -> str:
    """What was said, by one rank, of another and a phase."""
    text = "".join(ended.stderr)
    found = re.search(
        rf"^RankError: step [\d,]+, ([a-z ]+): rank (\d+) \(host .*\) {how}", text, re.M
    )
    assert found is not None, text
    assert found.groups() == (phase, str(rank)), text
    assert text.count("RankError") == 1, text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("place", ["backward", "metrics"])
def test_a_rank_that_stands_still_is_named(tmp_path: Path, place: str) -> None:
    ended = launch(tmp_path, 2, f"{place}:1:sleep")
    assert ended.codes == [1, 1]
    said = check(ended, 1, PHASES[place])
    assert re.search(r"rank 1: operations/stuck_parts.py:\d+ stand_still < ", said), said
    stacks = (tmp_path / "stacks" / "launch-1-rank-00001.txt").read_text()
    assert "stand_still" in stacks
    again = launch(tmp_path, 2, "::", "stop.budget.steps=60")
    assert again.codes == [0, 0], again.stderr
    assert (tmp_path / "stacks" / "launch-1-rank-00001.txt").read_text() == stacks
    assert not (tmp_path / "stacks" / "launch-2-rank-00001.txt").exists()


@pytest.mark.torture
def test_one_that_cannot_even_report_is_named_with_its_stack(tmp_path: Path) -> None:
    ended = launch(tmp_path, 2, "forward:1:gil", least_s=4.0)
    assert ended.codes == [1, -signal.SIGKILL]
    said = check(ended, 1, "backward", "is silent")
    assert "rank 1: operations/stuck_parts.py:" in said


@pytest.mark.torture
def test_a_stopped_overseer_is_replaced(tmp_path: Path) -> None:
    ended = launch(tmp_path, 4, "forward:0:stop")
    assert ended.codes == [-signal.SIGKILL, 1, 1, 1]
    check(ended, 0, "backward", "is silent")


def test_alone_it_is_only_named(tmp_path: Path) -> None:
    ended = launch(tmp_path, 1, "forward:0:6", "stop.budget.steps=40")
    assert ended.codes == [0]
    assert "warning: step 7, forward: rank 0 (" in ended.stderr[0]
    assert "stand_still" in ended.stderr[0]


def test_asked_to_warn_it_goes_on(tmp_path: Path) -> None:
    ended = launch(tmp_path, 2, "forward:1:6", "run.watch=warn", "stop.budget.steps=40")
    assert ended.codes == [0, 0], ended.stderr
    assert ended.stderr[0].count("forward: rank 1 (") == 1
    assert not (tmp_path / "stacks").exists()


def test_a_debugger_may_stand_still(tmp_path: Path) -> None:
    ended = launch(tmp_path, 2, "forward:1:debugger", "stop.budget.steps=40")
    assert ended.codes == [0, 0], ended.stderr
    assert not any("stands still" in one for one in ended.stderr)


@pytest.mark.torture
def test_a_collective_of_one_rank_alone_is_named_where_it_is(tmp_path: Path) -> None:
    """As in github.com/modelscope/ms-swift/issues/10183, where ranks came to different ones."""
    ended = launch(tmp_path, 2, "forward:1:collective")
    assert ended.codes == [1, 1]
    said = check(ended, 1, "forward")
    assert "operations/stuck_parts.py:" in said
    assert "all_reduce" in said or "new_group" in said


def test_a_file_system_that_comes_back_costs_nothing(tmp_path: Path) -> None:
    ended = launch(tmp_path, 2, "data:1:6", "stop.budget.steps=40")
    assert ended.codes == [0, 0], ended.stderr
    assert ended.stderr[0].count("data: rank 1 (") == 1


def test_a_save_may_last(tmp_path: Path) -> None:
    """Asked to leave while an earlier save is written, for longer than any phase may last."""
    optimizer = "optimizer={_target_: tests.operations.parts.SlowSaver, lr: 0.01}"
    asked = [*PARTS, optimizer, "checkpoint.every={steps: 20}", f"run.dir={tmp_path}"]
    env = {"LEAST_S": "2", "SAVE_S": "6", "ASK": "stepped:30:all:SIGTERM", "DIE_AT": ""}
    ends = train_on_ranks(2, SMALL, asked, env=env)
    assert [one.exit_code for one in ends] == [75, 75], ends[0].stderr
    assert not any("stand" in one.stderr for one in ends)


def test_a_save_in_flight_ends_before_the_stuck_process_leaves(tmp_path: Path) -> None:
    """It was lost, though its thread needs no main thread."""
    optimizer = "optimizer={_target_: tests.operations.parts.SlowSaver, lr: 0.01}"
    asked = (optimizer, "checkpoint.every={steps: 12}", "stop.every={steps: 12}")
    env = {"SAVE_S": "9", "ASK": "", "DIE_AT": ""}
    ended = launch(tmp_path, 2, "forward:1:sleep", *asked, **env)
    assert ended.codes == [1, 1]
    check(ended, 1, "forward")
    saved = list_checkpoints(tmp_path / "checkpoints")
    assert [(one.step, one.problems) for one in saved] == [(12, [])]


@pytest.mark.torture
@pytest.mark.parametrize("place", ["log", "verdict"])
def test_rank_0_may_wait_for_its_disk_but_not_for_ever(tmp_path: Path, place: str) -> None:
    ended = launch(tmp_path, 2, f"{place}:0:sleep")
    assert ended.codes == [1, 1]
    check(ended, 0, PHASES[place])
    assert ended.took_s > 12


@pytest.mark.torture
@pytest.mark.parametrize("place", ["data", "forward", "step"])
def test_a_slow_rank_is_named(tmp_path: Path, place: str) -> None:
    asked = ("stop.budget.steps=100000", "stop.budget.hours=0.009", "stop.every={steps: 5000}")
    ended = launch(tmp_path, 2, f"{place}:1:slow", *asked, "log.every={steps: 100}")
    assert ended.codes == [0, 0], ended.stderr
    slow = [line for line in ended.stdout.splitlines() if "is slower than the others" in line]
    assert len(slow) == 1, ended.stdout
    assert "rank 1 (" in slow[0]
    assert f"mostly in {PHASES[place]} (" in slow[0]


@pytest.mark.torture
@pytest.mark.parametrize(
    ("place", "how"),
    [
        ("forward", "sleep"),
        ("backward", "gil"),
        ("step", "stop"),
        ("data", "sleep"),
        ("evaluation", "stop"),
        ("metrics", "gil"),
        ("save", "sleep"),
    ],
)
def test_wherever_and_however_it_stands_still(tmp_path: Path, place: str, how: str) -> None:
    """With the limits that users have: ten seconds, and a minute for data."""
    ended = launch(tmp_path, 4, f"{place}:1:{how}", least_s=10.0)
    assert {ended.codes[0], *ended.codes[2:]} == {1}
    text = "".join(ended.stderr)
    assert re.search(
        r"^RankError: step [\d,]+, [a-z ]+: rank 1 \(host .*\) (stands still|is silent) for",
        text,
        re.M,
    ), text
    if how == "sleep":
        check(ended, 1, PHASES[place])
        # A save is stuck in step 112
        assert ended.took_s < {"data": 80, "save": 45}.get(place, 30)


@pytest.mark.parametrize(
    "steps",
    [pytest.param(1500, marks=pytest.mark.torture), pytest.param(10_000, marks=pytest.mark.soak)],
)
def test_a_loaded_machine_gives_no_alarm(tmp_path: Path, steps: int) -> None:
    """Four ranks on two cores."""
    every = [f"{one}.every={{steps: 500}}" for one in ("stop", "checkpoint")]
    ended = launch(
        tmp_path, 4, "::", "log.every={steps: 100}", *every, f"stop.budget.steps={steps}"
    )
    assert ended.codes == [0] * 4, ended.stderr
    assert not any("stands still" in one for one in ended.stderr)
    assert "slower than the others" not in ended.stdout
