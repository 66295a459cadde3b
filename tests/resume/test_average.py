"""train.ema: the averages are torch's, are evaluated and kept, and survive an interruption.

What others met on a resume: a count of updates that began anew (lightly-train 892, ace 819), a
training that went on from the averages (schnetpack 785, YOLOX 1318); and averages in bfloat16 that
never moved (sd_dreambooth_extension 1417).
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from harness.checkpoint.read import list_checkpoints
from harness.config.schema import EmaConfig
from harness.training.average import WeightAverage
from tests.pool import command
from tests.resume.test_optimizers import PARTS, check_extended, finish, launch

EMA = "train.ema={decay: 0.9}"


def tensors(checkpoint: Path, role: str, prefix: str = "") -> dict[str, Tensor]:
    """Those of a role, read by the safetensors package."""
    found = {}
    for path in checkpoint.glob(f"{role}-*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {
                name.removeprefix(prefix): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - not a mapping
                if name.startswith(prefix)
            }
    return found


def test_checkpoints_hold_the_averages_that_torch_makes_of_the_trained_weights(
    tmp_path: Path,
) -> None:
    finish(
        tmp_path,
        1,
        "train.ema={decay: 0.9, ramp: false}",
        f"network={{_target_: {PARTS}.Typed}}",
        "checkpoint={every: {steps: 1}, keep_last: 99}",
    )
    found = list_checkpoints(tmp_path / "checkpoints")
    assert [one.step for one in found] == list(range(1, 13))
    model = nn.Module()
    first = tensors(found[0].path, "optimizer", "trained_weight/")
    for name, weight in first.items():
        model.register_parameter(name.replace(".", "_"), nn.Parameter(torch.zeros_like(weight)))
    expected = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for one in found:
        trained = tensors(one.path, "optimizer", "trained_weight/")
        with torch.no_grad():
            for name, weight in trained.items():
                model.get_parameter(name.replace(".", "_")).copy_(weight)
        expected.update_parameters(model)
        saved = tensors(one.path, "model")
        assert saved.keys() == trained.keys() == first.keys()
        for name, average in saved.items():
            assert torch.equal(average, expected.module.get_parameter(name.replace(".", "_")))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    recorded = [one["val/loss"] for one in records if one["kind"] == "eval"][-1]
    ended = command("evaluate", found[-1].path, "--split", "val", "--json", "--allow", "tests")
    assert ended.exit_code == 0, ended.stderr
    assert json.dumps(recorded) in ended.stdout


@pytest.mark.parametrize(
    ("ranks", "ema", "dtype"),
    [
        (2, EMA, "float32"),
        (1, EMA, "bfloat16"),
        (1, "train.ema={decay: 0.9, evaluate: false}", "float32"),
    ],
)
def test_a_run_cut_in_three_goes_on_with_its_averages(
    tmp_path: Path, ranks: int, ema: str, dtype: str
) -> None:
    network = f"network={{_target_: {PARTS}.Typed, dtype: {dtype}}}"
    check_extended(tmp_path, ranks, ema, network)
    last = list_checkpoints(tmp_path / "whole" / "checkpoints")[-1].path
    kept = tensors(last, "optimizer", "ema_weight/")
    assert bool(kept) == ("false" in ema or dtype != "float32")
    assert all(one.dtype == torch.float32 for one in kept.values())


def test_what_is_evaluated_may_change_between_launches(tmp_path: Path) -> None:
    finish(tmp_path / "whole", 1, EMA)
    for budget, evaluate in ((4, True), (8, False), (12, True)):
        ema = f"train.ema={{decay: 0.9, evaluate: {str(evaluate).lower()}}}"
        finish(tmp_path / "cut", 1, ema, f"stop.budget.steps={budget}")
    cut, whole = (
        list_checkpoints(tmp_path / name / "checkpoints")[-1].path for name in ("cut", "whole")
    )
    for role in ("model", "optimizer"):
        own, other = tensors(cut, role), tensors(whole, role)
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)


def test_averages_of_half_precision_weights_move_and_the_decay_rises() -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    average = WeightAverage(EmaConfig(decay=0.999))
    average.update([weight])
    weight.data += 1
    for _ in range(3):
        average.update([weight])
    left = (3 / 12) * (4 / 13) * (5 / 14)
    assert average.tensors[0].item() == pytest.approx(2 - left, rel=1e-6)


def test_what_cannot_be_averaged_or_changed_is_refused(tmp_path: Path) -> None:
    free = f"optimizer={{_target_: {PARTS}.ScheduleFree, lr: 0.3}}"
    (refused,) = launch(tmp_path / "free", 1, EMA, free)
    assert refused.exit_code == 2
    assert "train.ema: ScheduleFree averages the weights that it trains by itself" in refused.stderr
    finish(tmp_path / "run", 1, "stop.budget.steps=4")
    (refused,) = launch(tmp_path / "run", 1, EMA)
    assert refused.exit_code == 2
    assert "train.ema: absent -> True" in refused.stderr
