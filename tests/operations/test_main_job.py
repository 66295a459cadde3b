"""The main job as users start it: through accelerate's launcher, by path, by module, from anywhere;
stopped, killed, continued with.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from harness import components
from harness.checkpoint.read import find_checkpoint
from harness.config.read import read_config
from harness.sources.digits import Digits
from tests.pool import command, train_on_ranks

ROOT = Path(__file__).parents[2]
CPU = ROOT / "launch" / "cpu.sh"
CONFIG = ROOT / "configs" / "digits.yaml"
LIMIT_S = 240


def start(*command: str | Path, cwd: Path) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def run(*command: str | Path, cwd: Path) -> tuple[int, str]:
    process = start(*command, cwd=cwd)
    output, _ = process.communicate(timeout=LIMIT_S)
    return process.returncode, output


def outcome(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "outcome.json").read_text())
    return found


def weights(directory: Path) -> dict[str, str]:
    manifest = json.loads((directory / "checkpoints" / "latest" / "manifest.json").read_text())
    return {
        name: entry["sha256"]
        for name, entry in manifest["files"].items()
        if entry["role"] in ("model", "optimizer")
    }


def test_digits_reach_their_targets_with_two_processes_through_the_launcher(tmp_path: Path) -> None:
    code, output = run(CPU, "2", CONFIG, "run.dir=run", cwd=tmp_path)
    assert code == 0, output
    end = outcome(tmp_path / "run")
    assert end["reason"] == "targets_reached"
    assert end["world_size"] == 2
    assert end["epoch"] < 50
    assert end["exact"]
    assert "targets_reached" in output
    evaluations = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    last = [one for one in evaluations if one["kind"] == "eval"][-1]
    assert min(last["train/accuracy"], last["val/accuracy"]) >= 0.95
    names: set[str] = set()
    for file in find_checkpoint(tmp_path / "run").glob("model-*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
    assert names == set(components.build(read_config(CONFIG).network, "network").state_dict())


def test_killed_in_the_middle_it_ends_as_one_that_was_not(tmp_path: Path) -> None:
    goal = ["stop.targets=null", "stop.budget.epochs=40", "stop.improvement=null"]
    process = start(CPU, "2", CONFIG, "run.dir=killed", *goal, cwd=tmp_path)
    deadline = time.monotonic() + LIMIT_S
    while len(list((tmp_path / "killed" / "checkpoints").glob("step-*"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = subprocess.run(
        ["pgrep", "-f", "harness/train.py.*run.dir=killed"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for pid in workers:
        os.kill(int(pid), signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    assert not (tmp_path / "killed" / "outcome.json").exists()
    code, output = run(CPU, "2", CONFIG, "run.dir=killed", *goal, cwd=tmp_path)
    assert code == 0, output
    assert "going on from step-" in output
    assert [
        one.exit_code for one in train_on_ranks(2, CONFIG, [f"run.dir={tmp_path / 'whole'}", *goal])
    ] == [0, 0]
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert outcome(tmp_path / "killed")["launches"] == 2
    assert outcome(tmp_path / "killed")["time"]["idle_s"] >= 0


@pytest.mark.parametrize(
    "how", [[ROOT / "harness" / "train.py"], ["-m", "harness.train"]], ids=["path", "module"]
)
def test_one_process_by_path_and_by_module(tmp_path: Path, how: list[Any]) -> None:
    # With workers: they ignore the signals that ask a run to save, and must not keep the process
    # from ending.
    code, output = run(
        sys.executable,
        *how,
        CONFIG,
        "run.dir=run",
        "stop.budget.epochs=1",
        "data.num_workers=2",
        cwd=tmp_path,
    )
    assert code == 0, output
    assert outcome(tmp_path / "run")["reason"] == "budget"


def test_a_mistake_leaves_the_launcher_with_one_message_of_ours(tmp_path: Path) -> None:
    code, output = run(
        Path(sys.executable).parent / "fermarsi",
        "train",
        CONFIG,
        "batch.micro_size=7",
        cwd=tmp_path,
    )
    assert code == 2
    begun, _, message = output.partition("ConfigError: ")
    assert message
    assert all(line.endswith(" ...") for line in begun.splitlines())
    assert "Traceback" not in output


def test_a_finished_run_stays_finished_until_more_is_asked_for(tmp_path: Path) -> None:
    short = ["train", CONFIG, f"run.dir={tmp_path / 'run'}", "stop.targets=null"]
    assert command(*short, "stop.budget.epochs=2").exit_code == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = command(*short, "stop.budget.epochs=2")
    assert again.exit_code == 0
    assert "this run is finished: the budget of 2 epochs is spent" in again.stdout
    assert "no effect" not in again.stdout
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    others = [
        "optimizer.lr=0.5",
        "data.num_workers=1",
        "data.test.source.split=val",
        "log.trace=true",
    ]
    changed = command(*short, "stop.budget.epochs=2", *others)
    assert changed.exit_code == 0
    assert "These changes have no effect on it:\n" in changed.stdout
    for told in (
        "-> 0.5 (no more steps are taken)",
        "data.num_workers: 'auto' -> 1 (no more samples are read)",
        "data.test.source.split: 'test' -> 'val' (no training reads it, ",
        "log.trace: False -> True (nothing more is recorded)",
    ):
        assert told in changed.stdout
    assert f"train anew: run.dir={tmp_path / 'run-2'}." in changed.stdout
    other = command(*short, "stop.budget.epochs=2", "run.seed=99")
    assert other.exit_code == 2
    assert "belongs to another training" in other.stderr
    assert f"run.dir={tmp_path / 'run-2'}." in other.stderr
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    # As if killed between the last checkpoint and the outcome
    (tmp_path / "run" / "outcome.json").unlink()
    again = command(*short, "stop.budget.epochs=2")
    assert again.exit_code == 0, again.stderr
    assert outcome(tmp_path / "run")["reason"] == "budget"
    more = command(*short, "stop.budget.epochs=3", "run.init_from=/nowhere.safetensors")
    assert more.exit_code == 0
    assert "going on from step-" in more.stdout
    assert "no effect on a run that goes on: run.init_from: None -> '/nowhere" in more.stdout
    assert outcome(tmp_path / "run")["epoch"] >= 3


def test_the_other_commands_on_a_trained_run(tmp_path: Path) -> None:
    trained = tmp_path / "run"
    assert command("train", CONFIG, f"run.dir={trained}").exit_code == 0
    evaluated = command("evaluate", trained, "--split", "test", "--json")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["accuracy"] > 0.9
    table = tmp_path / "predictions.parquet"
    predicted = command(
        "predict",
        trained,
        "--out",
        table,
        "--source",
        "{_target_: harness.sources.digits.Digits, split: test}",
    )
    assert predicted.exit_code == 0, predicted.stderr
    rows = pd.read_parquet(table)
    truth = Digits(split="test")
    share = np.mean(
        [
            truth[index]["label"] == row
            for index, row in zip(rows["sample"], rows["predicted"], strict=True)
        ]
    )
    assert share == pytest.approx(json.loads(evaluated.stdout)["accuracy"])
    verified = command("checkpoints", "verify", trained, "--json")
    assert verified.exit_code == 0, verified.stderr
    assert {link for one in json.loads(verified.stdout) for link in one["links"]} == {
        "best",
        "latest",
    }
    assert command("checkpoints", "list", trained).stdout.count("yes") == len(
        json.loads(verified.stdout)
    )
    assert command("status", trained).exit_code == 0
    assert command("status", tmp_path / "nothing").exit_code == 2
    assert command("report", trained).exit_code == 0
    page = (trained / "report.html").read_text()
    assert "targets_reached" in page
    assert page.count("<svg") >= 3
    single = tmp_path / "model.safetensors"
    assert command("export", trained, single).exit_code == 0
    with safe_open(single, "pt") as tensors:
        assert len(tensors.keys()) == 4
    assert command("config", trained / "config.yaml").exit_code == 0
    assert command("doctor", "--json").stdout.startswith("[")
    pruned = command("checkpoints", "prune", trained, "--keep-last", 1)
    assert pruned.exit_code == 0, pruned.stderr
    refused = command("predict", trained, "--out", tmp_path / "p.txt")
    assert refused.exit_code == 2
    assert "--out" in refused.stderr
    assert "Traceback" not in refused.stderr
