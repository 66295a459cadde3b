"""The stop controller on real processes: one verdict, the same on all ranks, whatever happens to
one of them.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pool import Launched, train_on_ranks

STORM = Path(__file__).parents[1] / "resume" / "storm.yaml"
SMALL = ["network.width=16", "log.trace=false", "checkpoint.every=null"]


def launch(directory: Path, ranks: int, *overrides: str, die_at: str = "") -> list[Launched]:
    return train_on_ranks(
        ranks, STORM, [f"run.dir={directory}", *SMALL, *overrides], env={"DIE_AT": die_at}
    )


def outcome(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "outcome.json").read_text())
    return found


def verdicts(directory: Path) -> list[Any]:
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(one["step"], one["verdict"]) for one in records if one.get("event") == "verdict"]


@pytest.mark.parametrize(
    ("reason", "overrides"),
    [
        ("targets_reached", ["stop.targets={train/accuracy: {at_least: 0.42}}"]),
        (
            "hopeless",
            ["stop.milestones={metric: val/accuracy, at_least: 2.5x chance, by: {steps: 12}}"],
        ),
        (
            "hopeless",
            [
                "optimizer.lr=1e-9",
                "network={_target_: harness.networks.Mlp, dims: [6, 8, 3]}",
                "stop.every.steps=2",
                "stop.targets={val/accuracy: {at_least: 0.999}}",
                "stop.forecast={target: val/accuracy, chance_below: 5%, for: 2, action: stop}",
            ],
        ),
        ("no_improvement", ["stop.improvement={metric: val/accuracy, at_least: 50%, patience: 2}"]),
        ("budget", ["stop.budget.steps=13"]),
    ],
)
def test_any_number_of_ranks_stops_at_the_same_step_for_the_same_reason(
    tmp_path: Path, reason: str, overrides: list[str]
) -> None:
    ends = {}
    for ranks in (1, 2, 3):
        launched = launch(
            tmp_path / str(ranks), ranks, "run.paranoid=true", "network.width=16", *overrides
        )
        assert [one.exit_code for one in launched] == [0] * ranks, launched[0].stderr
        found = outcome(tmp_path / str(ranks))
        ends[ranks] = (found["reason"], found["step"])
    assert ends[1][0] == reason
    assert len(set(ends.values())) == 1, ends


def test_all_criteria_at_once_judge_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    settings = {
        "every": {"steps": 3},
        "train_metrics": "full",
        "targets": {"val/accuracy": {"at_least": 0.999}},
        "milestones": {"metric": "val/accuracy", "at_least": "1.05x chance", "by": {"steps": 30}},
        "improvement": [
            {"metric": "val/loss", "at_least": "2 se", "patience": 20},
            {"metric": "val/accuracy", "smooth": {"window": 3}, "patience": 20},
        ],
        "gap": {"metric": "loss", "above": 5.0, "for": 3},
        "plateau": {"metric": "val/loss", "over": 8, "confidence": 0.5},
        "forecast": {"target": "val/accuracy", "chance_below": "5%", "for": 9, "action": "stop"},
        "budget": {"steps": 40},
    }
    given = [f"stop={json.dumps(settings)}", "run.paranoid=true", "optimizer.lr=0.02"]
    given += ["network={_target_: harness.networks.Mlp, dims: [6, 8, 3]}"]
    found = []
    for ranks in (1, 2, 3):
        plain = ["log.trace=false", "checkpoint.every=null", f"run.dir={tmp_path}/{ranks}"]
        ends = train_on_ranks(ranks, STORM, [*given, *plain])
        assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr
        found.append(
            [
                (step, one["action"], one["reason"], one["improved"], one["new_best"])
                for step, one in verdicts(tmp_path / str(ranks))
            ]
        )
    assert found[0] == found[1] == found[2]
    details = " ".join(one["detail"] for _, one in verdicts(tmp_path / "3"))
    for words in ("(paired, 50 samples)", "the median of the last 3", "chance to reach 0.999"):
        assert words in details, details


def test_an_exception_in_a_metric_on_one_rank_ends_all_with_one_message(tmp_path: Path) -> None:
    metric = "task.metrics={odd: {_target_: tests.distributed.parts.Faulty, rank: 1, after: 9}}"
    began = time.monotonic()
    ends = launch(tmp_path / "run", 3, metric)
    assert time.monotonic() - began < 60
    assert [one.exit_code for one in ends] == [2, 2, 2]
    told = [one.stderr for one in ends if one.stderr.strip()]
    assert len(told) == 1, told
    assert "the metric is broken on purpose" in told[0]


@pytest.mark.parametrize("every", [1, 4, 50])
def test_a_nan_on_one_rank_is_named_by_rank_and_step(tmp_path: Path, every: int) -> None:
    poison = "network={_target_: tests.distributed.parts.Poisoned, rank: 2, step: 17, slots: 4}"
    ends = launch(tmp_path / "run", 3, poison, f"log.every.steps={every}")
    assert [one.exit_code for one in ends] == [3, 3, 3], ends[0].stderr
    found = outcome(tmp_path / "run")
    assert found["reason"] == "diverged"
    assert "rank 2" in found["detail"]
    assert "step 17" in found["detail"]
    saved = sorted(
        int(path.name.removeprefix("step-"))
        for path in (tmp_path / "run" / "checkpoints").glob("step-*")
    )
    assert max(saved) <= 16


def test_an_interruption_between_intervals_leaves_the_verdicts_as_they_were(tmp_path: Path) -> None:
    assert launch(tmp_path / "whole", 2)[0].exit_code == 0
    for death in ("0:3:term", "1:1:term", "0:5:term", "1:8:term"):
        assert [one.exit_code for one in launch(tmp_path / "cut", 2, die_at=death)] == [75, 75]
    assert launch(tmp_path / "cut", 2)[0].exit_code == 0
    assert verdicts(tmp_path / "cut") == verdicts(tmp_path / "whole")


def test_labels_without_meaning_end_by_no_improvement_which_is_said(tmp_path: Path) -> None:
    shuffled = "data.train.treatments=[{_target_: tests.distributed.parts.Shuffled}]"
    ends = launch(
        tmp_path / "run",
        2,
        shuffled,
        "stop.improvement={metric: val/loss, at_least: 5%, patience: 4}",
        "stop.budget=null",
        "stop.every.epochs=1",
    )
    assert ends[0].exit_code == 0, ends[0].stderr
    assert outcome(tmp_path / "run")["reason"] == "no_improvement"
    assert "intervals without enough improvement" in ends[0].stdout


def test_a_stop_file_ends_the_run_from_outside(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "STOP").touch()
    ends = launch(tmp_path / "run", 2, "stop.budget.steps=100000")
    assert [one.exit_code for one in ends] == [0, 0]
    found = outcome(tmp_path / "run")
    assert found["reason"] == "stop_requested"
    again = launch(tmp_path / "run", 2, "stop.budget.steps=100000")
    assert "this run is finished" in again[0].stdout
