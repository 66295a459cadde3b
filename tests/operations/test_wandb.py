"""The real wandb package, offline: what it kept is what metrics.jsonl holds, and nothing it does
ends a training.
"""

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from tests.pool import train_on_ranks

STORM = Path(__file__).parents[1] / "resume" / "storm.yaml"
OFFLINE = ["network.width=16", "tracking.wandb={project: tests, mode: offline}"]


def launch(
    directory: Path, *overrides: str, ranks: int = 1, env: dict[str, str] | None = None
) -> str:
    ends = train_on_ranks(
        ranks, STORM, [f"run.dir={directory}", *OFFLINE, *overrides], env=env or {}
    )
    assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr
    return ends[0].stdout


def newest(directory: Path) -> list[wandb_internal_pb2.Record]:
    """What the .wandb file of a run directory's last launch holds."""
    found = []
    for data in _records(
        max(
            directory.glob("wandb/offline-run-*/run-*.wandb"),
            key=lambda path: path.stat().st_mtime_ns,
        ).read_bytes()
    ):
        found.append(wandb_internal_pb2.Record())
        found[-1].ParseFromString(data)
    return found


def rows_kept(directory: Path) -> dict[int, dict[str, Any]]:
    """The history in it, by step; a step that comes twice is an error."""
    found: dict[int, dict[str, Any]] = {}
    for record in newest(directory):
        if record.HasField("history"):
            step = record.history.step.num
            assert step not in found, f"step {step} twice"
            found[step] = {
                (item.key or item.nested_key[0]): json.loads(item.value_json)
                for item in record.history.item
            }
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format after 7 bytes of W&B's: blocks of 32 KiB, chunks with checksum, length,
    and type (1 whole, 2 first, 3 middle, 4 last).
    """
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
            numbers = {
                name: value
                for name, value in record.items()
                if type(value) in (int, float) and name != "step"
            }
            found.setdefault(record["step"], {}).update(numbers)
    return found


def assert_kept_what_was_written(directory: Path) -> None:
    kept, written = rows_kept(directory), rows_written(directory)
    assert kept.keys() == written.keys()
    for step, row in written.items():
        assert {name: kept[step][name] for name in row} == pytest.approx(row)


def test_an_offline_run_keeps_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    launch(tmp_path / "run", ranks=2)
    assert_kept_what_was_written(tmp_path / "run")


def test_after_three_interruptions_the_newest_file_is_the_whole_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for dies, code in (("0:15:term", 75), ("0:12", -9), ("0:3:term", 75)):
        (end,) = train_on_ranks(1, STORM, [f"run.dir={run}", *OFFLINE], env={"DIE_AT": dies})
        assert end.exit_code == code, end.stderr
        if code == 75:
            assert rows_kept(run)
    launch(run)
    assert_kept_what_was_written(run)
    records = newest(run)
    outcome = json.loads((run / "outcome.json").read_text())
    kept = {
        item.key: json.loads(item.value_json)
        for record in records
        for item in record.summary.update
        if item.key
    }
    assert (kept["reason"], kept["detail"], kept["launches"]) == ("budget", outcome["detail"], 4)
    assert (kept["best/value"], kept["time/compute_s"]) == (
        outcome["best"]["value"],
        outcome["time"]["compute_s"],
    )
    lineage = [
        json.loads(item.value_json)
        for record in records
        for item in record.config.update
        if item.key == "launches"
    ][-1]
    assert [one["launch"] for one in lineage] == [1, 2, 3, 4]
    assert [one["from_step"] for one in lineage] == sorted(one["from_step"] for one in lineage)
    assert [record.alert.title for record in records if record.HasField("alert")] == [
        "storm: budget"
    ]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:  # not in an unpacked archive
        assert (
            next(record.run.git.commit for record in records if record.HasField("run"))
            == head.stdout.strip()
        )
    last = max(rows_kept(run).items())[1]
    assert {"time_table", "val/confusion_table"} <= last.keys()


HEADS = """
run: {{name: flats, seed: 1, dir: "{root}/run"}}
data:
  checks: {{duplicates: 'off', overlaps: 'off', conflicts: 'off'}}
  train: &split
    source:
      _target_: harness.sources.tables.Table
      files: "{root}/flats.csv"
      features: [a, b]
      columns: {{mood: text, size: text}}
    treatments:
      - {{_target_: harness.treatments.Encode, key: mood}}
      - {{_target_: harness.treatments.Encode, key: size}}
  val: *split
network:
  _target_: harness.networks.Parallel
  feels: {{_target_: harness.networks.Mlp, dims: [2, 4, 2]}}
  looks: {{_target_: harness.networks.Mlp, dims: [2, 4, 3]}}
task:
  _target_: harness.tasks.Joint
  heads:
    feels: {{_target_: harness.tasks.Classification, input: features, target: mood}}
    looks: {{_target_: harness.tasks.Classification, input: features, target: size}}
batch: {{size: 6, micro_size: 6}}
optimizer: {{_target_: torch.optim.SGD, lr: 0.1}}
stop: {{every: {{steps: 1}}, budget: {{steps: 1}}}}
tracking: {{wandb: {{project: tests, mode: offline}}}}
"""


def test_each_head_s_confusion_matrix_says_the_names_of_its_classes(tmp_path: Path) -> None:
    """Known: a confusion matrix of W&B or Lightning with 0, 1, 2 for classes."""
    rows = [
        f"{n},{-n},{['sad', 'glad'][n % 2]},{['big', 'small', 'tiny'][n % 3]}\n" for n in range(12)
    ]
    (tmp_path / "flats.csv").write_text("".join(["a,b,mood,size\n", *rows]))
    config = tmp_path / "flats.yaml"
    config.write_text(HEADS.format(root=tmp_path))
    (end,) = train_on_ranks(1, config)
    assert end.exit_code == 0, end.stderr
    tables = [
        json.loads(path.read_text())
        for path in (tmp_path / "run").glob("wandb/offline-run-*/files/media/**/*.table.json")
    ]
    found = [one["data"] for one in tables if "nPredictions" in one["columns"]]
    assert {tuple(sorted({actual for actual, *_ in one})) for one in found} == {
        ("big", "small", "tiny"),
        ("glad", "sad"),
    }
    # Of the step's batch, and of the split
    assert {sum(count for *_, count in one) for one in found} == {6, 12}


def test_online_without_a_key_works_offline_and_says_so(tmp_path: Path) -> None:
    out = launch(
        tmp_path / "run",
        "tracking.wandb.mode=online",
        env={"WANDB_MODE": "online", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")},
    )
    assert "no API key" in out
    assert "working offline" in out
    assert rows_kept(tmp_path / "run")


def test_a_disabled_wandb_is_not_there(tmp_path: Path) -> None:
    launch(tmp_path / "run", "tracking.wandb.mode=disabled", "stop.budget.steps=6")
    assert not (tmp_path / "run" / "wandb").exists()


def test_a_broken_wandb_is_one_warning_and_the_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").write_text("a file where wandb wants a directory")
    out = launch(tmp_path / "run", env={"TMPDIR": "/nowhere", "PATH": ""})
    assert "stop: budget" in out
    assert out.count("warning:") == 1
    assert f"`fermarsi track sync {tmp_path / 'run'}` sends what is missing" in out
