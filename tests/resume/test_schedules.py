"""Every schedule continues with the rates it had, however the run was cut."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.pool import Launched, train_on_ranks
from tests.resume.test_exact import evaluations, last_state, trace

SMALL = Path(__file__).parents[1] / "training" / "small.yaml"
TORCH = "torch.optim.lr_scheduler"
DECAY = "tests.training.optimizer_parts.Decay"
LINEAR = f"{{_target_: {TORCH}.LinearLR, total_iters: 4}}"
EXPONENTIAL = f"{{_target_: {TORCH}.ExponentialLR, gamma: 0.9}}"
SGD = "optimizer={_target_: torch.optim.SGD, lr: 0.05, momentum: 0.8}"
SCHEDULES = {
    "LinearLR": f"{TORCH}.LinearLR, total_iters: 10",
    "ConstantLR": f"{TORCH}.ConstantLR, factor: 0.5, total_iters: 8",
    "OneCycleLR": f"{TORCH}.OneCycleLR, max_lr: 0.05, total_steps: 12",
    "OneCycleLR by epochs": f"{TORCH}.OneCycleLR, max_lr: 0.05, epochs: 3, steps_per_epoch: 8",
    "CyclicLR": f"{TORCH}.CyclicLR, base_lr: 0.001, max_lr: 0.05, step_size_up: 3",
    "StepLR": f"{TORCH}.StepLR, step_size: 3",
    "MultiStepLR": f"{TORCH}.MultiStepLR, milestones: [3, 7]",
    "PolynomialLR": f"{TORCH}.PolynomialLR, total_iters: 12, power: 2.0",
    "CosineAnnealingWarmRestarts": f"{TORCH}.CosineAnnealingWarmRestarts, T_0: 5",
    "LambdaLR": f"{TORCH}.LambdaLR, lr_lambda: {{_target_: {DECAY}, factor: 0.3}}",
    "MultiplicativeLR": (
        f"{TORCH}.MultiplicativeLR, lr_lambda: {{_target_: {DECAY}, factor: 0.9, constant: true}}"
    ),
    "SequentialLR": (
        f"{TORCH}.SequentialLR, schedulers: [{LINEAR}, {EXPONENTIAL}], milestones: [4]"
    ),
    "SequentialLR of three": (
        f"{TORCH}.SequentialLR, milestones: [3, 6], schedulers: [{LINEAR}, "
        f"{{_target_: {TORCH}.CosineAnnealingWarmRestarts, T_0: 2}}, "
        f"{{_target_: {TORCH}.CyclicLR, base_lr: 0.001, max_lr: 0.05, step_size_up: 2}}]"
    ),
    "ChainedScheduler": f"{TORCH}.ChainedScheduler, schedulers: [{LINEAR}, {EXPONENTIAL}]",
    "transformers": (
        "transformers.get_cosine_schedule_with_warmup, num_warmup_steps: 3, num_training_steps: 12"
    ),
    "WarmupCosine": "harness.schedules.WarmupCosine, total_steps: 12, warmup_steps: 3",
    "Plateau": (
        "harness.schedules.Plateau, metric: val/loss, mode: min, patience: 1, at_least: 60%, "
        "warmup_steps: 2"
    ),
}


def launch(directory: Path, ranks: int, *overrides: str, die_at: str = "") -> list[Launched]:
    return train_on_ranks(
        ranks, SMALL, [f"run.dir={directory}", *overrides], env={"DIE_AT": die_at}
    )


def finish(directory: Path, ranks: int, *overrides: str) -> list[Launched]:
    ends = launch(directory, ranks, *overrides)
    assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr
    return ends


def regular(directory: Path) -> list[dict[str, object]]:
    """Records but for the evaluations that a budget's end added."""
    return [one for one in evaluations(directory) if "extra_evaluation" not in one]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_larger_budget_goes_on_with_the_rates_of_one_launch(tmp_path: Path, name: str) -> None:
    overrides = [SGD, f"schedule={{_target_: {SCHEDULES[name]}}}"]
    finish(tmp_path / "whole", 1, *overrides)
    finish(tmp_path / "cut", 1, *overrides, "stop.budget.steps=5")
    finish(tmp_path / "cut", 1, *overrides)
    assert trace(tmp_path / "cut") == trace(tmp_path / "whole")
    assert regular(tmp_path / "cut") == regular(tmp_path / "whole")
    for part in ("files", "schedule", "optimizer"):
        assert last_state(tmp_path / "cut")[part] == last_state(tmp_path / "whole")[part]


@pytest.mark.parametrize(("ranks", "death"), [(1, "0:6"), (2, "1:9:term")])
@pytest.mark.parametrize("name", ["OneCycleLR", "SequentialLR", "transformers"])
def test_a_killed_run_goes_on_with_the_rates_of_one_launch(
    tmp_path: Path, name: str, ranks: int, death: str
) -> None:
    overrides = [
        "optimizer={_target_: tests.resume.parts.Mortal, lr: 0.01}",
        f"schedule={{_target_: {SCHEDULES[name]}}}",
    ]
    if name == "OneCycleLR":  # which would bring rates of its own for the two groups
        overrides[1] = overrides[1].replace("0.05", "[0.05, 0.02]")
    finish(tmp_path / "whole", ranks, *overrides)
    launch(tmp_path / "cut", ranks, *overrides, die_at=death)
    finish(tmp_path / "cut", ranks, *overrides)
    assert trace(tmp_path / "cut") == trace(tmp_path / "whole")
    assert last_state(tmp_path / "cut") == last_state(tmp_path / "whole")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            [f"schedule={{_target_: {TORCH}.ReduceLROnPlateau}}"],
            "schedule._target_: torch.optim.lr_scheduler.ReduceLROnPlateau needs a metric at each "
            "step, but schedules here are stepped once per optimizer step. Use "
            "harness.schedules.Plateau",
        ),
        (
            [f"schedule={{_target_: {TORCH}.OneCycleLR, max_lr: 0.01, total_steps: 11}}"],
            "schedule.total_steps: the schedule ends after 11 steps, but the budget after 12",
        ),
        (
            [
                f"schedule={{_target_: {TORCH}.OneCycleLR, max_lr: 0.01, total_steps: 20}}",
                "stop.budget={epochs: 3}",
            ],
            "schedule.total_steps: the schedule ends after 20 steps, but the budget after 24",
        ),
        (
            [
                "optimizer={_target_: torch.optim.AdamW, foreach: false, "
                "lr: {_target_: torch.tensor, data: 0.05}}",
                f"schedule={LINEAR}",
            ],
            "schedule: torch.optim.lr_scheduler.LinearLR cannot be saved: ",
        ),
        (
            ["schedule={_target_: harness.schedules.WarmupCosine, total_steps: 9}"],
            "schedule.total_steps: the schedule ends after 9 steps",
        ),
        (
            [
                f"schedule={{_target_: {TORCH}.OneCycleLR, max_lr: 0.01, total_steps: 5}}",
                "stop={every: {steps: 2}, budget: {hours: 1}}",
            ],
            "schedule: OneCycleLR cannot go on: Tried to step 6 times.",
        ),
    ],
)
def test_a_schedule_that_cannot_do_is_refused_in_one_message(
    tmp_path: Path, overrides: Sequence[str], words: str
) -> None:
    [end] = launch(tmp_path, 1, *overrides)
    assert end.exit_code == 2
    assert words in end.stderr
    assert "Traceback" not in end.stderr


def test_a_rate_that_changed_is_taken_and_told_or_refused(tmp_path: Path) -> None:
    own = [SGD, "schedule={_target_: harness.schedules.WarmupCosine, total_steps: 12}"]
    finish(tmp_path / "own", 1, *own, "stop.budget.steps=6")
    end, _ = finish(tmp_path / "own", 2, *own, "optimizer.lr=0.5", "stop.every.steps=3")
    for change in ("optimizer.lr: 0.05 -> 0.5", "stop.every.steps: 4 -> 3", "processes: 1 -> 2"):
        assert change in end.stderr + end.stdout
    lines = (tmp_path / "own" / "metrics.jsonl").read_text().splitlines()
    [told] = [one for line in lines if (one := json.loads(line)).get("event") == "changes"]
    assert "optimizer.lr: 0.05 -> 0.5" in told["changes"]
    [at_nine] = [one for one in evaluations(tmp_path / "own") if one["step"] == 9]
    assert at_nine["lr"] > 0.05
    torchs = [SGD, f"schedule={{_target_: {SCHEDULES['OneCycleLR']}}}"]
    finish(tmp_path / "torch", 1, *torchs, "stop.budget.steps=6")
    for change, words in (
        ("optimizer.lr=0.5", "optimizer.lr changed, which has no effect"),
        ("optimizer.momentum=0.5", "optimizer.momentum changed, which has no effect"),
    ):
        [end] = launch(tmp_path / "torch", 1, *torchs, change)
        assert end.exit_code == 2
        assert words in end.stderr


def test_another_schedule_of_ours_goes_on_from_the_step(tmp_path: Path) -> None:
    finish(
        tmp_path, 1, SGD, f"schedule={{_target_: {SCHEDULES['LinearLR']}}}", "stop.budget.steps=6"
    )
    finish(tmp_path, 1, SGD, "schedule={_target_: harness.schedules.WarmupCosine, total_steps: 12}")
    assert last_state(tmp_path)["schedule"] == {"steps": 12}
