"""Asked to leave in any phase, on any rank, all leave at the same step within the limit, and the
run goes on as if nothing had been.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.read import list_checkpoints, load_trainer
from harness.errors import LeavingError
from harness.interrupt import Interruption, granted_s
from harness.ranks.ranks import Ranks
from harness.rundir.status import read_status
from tests.pool import Launched, on_ranks, train_on_ranks
from tests.resume.test_exact import STORM, assert_same, finish, trace

RESTLESS = [
    "network._target_=tests.operations.parts.Restless",
    "optimizer._target_=tests.operations.parts.SlowSaver",
]
# On two cores that other work may share; what is left is a step, a micro-batch of an evaluation,
# and a save
LIMIT_S = 20.0


def launch(
    directory: Path, ranks: int, asked: str, *overrides: str, **environment: str
) -> list[Launched]:
    env = {"ASK": asked, "RUN_DIR": str(directory), **environment}
    return train_on_ranks(
        ranks, STORM, [f"run.dir={directory}", *RESTLESS, *overrides], env=env, timeout_s=60
    )


def go_on(directory: Path, ranks: int, *overrides: str) -> None:
    finish(directory, ranks, *RESTLESS, *overrides)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A run that nobody asked anything, for a number of ranks."""

    @cache
    def get(ranks: int) -> Path:
        directory = tmp_path_factory.mktemp("reference") / "run"
        go_on(directory, ranks)
        return directory

    return get


def outcome(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "outcome.json").read_text())
    return found


def left(directory: Path, ends: Sequence[Launched]) -> dict[str, Any]:
    """The outcome of a launch that was asked to leave, and left in order."""
    assert [one.exit_code for one in ends] == [75] * len(ends), ends[0].stderr
    found = outcome(directory)
    assert found["reason"] == "interrupted"
    assert read_status(directory).exit_code == 75
    assert not (directory / "PREEMPT").exists()
    return found


# -- phases


@pytest.mark.parametrize(
    ("ranks", "asked", "steps", "cause"),
    [
        (2, "built:1:1:SIGTERM", [0], "SIGTERM came"),
        (1, "forward:1:0:SIGUSR1", [0], "SIGUSR1 came before the first step"),  # the warm-up pass
        # The second of six micro-batches of step 5
        (2, "forward:27:1:SIGUSR1", [5, 6], "SIGUSR1 came"),
        (1, "forward:40:0:PREEMPT", [4], "a file PREEMPT came"),
        (1, "evaluated:12:0:SIGINT", [6], "SIGINT came"),
    ],
)
def test_asked_to_leave_in_a_phase(
    tmp_path: Path,
    references: Callable[[int], Path],
    ranks: int,
    asked: str,
    steps: list[int],
    cause: str,
) -> None:
    found = left(tmp_path / "run", launch(tmp_path / "run", ranks, asked))
    assert found["step"] in steps
    assert found["detail"].startswith(cause)
    assert (found["checkpoint"] is None) == (found["step"] == 0)
    go_on(tmp_path / "run", ranks)
    assert_same(tmp_path / "run", references(ranks))


def test_an_evaluation_is_left_and_comes_first_in_the_next_launch(
    tmp_path: Path, references: Callable[[int], Path]
) -> None:
    run = tmp_path / "run"
    # The first evaluation, again and again
    for asked in ("evaluated:5:1:SIGTERM", "evaluated:3:0:SIGTERM", "evaluated:9:1:SIGTERM"):
        found = left(run, launch(run, 2, asked))
        assert found["step"] == 6
        assert found["checkpoint"].endswith("step-00000006")
        assert load_trainer(Path(found["checkpoint"]))["evaluation_due"]
    left(run, launch(run, 2, "evaluated:30:0:SIGTERM"))  # the second
    go_on(run, 2)
    assert_same(run, references(2))
    assert not load_trainer(list_checkpoints(run / "checkpoints")[-1].path)["evaluation_due"]
    # A checkpoint of a step is replaced by the next launch's
    assert not list((run / "checkpoints").glob("aside-*"))


def test_a_save_in_flight_is_finished_first(
    tmp_path: Path, references: Callable[[int], Path]
) -> None:
    run = tmp_path / "run"
    # The save of step 7 is in flight
    found = left(run, launch(run, 2, "stepped:8:1:SIGTERM", SAVE_S="0.5"))
    assert found["checkpoint"].endswith(f"step-{found['step']:08}")
    assert {one.step for one in list_checkpoints(run / "checkpoints")} >= {7, found["step"]}
    go_on(run, 2)
    assert_same(run, references(2))


def test_without_the_time_for_a_save_the_last_checkpoint_is_kept(
    tmp_path: Path, references: Callable[[int], Path]
) -> None:
    run = tmp_path / "run"
    # Half a second is left when the save of step 7 has ended
    ends = launch(run, 2, "stepped:8:1:SIGTERM", "interrupt.grace_s=1.5", SAVE_S="1.0")
    found = left(run, ends)
    assert found["checkpoint"].endswith("step-00000007")
    assert "NOT saved (of the 1.5 s granted" in found["detail"]
    assert "is not saved: of the 1.5 s granted" in ends[0].stdout
    go_on(run, 2)
    assert_same(run, references(2))


def test_building_the_store_is_left_when_another_rank_is_asked_that_waits_for_it(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    slow = [
        "data.train.source._target_=tests.operations.parts.Slow",
        f"data.store.dir={tmp_path / 'store'}",
    ]
    task = "task._target_=tests.operations.parts.Told"
    began = time.monotonic()
    found = left(run, launch(run, 2, "begun:1:1:0.7+SIGTERM", *slow, task, DELAY_S="2"))
    assert found["step"] == 0
    assert "SIGTERM came (rank 1)" in found["detail"]
    assert time.monotonic() - began < LIMIT_S


# -- on one rank, on all


def test_all_at_different_moments(tmp_path: Path, references: Callable[[int], Path]) -> None:
    found = left(
        tmp_path / "run",
        launch(
            tmp_path / "run", 3, "forward:20:1:SIGTERM,forward:22:0:SIGUSR1,forward:23:2:SIGTERM"
        ),
    )
    assert found["step"] in (5, 6, 7)
    go_on(tmp_path / "run", 3)
    assert_same(tmp_path / "run", references(3))


def test_a_request_to_stop_is_obeyed_and_the_run_can_go_on_all_the_same(
    tmp_path: Path, references: Callable[[int], Path]
) -> None:
    ends = launch(tmp_path / "run", 2, "forward:20:1:STOP")
    assert [one.exit_code for one in ends] == [0, 0]
    assert outcome(tmp_path / "run")["reason"] == "stop_requested"
    (other,) = launch(tmp_path / "run", 1, "", "run.seed=99")
    assert (other.exit_code, "belongs to another training" in other.stderr) == (2, True)
    (tmp_path / "run" / "STOP").unlink()
    go_on(tmp_path / "run", 2)
    assert trace(tmp_path / "run") == trace(references(2))


def test_a_file_that_was_meant_for_an_earlier_launch_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "PREEMPT").touch()
    go_on(tmp_path / "run", 1, "stop.budget.steps=3")
    assert not (tmp_path / "run" / "PREEMPT").exists()


def wait_in_a_collective() -> tuple[str, float]:
    """Rank 1 waits for rank 0, inside of a collective, where no handler runs; rank 0 works on and
    on, and looks whether it is to leave.
    """
    ranks = Ranks.join()
    with Interruption() as interruption:
        interruption.join(ranks.board(), ranks.rank)
        began = time.monotonic()

        def work() -> None:
            while time.monotonic() - began < 15:
                interruption.check()
                time.sleep(0.01)

        try:
            ranks.decide(work)
        except LeavingError as leaving:
            return str(leaving), time.monotonic() - began
    return "nothing came", 0.0


def test_a_signal_to_a_rank_that_waits_inside_of_a_collective_reaches_the_one_it_waits_for() -> (
    None
):
    def meanwhile(pids: Sequence[int]) -> None:
        time.sleep(3)
        os.kill(pids[1], signal.SIGTERM)

    for cause, after_s in on_ranks(2, wait_in_a_collective, meanwhile=meanwhile):
        assert cause == "SIGTERM came (rank 1)"
        assert after_s < 3 + 2.5  # rank 0 reads the word of others once a second


# -- the time granted


@pytest.mark.parametrize(
    ("configured", "cause", "environment", "granted"),
    [
        (None, "SIGTERM came", {}, None),
        (7.0, "a file PREEMPT came", {}, 7.0),
        (None, "SIGTERM came", {"TORCHELASTIC_RUN_ID": "x"}, 30.0),
        (
            None,
            "SIGTERM came (rank 3)",
            {"TORCHELASTIC_RUN_ID": "x", "PET_SHUTDOWN_TIMEOUT": "300"},
            300.0,
        ),
        (None, "SIGTERM came", {"TORCHELASTIC_RUN_ID": "x", "PET_SHUTDOWN_TIMEOUT": "soon"}, 30.0),
        # Nobody is left who would kill
        (None, "the launcher ended", {"TORCHELASTIC_RUN_ID": "x"}, None),
        (90.0, "SIGTERM came", {"TORCHELASTIC_RUN_ID": "x"}, 90.0),
    ],
)
def test_what_is_known_of_the_time_granted(
    configured: float | None, cause: str, environment: dict[str, str], granted: float | None
) -> None:
    assert granted_s(configured, cause, environment) == granted
