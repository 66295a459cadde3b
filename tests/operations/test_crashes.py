"""A step that crashes again and again is counted, named, and not tried for ever."""

from pathlib import Path

import pytest

from harness.config.read import read_config
from harness.errors import DataError, RankError
from harness.rundir.crashes import FILE, Crash, StepNote, check_crashes, last_crash
from harness.rundir.status import read_status
from harness.training.resume import find_start
from tests.pool import Launched, train_on_ranks
from tests.resume.test_exact import STORM


def crash_at(run: Path, *steps: int) -> None:
    """A launch that worked on these steps and was cut off in the last."""
    note = StepNote(run)
    note.__enter__()
    for step in steps:
        note.begin(step)


def test_crashes_in_the_same_step_are_counted_in_a_row(tmp_path: Path) -> None:
    assert last_crash(tmp_path) is None
    for times in (1, 2, 3):
        crash_at(tmp_path, 4, 5)
        assert last_crash(tmp_path) == Crash(5, times)
    said = r"step 5 crashed 3 times in a row \(run\.max_crashes: 3\), so this launch does not start"
    with pytest.raises(RankError, match=said):
        check_crashes(tmp_path, 3)
    assert check_crashes(tmp_path, 4) == Crash(5, 3)
    crash_at(tmp_path, 5, 6)
    assert last_crash(tmp_path) == Crash(6, 1)


@pytest.mark.parametrize("error", [None, DataError("a mistake that was told"), KeyboardInterrupt()])
def test_an_end_in_order_is_no_crash(tmp_path: Path, error: BaseException | None) -> None:
    crash_at(tmp_path, 5)
    note = StepNote(tmp_path)
    note.__enter__()
    note.begin(5)
    note.__exit__(None if error is None else type(error), error, None)
    assert last_crash(tmp_path) is None


def test_a_bug_and_a_lost_rank_are_crashes(tmp_path: Path) -> None:
    for times, error in ((1, KeyError("a bug")), (2, RankError("lost rank 1"))):
        note = StepNote(tmp_path)
        note.__enter__()
        note.begin(7)
        note.__exit__(type(error), error, None)
        assert last_crash(tmp_path) == Crash(7, times)


@pytest.mark.parametrize("text", ["", "7", "seven eight nine", "\0" * 40])
def test_a_damaged_note_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert last_crash(tmp_path) is None


def test_a_launch_does_not_try_the_same_step_for_ever(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def launch(*overrides: str, die_at: str = "") -> list[Launched]:
        return train_on_ranks(
            2,
            STORM,
            [f"run.dir={run}", "run.max_crashes=2", "stop.budget.steps=9", *overrides],
            env={"DIE_AT": die_at},
        )

    survivor = launch(die_at="1:5")[0]
    assert survivor.exit_code == 1
    assert "RankError: rank 0, step 5: lost rank 1 (" in survivor.stderr
    assert "step 5 crashed; launch it again" in read_status(run).text
    assert -9 in [one.exit_code for one in launch(die_at="0:5")]
    ends = launch()
    assert [one.exit_code for one in ends] == [1, 1]
    assert [
        one.stderr.count("step 5 crashed 2 times in a row (run.max_crashes: 2)") for one in ends
    ] == [1, 0]
    status = read_status(run)
    assert (status.state, status.exit_code) == ("crashed", 1)
    assert "step 5 crashed 2 times in a row" in status.text
    (run / "checkpoints").mkdir(exist_ok=True)
    anew = [f"run.dir={run}", "run.resume=never", "run.overwrite=true"]
    assert find_start(read_config(STORM, anew)).superseded  # however often the earlier run crashed
    assert [one.exit_code for one in launch("run.max_crashes=3")] == [0, 0]
    assert not (run / FILE).exists()
