"""metrics.jsonl is the truth: no step twice, whatever happened."""

import json
from pathlib import Path

import pytest

from harness.console import Console
from harness.tracking.records import cut_back, read_records
from harness.tracking.tracker import Tracker


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"kind": "train", "step": step}) + "\n" for step in (2, 4, 6, 8))
    )
    cut_back(path, 6)
    assert [record["step"] for record in lines(path)] == [2, 4, 6]


def test_half_a_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "train", "step": 2}\n{"kind": "tr\xff')
    assert [record["step"] for record in read_records(path)] == [2]
    cut_back(path, 10)
    assert [record["step"] for record in lines(path)] == [2]


def test_cutting_back_what_is_not_there_makes_an_empty_file(tmp_path: Path) -> None:
    cut_back(tmp_path / "metrics.jsonl", 3)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_only_the_first_rank_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"step": 1, "epoch": 0.5, "samples": 4, "elapsed_s": 1.0, "train/loss_step": 2.0}
    Tracker(tmp_path, Console(False), enabled=False).train(record)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
    Tracker(tmp_path, Console(True), enabled=True).train(record)
    assert lines(tmp_path / "metrics.jsonl") == [{"kind": "train", **record}]
    assert "loss 2" in capsys.readouterr().out


def test_a_record_that_cannot_be_written_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(tmp_path / "gone", Console(True), enabled=True)
    tracker.event("x", {"step": 3})
    assert (
        "a record of step 3 was not written: No such file or directory" in capsys.readouterr().out
    )
