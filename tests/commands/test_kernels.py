"""A trained network is evaluated by the kernels of its run."""

from pathlib import Path

import pytest
import torch

from harness.commands.evaluate import evaluate_split
from harness.commands.predict import write_predictions
from tests.commands.seeing import SEEN
from tests.pool import train_on_ranks

SMALL = Path(__file__).parents[1] / "training" / "small.yaml"
ALLOW = ["tests."]


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        (["train.matmul_precision=medium", "train.channels_last=true"], ("medium", True)),
        (["run.exactness=none"], ("high", False)),
        ([], ("highest", False)),
    ],
)
def test_evaluations_and_predictions_take_over_the_kernels_of_the_run(
    tmp_path: Path, asked: list[str], seen: tuple[str, bool]
) -> None:
    run = tmp_path / "run"
    network = "network={_target_: tests.commands.seeing.Seeing}"
    short = [f"run.dir={run}", network, "stop.budget.steps=2", *asked]
    assert train_on_ranks(1, SMALL, short)[0].exit_code == 0
    torch.set_float32_matmul_precision("highest")
    SEEN.clear()
    evaluate_split(run, "val", ALLOW)
    write_predictions(run, "val", "", tmp_path / "out.csv", ALLOW)
    assert set(SEEN) == {seen}
    assert torch.get_float32_matmul_precision() == "highest"
