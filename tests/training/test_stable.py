"""What is saved is what an optimizer step left, whatever the next one does while it is copied."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoint.read import list_checkpoints
from tests.checkpoint.examples import loaded_from
from tests.pool import train_on_ranks
from tests.training.witness import digest

SMALL = Path(__file__).with_name("small.yaml")


def train(directory: Path, network: str, ranks: int = 1) -> tuple[list[Any], list[dict[str, Any]]]:
    """A run that saves after each of six steps: what its optimizer left, its reports of saves.

    The last one is evaluated before it is saved, and passes of evaluations may change weights too.
    """
    overrides = [
        f"run.dir={directory / 'run'}",
        f"network={{_target_: tests.training.{network}}}",
        "optimizer={_target_: tests.training.witness.Witness, lr: 0.1}",
        "train.clip_grad_norm=null",
        "stop={every: {steps: 100}, budget: {steps: 6}}",
        "checkpoint={every: {steps: 1}, keep_last: 100, max_failures: 1}",
        "log.every={steps: 1}",
    ]
    ends = train_on_ranks(ranks, SMALL, overrides, env={"WITNESS": str(directory / "seen")})
    assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr
    seen = [json.loads(line) for line in (directory / "seen").read_text().splitlines()]
    lines = (directory / "run" / "metrics.jsonl").read_text().splitlines()
    events = [one for one in map(json.loads, lines) if one.get("event") == "save"]
    return seen, [one["save"] for one in events]


def saved(path: Path) -> list[list[str]]:
    """Digests of a checkpoint's trained weights and moments, in the order of parameters."""
    state = loaded_from(path)
    (group,) = state.trainer["optimizer"]["groups"]
    return [
        [
            digest(state.model[name]),
            *(digest(state.optimizer[f"{key}/{name}"]) for key in ("exp_avg", "exp_avg_sq")),
        ]
        for name in group["params"]
    ]


@pytest.mark.parametrize(
    ("network", "ranks"),
    [
        ("moving_networks.Still", 1),
        ("moving_networks.Still", 2),
        ("moving_networks.Renormed", 1),
        ("moving_networks.Hidden", 1),
        ("open_networks.Revived", 1),
    ],
)
def test_a_checkpoint_holds_what_its_step_left(tmp_path: Path, network: str, ranks: int) -> None:
    seen, reports = train(tmp_path, network, ranks)
    found = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [one.step for one in found] == [1, 2, 3, 4, 5, 6], reports
    for one, expected in list(zip(found, seen, strict=True))[:-1]:
        assert saved(one.path) == expected, f"step {one.step}"


def test_what_a_pass_changes_for_once_costs_that_save_only(tmp_path: Path) -> None:
    seen, reports = train(tmp_path, "moving_networks.Late")
    found = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [one.step for one in found] == [1, 2, 3, 5, 6]  # a single failure would end the run
    for one in found:
        assert saved(one.path) == seen[one.step - 1], f"step {one.step}"
    (failed,) = [one for one in reports if one["error"]]
    assert failed["step"] == 4
    assert failed["error"].startswith("weight: changed by the next step")


def test_buffers_and_frozen_weights_are_those_of_the_step(tmp_path: Path) -> None:
    train(tmp_path, "moving_networks.Still")
    states = [
        loaded_from(one.path).model for one in list_checkpoints(tmp_path / "run" / "checkpoints")
    ]
    # Momentum 0.1 a micro-batch, four a step
    counts = [int(state["norm.num_batches_tracked"]) for state in states]
    assert counts == [4 * step for step in range(1, 7)]
    for before, after in pairwise(states):
        # The average moved four times towards the weight that the step before had left
        expected = before["average"]
        for _ in range(4):
            expected = torch.lerp(expected, before["first.weight"], 0.1)
        assert torch.equal(after["average"], expected)
