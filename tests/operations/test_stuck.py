"""A data worker that gives nothing: named after a time, and left at once if something asks to."""

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.pool import Launched, train_on_ranks

SMALL = Path(__file__).parents[1] / "training" / "small.yaml"
SPLITS = {
    "train": "data.train.source={_target_: tests.operations.parts.Stuck, count: 64, stuck_at: 61}",
    "val": "data.val.source={_target_: tests.operations.parts.Stuck, count: 20, seed: 5, "
    "stuck_at: 15}",
}


def launch(
    directory: Path,
    ranks: int,
    *overrides: str,
    ask_after_s: float | None = None,
    stuck: bool = True,
) -> list[Launched]:
    """The last rank's worker is stuck. `ask_after_s`: when SIGTERM reaches all ranks."""

    def ask(pids: Sequence[int]) -> None:
        if ask_after_s is not None:
            time.sleep(ask_after_s)
            for pid in pids:
                os.kill(pid, signal.SIGTERM)

    asked = [f"run.dir={directory}", "data.num_workers=2", *overrides]
    env = {"STUCK_RANK": str(ranks - 1) if stuck else "none"}
    return train_on_ranks(ranks, SMALL, asked, env=env, timeout_s=60, meanwhile=ask)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_worker_that_gives_nothing_is_named(tmp_path: Path, ranks: int, split: str) -> None:
    ends = launch(tmp_path, ranks, SPLITS[split], "run.timeout_s=6")
    assert [one.exit_code for one in ends] == [2] * ranks
    said = ends[ranks - 1].stderr
    assert f"data.{split}: data worker " in said
    assert "has not delivered samples " in said
    assert ("61" if split == "train" else "15") in said
    assert "Traceback" not in "".join(one.stderr for one in ends)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_asked_to_leave_it_is_left_at_once(tmp_path: Path, ranks: int, split: str) -> None:
    begun = time.monotonic()
    ends = launch(tmp_path, ranks, SPLITS[split], ask_after_s=3.0)
    assert time.monotonic() - begun < 20
    assert [one.exit_code for one in ends] == [75] * ranks, ends[0].stderr + ends[-1].stderr
    if ranks == 1 or split == "val":  # else the others cannot be asked to save
        outcome = json.loads((tmp_path / "outcome.json").read_text())
        assert outcome["step"] > 0
        assert outcome["checkpoint"].endswith(f"step-{outcome['step']:08}")
    ends = launch(tmp_path, ranks, SPLITS[split], stuck=False)
    assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_worker_that_is_only_slow_costs_no_step(tmp_path: Path, ranks: int) -> None:
    def ask(pids: Sequence[int]) -> None:
        time.sleep(6)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)

    slow = "data.train.source={_target_: tests.operations.parts.SlowInWorkers, count: 64}"
    asked = [f"run.dir={tmp_path}", "data.num_workers=1", "batch.micro_size=4", slow]
    ends = train_on_ranks(ranks, SMALL, asked, meanwhile=ask)
    assert [one.exit_code for one in ends] == [75] * ranks, ends[0].stderr
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["step"] > 0
    assert outcome["checkpoint"].endswith(f"step-{outcome['step']:08}")


def test_a_process_that_is_stopped_is_lost_to_the_others(tmp_path: Path) -> None:
    def stop(pids: Sequence[int]) -> None:
        time.sleep(2.5)
        os.kill(pids[1], signal.SIGSTOP)
        threading.Timer(12.0, os.kill, [pids[1], signal.SIGKILL]).start()

    slow = "network={_target_: tests.operations.parts.SlowForward}"
    asked = [f"run.dir={tmp_path}", "run.timeout_s=3", "stop.budget.steps=1000", slow]
    ends = train_on_ranks(2, SMALL, asked, timeout_s=60, meanwhile=stop)
    assert [one.exit_code for one in ends] == [1, -9]
    assert "RankError: rank 0, step " in ends[0].stderr
    assert "lost rank 1" in ends[0].stderr
    assert "Traceback" not in ends[0].stderr


@pytest.mark.torture
def test_a_lease_that_is_watched_for_long_makes_nobody_give_up(tmp_path: Path) -> None:
    """Of a machine that cannot be asked: it is watched for thirty seconds."""
    lease = tmp_path / "lease"
    lease.mkdir()
    (lease / "00000001").write_text(json.dumps({"host": "another", "pid": 1, "machine": "another"}))
    ends = train_on_ranks(2, SMALL, [f"run.dir={tmp_path}", "run.timeout_s=6"])
    assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr + ends[1].stderr
    assert "took over from launch 1 (another, process 1)" in ends[0].stdout
