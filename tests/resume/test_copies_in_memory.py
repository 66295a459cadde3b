"""A launch goes on from a copy in memory, as from a checkpoint: with the bits of a run that was
never cut off, and never in place of a checkpoint that is as new, or of a copy that is damaged.
"""

import shutil
from pathlib import Path

import pytest

from harness.checkpoint.in_memory import COPIES, MEMORY, forget_others, held_copies, newer_copy
from harness.checkpoint.read import list_checkpoints, step_name
from harness.config.read import read_config
from harness.ranks.ranks import Ranks
from harness.training.resume import agree_on_checkpoint
from tests.pool import Launched, train_on_ranks
from tests.resume.test_exact import STORM, assert_same, events, finish

SHORT = ["stop.budget.steps=16", "checkpoint.every.steps=7", "batch.micro_size=6"]
COPIED = [*SHORT, "checkpoint.in_memory.steps=2"]


def launch(run: Path, copies: Path, die_at: str = "") -> list[Launched]:
    env = {"DIE_AT": die_at, COPIES: str(copies)}
    return train_on_ranks(2, STORM, [f"run.dir={run}", *COPIED], env=env)


def steps_of(directory: Path) -> list[int]:
    return [one.step for one in list_checkpoints(directory) if one.manifest is not None]


def begun_at(run: Path) -> int:
    """The step from which the last launch went on."""
    return int([one for one in events(run) if one["event"] == "launch"][-1]["step"])


def test_a_launch_goes_on_from_the_newest_valid_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path / "whole", 2, *SHORT)
    run, copies = tmp_path / "run", tmp_path / "copies"
    ends = launch(run, copies, "1:12:before")
    assert -9 in [one.exit_code for one in ends], ends[0].stderr
    saved, [copied] = steps_of(run / "checkpoints")[-1], steps_of(copies)
    assert saved == 7
    assert copied in (8, 10)  # the last one may still be in flight

    monkeypatch.setenv(COPIES, str(copies))
    config = read_config(STORM, [f"run.dir={run}", *COPIED])
    start = agree_on_checkpoint(config, Ranks())
    assert (start.path, start.saved_path) == (
        copies / step_name(copied),
        run / "checkpoints" / step_name(saved),
    )
    last = list_checkpoints(run / "checkpoints")[-1].path
    assert newer_copy(run / "checkpoints", last, {}) == (None, [])  # as old as the last checkpoint
    assert newer_copy(tmp_path / "gone", last, {}) == (None, [])

    damaged = tmp_path / "damaged"
    shutil.copytree(copies, damaged)
    [file] = damaged.glob("step-*/model-00001-of-*.safetensors")
    octets = bytearray(file.read_bytes())
    octets[-1] ^= 1
    file.write_bytes(octets)
    monkeypatch.setenv(COPIES, str(damaged))
    start = agree_on_checkpoint(config, Ranks())
    assert start.path == start.saved_path == run / "checkpoints" / step_name(saved)
    assert f"the copy in memory of step {copied} is not valid: model-00001" in str(start.notes)
    forget_others(damaged, start.path)
    assert steps_of(damaged) == []

    ends = launch(run, copies)
    assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr
    assert begun_at(run) == copied
    assert_same(run, tmp_path / "whole")


def test_copies_need_a_launcher_that_keeps_them(tmp_path: Path) -> None:
    ends = train_on_ranks(1, STORM, [f"run.dir={tmp_path / 'run'}", *COPIED])
    assert ends[0].exit_code == 2
    assert "checkpoint.in_memory: copies in memory outlive processes only under" in ends[0].stderr


def test_the_memory_is_given_back_also_that_of_a_launcher_that_was_killed() -> None:
    left = MEMORY / "fermarsi-copies-left"
    left.mkdir()
    (left / "held").touch()
    try:
        with held_copies() as copies, held_copies() as others:
            assert not left.exists()
            assert copies.parent == MEMORY
            assert copies.exists()  # another launch leaves it alone
            assert others != copies
        assert not copies.exists()
    finally:
        shutil.rmtree(left, ignore_errors=True)


def test_the_clock_asks_for_copies_by_what_they_cost(tmp_path: Path) -> None:
    run, copies = tmp_path / "run", tmp_path / "copies"
    by_cost = ["checkpoint.in_memory=auto", "checkpoint.max_overhead=0.9"]
    settings = [f"run.dir={run}", *SHORT, *by_cost]
    ends = train_on_ranks(1, STORM, settings, env={COPIES: str(copies)})
    assert ends[0].exit_code == 0, ends[0].stderr
    assert steps_of(copies), ends[0].stderr
