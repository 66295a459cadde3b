"""The checks and the remedies in launches."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.config.identity import identity_changes
from harness.config.read import read_config
from harness.data.sampling import Balance, Sampling
from harness.sources.digits import Digits
from tests.pool import command, train_on_ranks

DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"
SHORT = [
    "network.dims=[64, 16, 10]",
    "log.trace=true",
    "stop.targets=null",
    "stop.improvement=null",
    "checkpoint.every={steps: 5}",
]


def records(run: Path, name: str) -> Iterator[dict[str, Any]]:
    return map(json.loads, (run / name).read_text().splitlines())


def samples(run: Path) -> list[str]:
    return [record["samples"] for record in records(run, "trace.jsonl")]


def test_a_leak_ends_a_launch_before_its_first_step_with_one_message(tmp_path: Path) -> None:
    ends = train_on_ranks(2, DIGITS, [f"run.dir={tmp_path / 'run'}", "data.val.source.split=train"])
    assert [end.exit_code for end in ends] == [2, 2]
    assert (
        "duplicates: data.val: 1,085 of 1,085 samples (100.0%) have the same content as samples in "
        "data.train" in ends[0].stderr
    )
    assert "Traceback" not in ends[0].stderr + ends[1].stderr
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_a_warning_is_told_and_training_goes_on(tmp_path: Path) -> None:
    overrides = [
        *SHORT,
        f"run.dir={tmp_path / 'run'}",
        "stop.budget={steps: 2}",
        "data.val.source.split=train",
        "data.checks.duplicates=warn",
    ]
    (end,) = train_on_ranks(1, DIGITS, overrides)
    assert end.exit_code == 0
    assert "warning: data.val: 1,085 of 1,085 samples" in end.stdout


def test_balanced_batches_are_the_same_on_any_number_of_ranks_and_after_a_resume(
    tmp_path: Path,
) -> None:
    overrides = [*SHORT, "data.train.balance=label"]
    budgets = {"one": [20], "two": [20], "resumed": [7, 20]}
    for name, steps in budgets.items():
        for budget in steps:
            ends = train_on_ranks(
                1 if name == "one" else 2,
                DIGITS,
                [*overrides, f"run.dir={tmp_path / name}", f"stop.budget={{steps: {budget}}}"],
            )
            assert {end.exit_code for end in ends} == {0}
    plan = Sampling(1085, 96, 8, 7, Balance.of(Digits("train").known()["label"]))
    drawn = [
        b"".join(plan.samples(step, slot).tobytes() for slot in range(12)) for step in range(20)
    ]
    assert samples(tmp_path / "one") == [hashlib.sha256(batch).hexdigest()[:16] for batch in drawn]
    assert samples(tmp_path / "one") == samples(tmp_path / "two") == samples(tmp_path / "resumed")
    refused = train_on_ranks(
        1, DIGITS, [*SHORT, f"run.dir={tmp_path / 'one'}", "stop.budget={steps: 30}"]
    )
    assert refused[0].exit_code == 2
    assert "data.train.balance: 'label' -> None" in refused[0].stderr


def test_an_evaluation_has_the_loss_of_the_training_with_its_balanced_weights(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    overrides = [*SHORT, "task.class_weights=balanced", f"run.dir={run}"]
    assert [
        end.exit_code for end in train_on_ranks(2, DIGITS, [*overrides, "stop.budget={steps: 12}"])
    ] == [0, 0]
    recorded = {
        record["step"]: record["val/loss"]
        for record in records(run, "metrics.jsonl")
        if record["kind"] == "eval"
    }
    evaluated = json.loads(
        command("evaluate", run / "checkpoints" / f"step-{max(recorded):08}", "--json").stdout
    )
    assert evaluated["loss"] == pytest.approx(recorded[max(recorded)], rel=1e-6)
    shutil.copytree(run, tmp_path / "again")
    # The counts come back from the checkpoint
    for directory, ranks in ((run, 1), (tmp_path / "again", 2)):
        ends = train_on_ranks(
            ranks, DIGITS, [*overrides, f"run.dir={directory}", "stop.budget={steps: 15}"]
        )
        assert {end.exit_code for end in ends} == {0}, ends[0].stderr


def test_balance_identifies_a_run_and_checks_do_not(tmp_path: Path) -> None:
    plain, balanced, checked = (
        read_config(DIGITS, given)
        for given in ([], ["data.train.balance=label"], ["data.checks.duplicates=off"])
    )
    assert identity_changes(plain, balanced) == ["data.train.balance: None -> 'label'"]
    assert identity_changes(plain, checked) == []
