"""Sweeps: the trials that Optuna proposes are runs, whatever happens to the sweep."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from harness.cli import app
from harness.errors import RankError
from harness.rundir.outcome import read_outcome
from tests.pool import train_on_ranks

CONFIG = Path(__file__).parent / "sweep.yaml"
OVER = ["--over", "optimizer.lr=1e-3..3e-2:log", "--over", "network.dims=[6,16,3],[6,8,3]"]


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def sweep(directory: Path, *options: str, code: int = 0) -> None:
    asked = ["sweep", str(CONFIG), *OVER, "--dir", str(directory), "--cpu", *options]
    assert app(asked, standalone_mode=False) == code


def result(directory: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(directory / "trials.parquet").to_pylist()
    return rows


def weights(run: Path) -> list[bytes]:
    newest = max((run / "checkpoints").glob("step-*"))
    return [path.read_bytes() for path in sorted(newest.glob("model-*.safetensors"))]


def evaluations(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [
        {name: value for name, value in one.items() if name != "elapsed_s"}
        for one in found
        if one["kind"] == "eval"
    ]


@pytest.mark.torture
def test_a_sweep_killed_in_the_middle_goes_on_as_one_that_was_not(tmp_path: Path) -> None:
    options = ["--trials", "3", "--sampler", "tpe", "--seed", "1"]
    sweep(tmp_path / "whole", *options)
    killed = tmp_path / "killed"
    command = ["sweep", str(CONFIG), *OVER, "--dir", str(killed), "--cpu", *options]
    process = subprocess.Popen(
        [sys.executable, "-c", "from harness.cli import main; main()", *command],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    metrics = killed / "trial-0001" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"eval"' in metrics.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with (killed / "study.journal").open("ab") as file:  # half a line, as a kill may leave it
        file.write(b'{"op_code": 6, "wor')
    sweep(killed, *options)
    mine, theirs = result(killed), result(tmp_path / "whole")
    assert mine == theirs
    assert [one["state"] for one in mine] == ["complete"] * 3
    assert len({one["optimizer.lr"] for one in mine}) == 3
    for number in range(3):
        run = f"trial-{number:04}"
        assert weights(killed / run) == weights(tmp_path / "whole" / run)
        assert evaluations(killed / run) == evaluations(tmp_path / "whole" / run)
    outcome = read_outcome(killed / "trial-0001")
    assert outcome is not None
    assert outcome.launches == 2
    assert "<svg" in (killed / "sweep.html").read_text()


def test_asha_pauses_trials_and_goes_on_with_the_best_to_the_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path, "--trials", "4", "--prune", "asha", "--eta", "2", "--at-once", "2")
    said = capsys.readouterr().out
    rows = result(tmp_path)
    complete = [one for one in rows if one["state"] == "complete"]
    assert len(complete) == 1
    (best,) = complete
    run = tmp_path / f"trial-{best['trial']:04}"
    outcome = read_outcome(run)
    assert outcome is not None
    assert outcome.reason == "budget"
    assert outcome.launches > 1  # it was paused, more than once
    assert f"trial {best['trial']} pauses" in said
    others = [one for one in rows if one is not best]
    assert {one["state"] for one in others} == {"pruned"}
    # Each rung is a power of 2; half of those on a rung went on
    assert sorted(one["evaluations"] for one in others) == [1, 1, 2]
    dims = best["network.dims"]
    given = [f"optimizer.lr={best['optimizer.lr']!r}", f"network.dims={dims}"]
    plain = tmp_path / "plain"
    (launched,) = train_on_ranks(1, CONFIG, [*given, f"run.dir={plain}"])
    assert launched.exit_code == 0
    assert weights(run) == weights(plain)
    assert evaluations(run) == evaluations(plain)


def test_launches_that_fail_end_the_sweep_instead_of_being_repeated_for_ever(
    tmp_path: Path,
) -> None:
    """In a directory whose name has signs of YAML."""
    directory = tmp_path / "lr #1: high"
    directory.mkdir()
    for number in range(3):
        (directory / f"trial-{number:04}").write_text("in the way of a run directory")
    with pytest.raises(RankError, match="3 trials failed in a row"):
        sweep(directory, "--trials", "4", "--sampler", "random")
    for number in range(3):
        (directory / f"trial-{number:04}").unlink()
    sweep(directory, "--trials", "4", "--sampler", "random")
    assert [one["state"] for one in result(directory)] == ["failed"] * 3 + ["complete"]
    assert (directory / "trial-0003" / "outcome.json").exists()


@pytest.mark.torture
def test_a_trial_on_two_ranks_that_is_killed_goes_on_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 1 dies in its 17th step, while the checkpoint of step 16 may still be on its way."""
    dies = "optimizer={_target_: tests.resume.parts.Mortal, lr: 0.01}"
    monkeypatch.setenv("DIE_AT", "1:17")
    two = ["batch.micro_size=4", dies]
    sweep(tmp_path, "--trials", "1", "--processes", "2", *two)
    assert re.search(r"trial 0 was cut off at step (12|16); it goes on", capsys.readouterr().out)
    (row,) = result(tmp_path)
    assert row["state"] == "complete"
    outcome = read_outcome(tmp_path / "trial-0000")
    assert outcome is not None
    assert (outcome.launches, outcome.world_size, outcome.step) == (2, 2, 24)
    plain = tmp_path / "plain"
    monkeypatch.delenv("DIE_AT")
    given = [f"{key}={row[key]}" for key in ("optimizer.lr", "network.dims")]
    given = [*two, *given, f"run.dir={plain}"]
    assert [one.exit_code for one in train_on_ranks(2, CONFIG, given)] == [0, 0]
    assert weights(tmp_path / "trial-0000") == weights(plain)
    assert evaluations(tmp_path / "trial-0000") == evaluations(plain)


def test_a_trial_that_is_cut_off_again_where_it_began_has_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked to leave while its data is prepared, and killed there, each time."""
    always = "data.train.source={_target_: tests.search.parts.CutOff, count: 64}"
    alone = ["sweep", str(CONFIG), always, "--over", "data.train.source.by=TERM,KILL"]
    assert app([*alone, "--cpu", "--dir", str(tmp_path)], standalone_mode=False) == 0
    said = " ".join(capsys.readouterr().out.split())
    for trial, how in enumerate(("interrupted (exit code 75)", "killed (exit code -9)")):
        why = f"it was {how} without getting further than step 0, where it began."
        log = tmp_path / "logs" / f"trial-{trial:04}.txt"
        assert f"trial {trial} failed: {why} See what ended it in {log}." in said
    assert [one["state"] for one in result(tmp_path)] == ["failed"] * 2
