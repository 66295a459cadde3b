"""The evaluations and their verdicts come back whole, wherever a launch was cut off and wherever
its checkpoint was carried.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.history import read_history
from harness.checkpoint.read import inspect, list_checkpoints, load_trainer
from harness.stopping.record import rows_by_column
from tests.resume.test_exact import assert_same, finish, last_state, launch
from tests.resume.test_old_run import OLD

OFTEN = ("stop.every.steps=2", "checkpoint={every: {steps: 2}, keep_last: 4}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never cut off."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(run, 1, *OFTEN)
    return run


def rows(checkpoint: Path) -> list[Any]:
    found = read_history(checkpoint)
    assert found is not None
    return found


def test_killed_while_the_history_is_written_linked_and_committed(
    tmp_path: Path, whole: Path
) -> None:
    run = tmp_path / "run"
    deaths = ["pwrite:1", "pwrite:3", "fsync:3", "link:1", "link:4", "rename:2", "rename:9"]
    for death in deaths:
        (end,) = launch(run, 1, *OFTEN, "run.max_crashes=99", die_at=f"in:{death}")
        assert end.exit_code == -9, (death, end.stderr)
        for one in list_checkpoints(run / "checkpoints", "full"):
            assert one.problems == []
            assert [row["step"] for row in rows(one.path)] == list(range(2, one.step + 1, 2))
    finish(run, 1, *OFTEN, "run.max_crashes=99")
    assert_same(run, whole)
    newest = list_checkpoints(run / "checkpoints")[-1].path
    assert len(rows(newest)) == 20


def test_a_run_of_one_launch_has_one_history_and_no_list_in_its_trainer_state(whole: Path) -> None:
    found = list_checkpoints(whole / "checkpoints")
    assert len({(one.path / "history.jsonl").stat().st_ino for one in found}) == 1
    assert sorted(load_trainer(found[-1].path)["stop"]) == ["watch"]


def test_one_checkpoint_carried_elsewhere_goes_on_with_the_same_bits(
    tmp_path: Path, whole: Path
) -> None:
    ends = launch(tmp_path / "run", 1, *OFTEN, die_at="0:20:term")
    assert ends[0].exit_code == 75
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1].path
    carried = tmp_path / "elsewhere" / newest.name
    shutil.copytree(newest, carried)
    shutil.rmtree(tmp_path / "run")
    finish(tmp_path / "other", 1, *OFTEN, f"run.resume={carried}")
    assert last_state(tmp_path / "other") == last_state(whole)
    assert inspect(carried, verify="full").problems == []


def test_a_checkpoint_of_the_first_format_holds_its_evaluations_in_its_trainer_state(
    tmp_path: Path,
) -> None:
    checkpoint = OLD / "checkpoints" / "step-00000023"
    assert read_history(checkpoint) is None
    stop = load_trainer(checkpoint)["stop"]
    found = rows_by_column(stop)
    recorded = [
        one
        for one in map(json.loads, (OLD / "metrics.jsonl").read_text().splitlines())
        if one["kind"] == "eval"
    ]
    assert [row["step"] for row in found] == [one["step"] for one in recorded]
    for row, record in zip(found, recorded, strict=True):
        assert row["metrics"] == {name: record[name] for name in row["metrics"]}
        assert len(row["metrics"]) == sum("/" in name for name in record)
    assert [row["verdict"]["action"] for row in found][-1] == "stop"


def test_without_hard_links_a_run_goes_on_the_same(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    launch(run, 1, *OFTEN, die_at="0:15")
    found = [one.path / "history.jsonl" for one in list_checkpoints(run / "checkpoints")]
    for number, file in enumerate(found):  # as `cp` and FAT leave them
        shutil.copy(file, run / f"{number}")
        os.replace(run / f"{number}", file)
    finish(run, 1, *OFTEN)
    assert_same(run, whole)
