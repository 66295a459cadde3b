"""Optimizers, precisions and weights beyond AdamW over float32, through whole launches."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoint.read import list_checkpoints
from tests.elastic.runs import came_to
from tests.pool import command, on_ranks, train_on_ranks
from tests.resume.test_exact import evaluations, last_state, trace

SMALL = Path(__file__).parents[1] / "training" / "small.yaml"
PARTS = "tests.training.optimizer_parts"


def launch(directory: Path, ranks: int, *overrides: str) -> list[Any]:
    return train_on_ranks(ranks, SMALL, [f"run.dir={directory}", *overrides])


def finish(directory: Path, ranks: int, *overrides: str) -> None:
    ends = launch(directory, ranks, *overrides)
    assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr


def check_same(run: Path, reference: Path) -> None:
    """All but the verdicts on the budgets of then."""
    assert trace(run) == trace(reference)
    assert evaluations(run) == evaluations(reference)
    own, other = last_state(run), last_state(reference)
    for row in (*own["history"], *other["history"]):
        del row["verdict"]
    assert own == other


def check_extended(directory: Path, ranks: int, *overrides: str) -> None:
    """A run in three launches ends as one in a single launch."""
    finish(directory / "whole", ranks, *overrides)
    for steps in (4, 8, 12):
        finish(directory / "cut", ranks, *overrides, f"stop.budget.steps={steps}")
    check_same(directory / "cut", directory / "whole")
    for name in ("cut", "whole"):
        assert json.loads((directory / name / "outcome.json").read_text())["exact"]


@pytest.mark.parametrize(
    ("ranks", "optimizer", "network"),
    [
        (2, "torch.optim.NAdam, lr: 0.01", "Typed, dtype: bfloat16"),
        (2, "torch.optim.AdamW, lr: 0.01", "Complex"),
        (1, f"{PARTS}.WideMoments", "Typed, dtype: bfloat16"),
        (2, f"{PARTS}.ScheduleFree, lr: 0.3", "Typed"),
        (2, "schedulefree.AdamWScheduleFree, lr: 0.05, warmup_steps: 3", "Typed"),
    ],
)
def test_a_run_cut_in_three_ends_with_the_bits_of_one(
    tmp_path: Path, ranks: int, optimizer: str, network: str
) -> None:
    check_extended(
        tmp_path,
        ranks,
        f"optimizer={{_target_: {optimizer}}}",
        f"network={{_target_: {PARTS}.{network}}}",
    )


def test_a_schedule_free_checkpoint_holds_the_weights_that_were_evaluated(tmp_path: Path) -> None:
    finish(
        tmp_path, 1, f"optimizer={{_target_: {PARTS}.ScheduleFree, lr: 0.3}}", "stop.budget.steps=8"
    )
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    recorded = [one["val/loss"] for one in records if one["kind"] == "eval"][-1]
    last = list_checkpoints(tmp_path / "checkpoints")[-1].path
    ended = command("evaluate", last, "--split", "val", "--json", "--allow", "tests")
    assert ended.exit_code == 0, ended.stderr
    assert json.dumps(recorded) in ended.stdout


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer={_target_: torch.optim.LBFGS, lr: 0.1}"], "by a closure"),
        (
            ["optimizer={_target_: torch.optim.SparseAdam, lr: 0.1}"],
            "accepts only sparse gradients",
        ),
        ([f"network={{_target_: {PARTS}.Sparse}}"], "the gradients of rows.weight are sparse"),
        (
            [f"optimizer={{_target_: {PARTS}.TwoPasses, lr: 0.1}}"],
            "fails in its first step: AssertionError: a closure is needed",
        ),
        (
            [
                "optimizer={_target_: transformers.optimization.Adafactor, lr: null, "
                "relative_step: true, warmup_init: true}"
            ],
            "optimizer.lr: Adafactor has no learning rate in its parameter group 0 (None)",
        ),
    ],
)
def test_what_cannot_be_stepped_is_refused_in_one_message(
    tmp_path: Path, overrides: list[str], words: str
) -> None:
    [end] = launch(tmp_path, 1, *overrides)
    assert end.exit_code == 2
    assert words in end.stderr
    assert "Traceback" not in end.stderr


def launch_in_float16(overrides: list[str]) -> int:
    """fp16 as on a GPU, with the CPU's scaler and autocast in place of CUDA's."""
    from harness.training import launch as launching
    from harness.training import parallel

    real = parallel.start_accelerator

    def start(precision: str, *settings: Any, **more: Any) -> Any:
        assert precision == "fp16"
        accelerator = real("no", *settings, **more)
        accelerator.state._mixed_precision = "fp16"
        accelerator.native_amp = True
        # Overflows come soon, and again after a resume
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=3)
        return accelerator

    parallel.start_accelerator = start
    return launching.launch(SMALL, overrides)


@pytest.mark.parametrize("kernel", ["fused: true", "foreach: true"])
def test_float16_goes_through_its_overflows_and_resumes_exactly(
    tmp_path: Path, kernel: str
) -> None:
    def finish(directory: Path, steps: int) -> None:
        overrides = [
            f"run.dir={directory}",
            "train.precision=fp16",
            f"network={{_target_: {PARTS}.Hot}}",
            f"optimizer={{_target_: torch.optim.AdamW, lr: 0.01, {kernel}}}",
            "schedule={_target_: harness.schedules.WarmupCosine, total_steps: 48}",
            "stop.skipped_steps=40",
            "checkpoint.every.steps=12",
            f"stop.budget.steps={steps}",
        ]
        assert on_ranks(1, launch_in_float16, overrides) == [0]

    finish(tmp_path / "whole", 48)
    for steps in (12, 48):
        finish(tmp_path / "cut", steps)
    check_same(tmp_path / "cut", tmp_path / "whole")
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    records = [one for line in lines if (one := json.loads(line))["kind"] == "train"]
    skipped = records[-1]["skipped_steps"]
    assert 12 < skipped < 36
    # The schedule stood still at each of them
    last = list_checkpoints(tmp_path / "whole" / "checkpoints")[-1].path
    trainer = json.loads((last / "trainer_state.json").read_text())
    assert trainer["schedule"]["steps"] == 48 - skipped


def test_a_scaler_decides_alike_on_any_number_of_ranks(tmp_path: Path) -> None:
    """With run.exactness: elastic it sees the sum of all slots, the same on each rank."""

    def finish(num_ranks: int) -> Path:
        directory = tmp_path / str(num_ranks)
        overrides = [
            f"run.dir={directory}",
            "run.exactness=elastic",
            "train.precision=fp16",
            f"network={{_target_: {PARTS}.Hot}}",
            "stop.skipped_steps=40",
            "stop.budget.steps=24",
        ]
        assert on_ranks(num_ranks, launch_in_float16, overrides) == [0] * num_ranks
        return directory

    whole = finish(1)
    assert came_to(finish(4)) == came_to(whole)
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    assert (
        0
        < [one for line in lines if (one := json.loads(line))["kind"] == "train"][-1][
            "skipped_steps"
        ]
        < 24
    )
