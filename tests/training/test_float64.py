"""A float64 training is a plain loop of PyTorch's in float64, on any number of ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from harness.checkpoint.read import list_checkpoints
from tests.pool import train_on_ranks
from tests.training.float64_parts import Heads, Uneven

SMALL = Path(__file__).with_name("small.yaml")
STEPS, RATE = 6, 0.1
TASKS = {
    "classification": (
        "label",
        "harness.tasks.Classification, input: x, target: label, ignore_index: -1",
    ),
    "regression": ("number", "harness.tasks.Regression, input: x, target: number"),
    "language": (
        "tokens",
        "harness.tasks.LanguageModelling, input: tokens, ignore_index: -1",
    ),
    "supervised": (
        "number",
        "harness.tasks.Supervised, input: x, target: number, "
        "loss: {_target_: torch.nn.HuberLoss, reduction: none}",
    ),
    "joint": (
        "both",
        "harness.tasks.Joint, heads: {"
        "label: {_target_: harness.tasks.Classification, input: x, target: label, "
        "ignore_index: -1}, "
        "number: {_target_: harness.tasks.Regression, input: x, target: number}}",
    ),
}


def mean_loss(task: str, network: Heads, data: Uneven) -> Tensor:
    """Over all items of all samples, as one would write it by hand."""
    if task == "language":
        logits = network(data.tokens[:, :-1]).flatten(0, 1)
        return functional.cross_entropy(logits, data.tokens[:, 1:].flatten(), ignore_index=-1)
    outputs = network(data.x)
    if task == "classification":
        return functional.cross_entropy(outputs, data.label, ignore_index=-1)
    if task == "regression":
        return functional.mse_loss(outputs, data.number)
    if task == "supervised":
        return functional.huber_loss(outputs, data.number)
    loss = functional.cross_entropy(outputs["label"], data.label, ignore_index=-1, reduction="sum")
    more = functional.mse_loss(outputs["number"], data.number, reduction="sum")
    return (loss + more) / len(data)


def plain(task: str) -> tuple[Heads, float]:
    """The network after some steps, and its loss."""
    network, data = Heads(TASKS[task][0]), Uneven()
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        mean_loss(task, network, data).backward()  # type: ignore[no-untyped-call] # torch's
        optimizer.step()
    return network, mean_loss(task, network, data).item()


def train(directory: Path, task: str, ranks: int, *overrides: str) -> tuple[dict[str, Any], float]:
    """The weights after as many steps, and val/loss."""
    head, spec = TASKS[task]
    source = "{_target_: tests.training.float64_parts.Uneven}"
    data = f"train: {{source: {source}}}, val: {{source: {source}}}"
    settings = [
        f"run.dir={directory}",
        f"data={{{data}, checks: {{duplicates: warn}}}}",
        f"network={{_target_: tests.training.float64_parts.Heads, head: {head}}}",
        f"task={{_target_: {spec}}}",
        f"optimizer={{_target_: torch.optim.SGD, lr: {RATE}, momentum: 0.9}}",
        f"batch={{size: 24, micro_size: {24 // (4 * ranks)}}}",
        "train.clip_grad_norm=null",
        f"stop={{every: {{steps: {STEPS}}}, budget: {{steps: {STEPS}}}}}",
        "checkpoint.every.steps=6",
    ]
    ends = train_on_ranks(ranks, SMALL, [*settings, *overrides])
    assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr
    last = list_checkpoints(directory / "checkpoints")[-1].path
    weights: dict[str, Any] = {}
    for file in last.glob("model*.safetensors"):
        weights |= load_file(file)
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return weights, [one["val/loss"] for one in records if one["kind"] == "eval"][-1]


@pytest.mark.parametrize("task", TASKS)
def test_a_training_is_that_of_a_plain_loop(tmp_path: Path, task: str) -> None:
    network, loss = plain(task)
    for ranks in (1, 3) if task != "joint" else (1, 2, 3):
        weights, recorded = train(tmp_path / str(ranks), task, ranks)
        for name, parameter in network.named_parameters():
            difference = (weights[name] - parameter).abs().max().item()
            assert difference <= 1e-14, (ranks, name, difference)
        assert abs(recorded - loss) <= 1e-14


def test_an_evaluation_does_not_depend_on_its_micro_size(tmp_path: Path) -> None:
    losses = {
        train(tmp_path / str(size), "classification", 1, f"evaluation.micro_size={size}")[1]
        for size in (1, 5, 24)
    }
    assert max(losses) - min(losses) <= 1e-15
