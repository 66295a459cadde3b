"""The real wandb package, offline: what it kept is what metrics.jsonl holds, and nothing it does ends a training."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from tests.pool import train_on_ranks

STORM = Path(__file__).parents[1] / "resume" / "storm.yaml"
OFFLINE = ["network.width=16", "tracking.wandb={project: tests, mode: offline}"]


def launch(directory: Path, *overrides: str, ranks: int = 1, env: dict[str, str] | None = None) -> str:
    ends = train_on_ranks(ranks, STORM, [f"run.dir={directory}", *OFFLINE, *overrides], env=env or {})
    assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr
    return ends[0].stdout


def rows_kept(directory: Path) -> dict[int, dict[str, Any]]:
    """What the .wandb files of a run directory hold, by step; a step in two files is an error."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(directory.glob("wandb/offline-run-*/run-*.wandb")):
        for step, row in _rows(path):
            assert step not in found, f"step {step} twice"
            found[step] = row
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            row = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            yield record.history.step.num, row


def _records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format after 7 bytes of W&B's: blocks of 32 KiB, chunks with checksum, length, and type (1 whole, 2 first, 3 middle, 4 last)."""
    assert data[:4] == b":W&B"
    begin, whole = 7, b""
    while begin + 7 <= len(data):
        room = 32768 - begin % 32768
        if room < 7:
            begin += room
            continue
        length, kind = struct.unpack_from("<HB", data, begin + 4)
        if kind == 0:
            return
        whole += data[begin + 7 : begin + 7 + length]
        begin += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def rows_written(directory: Path) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] in ("train", "eval"):
            numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}
            found.setdefault(record["step"], {}).update(numbers)
    return found


def assert_kept_what_was_written(directory: Path) -> None:
    kept, written = rows_kept(directory), rows_written(directory)
    assert kept.keys() == written.keys()
    for step, row in written.items():
        assert {name: kept[step][name] for name in row} == pytest.approx(row)


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_offline_run_keeps_what_metrics_jsonl_holds(tmp_path: Path, ranks: int) -> None:
    launch(tmp_path / "run", ranks=ranks)
    assert_kept_what_was_written(tmp_path / "run")


def test_launches_that_end_in_order_add_up_without_gap_or_duplicate(tmp_path: Path) -> None:
    for steps in (12, 24, 40):
        launch(tmp_path / "run", f"stop.budget.steps={steps}")
    assert_kept_what_was_written(tmp_path / "run")


def test_online_without_a_key_works_offline_and_says_so(tmp_path: Path) -> None:
    out = launch(tmp_path / "run", "tracking.wandb.mode=online", env={"WANDB_MODE": "online", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")})
    assert "no API key" in out
    assert "working offline" in out
    assert rows_kept(tmp_path / "run")


def test_a_broken_wandb_is_one_warning_and_the_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").write_text("a file where wandb wants a directory")
    out = launch(tmp_path / "run", env={"TMPDIR": "/nowhere", "PATH": ""})
    assert "stop: budget" in out
