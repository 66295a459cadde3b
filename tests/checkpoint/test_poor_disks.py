"""File systems that lack what most have: nothing is lost, deletion goes on, one warning."""

import json
import os
from pathlib import Path

import pytest

from harness.checkpoint.pointers import point, target_of
from harness.checkpoint.read import choose, find_checkpoint, list_checkpoints
from tests.pool import command, train_on_ranks
from tests.resume.test_exact import STORM

DATA = "{source: {_target_: tests.checkpoint.refusing.OnPoorDisk, count: 96}}"


@pytest.mark.parametrize("refused", ["symlink", "link", "flock", "replace"])
def test_a_run_keeps_what_it_was_asked_to_keep(tmp_path: Path, refused: str) -> None:
    run = tmp_path / "run"
    asked = [f"data.train={DATA}", "stop.budget.steps=12", "stop.every.steps=4"]
    asked += ["checkpoint={every: {steps: 2}, keep_last: 1, keep_best: 1}", f"run.dir={run}"]
    (end,) = train_on_ranks(1, STORM, asked, env={"REFUSED": refused})
    assert end.exit_code == 0, end.stderr
    said = end.stdout + end.stderr
    steps = [one.step for one in list_checkpoints(run / "checkpoints")]
    assert steps[-1] == 12
    assert len(steps) <= 2, "the newest and the best"
    histories = {one.stat().st_ino for one in run.glob("checkpoints/step-*/history.jsonl")}
    assert len(histories) == (len(steps) if refused == "link" else 1)
    best = find_checkpoint(run)
    assert best.name == f"step-{json.loads((run / 'outcome.json').read_text())['best']['step']:08}"
    latest = choose(run / "checkpoints", "latest").path
    assert latest is not None
    assert latest.name == "step-00000012"
    if refused == "symlink":
        assert sorted(path.name for path in (run / "checkpoints").glob("*.json")) == [
            "best.json",
            "latest.json",
        ]
        assert said.count("no link can be made here") == 2, "latest and best, once each"
        assert "latest" in command("checkpoints", "list", run).stdout
    else:
        assert (run / "checkpoints" / "latest").is_symlink()
        assert "no link can be made" not in said


def test_a_pointer_follows_what_the_disk_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        (tmp_path / f"step-{step:08}").mkdir()
    assert point(tmp_path, "best", "step-00000001") is None

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    with monkeypatch.context() as patched:
        patched.setattr(os, "symlink", refuse)
        assert "best.json names it" in str(point(tmp_path, "best", "step-00000002"))
    assert not (tmp_path / "best").is_symlink()
    assert target_of(tmp_path, "best") == tmp_path / "step-00000002"
    assert point(tmp_path, "best", "step-00000001") is None
    assert not (tmp_path / "best.json").exists()
    assert target_of(tmp_path, "best") == tmp_path / "step-00000001"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"checkpoint": 7}', '{"checkpoint": "../step-00000001"}', '{"a": 1']
)
def test_a_pointer_that_names_no_checkpoint_names_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "inside" / "best.json").write_text(text)
    assert target_of(tmp_path / "inside", "best") is None
    (tmp_path / "inside" / "latest").symlink_to("../step-00000001")
    assert target_of(tmp_path / "inside", "latest") is None
