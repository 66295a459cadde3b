"""Networks from elsewhere by dotted path: timm, transformers, torch.nn.

Trained from a config, evaluated and used from their checkpoints.
"""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from harness import components
from harness.errors import ConfigError
from harness.tasks.classification import Classification
from tests.pool import command, train_on_ranks

DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"
TIMM = (
    "network={_target_: timm.create_model, model_name: resnet10t, pretrained: false, in_chans: 1, "
    "num_classes: 10}"
)
# Num_labels is no argument of a config's signature
LABELS = "{" + ", ".join(f"{index}: '{index}'" for index in range(10)) + "}"
SIZES = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32"
VIT = (
    "network={_target_: transformers.ViTForImageClassification, config: {_target_: "
    "transformers.ViTConfig, image_size: 8, patch_size: 2, "
    f"num_channels: 1, id2label: {LABELS}, {SIZES}}}}}"
)
TORCH = (
    "network={_target_: harness.networks.Chain, grow: {_target_: torch.nn.Upsample, scale_factor: "
    "2}, see: {_target_: torch.nn.LazyConv2d, "
    "out_channels: 4, kernel_size: 5}, flat: {_target_: torch.nn.Flatten}, head: {_target_: "
    "torch.nn.LazyLinear, out_features: 10}}"
)
BERT = {
    "_target_": "transformers.BertConfig",
    "vocab_size": 12,
    "id2label": {0: "a", 1: "b", 2: "c"},
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize(
    ("network", "more"),
    [
        (TIMM, ["parts={layer1: {lr: 1e-3}, fc: {lr: 1e-2}, bn1: {freeze: true}}"]),
        (
            VIT,
            [
                "task={_target_: harness.tasks.Classification, input: {pixel_values: image}, "
                "target: label}"
            ],
        ),
    ],
    ids=["timm", "transformers"],
)
def test_a_network_is_trained_and_used_from_its_checkpoint(
    tmp_path: Path, network: str, more: list[str]
) -> None:
    run = tmp_path / "run"
    overrides = [
        network,
        *more,
        "batch.size=32",
        "stop.budget={steps: 4}",
        "stop.every={steps: 2}",
        f"run.dir={run}",
    ]
    ends = train_on_ranks(2, DIGITS, overrides, timeout_s=240)
    assert [end.exit_code for end in ends] == [0, 0], ends[0].stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = {one["step"]: one for one in records if one["kind"] == "eval"}
    best = json.loads((run / "outcome.json").read_text())["best"]
    evaluated = command("evaluate", run, "--json")
    assert evaluated.exit_code == 0, evaluated.stderr
    found = json.loads(evaluated.stdout.splitlines()[-1])
    assert found["loss"] == trained[best["step"]]["val/loss"]
    predicted = command("predict", run, "--out", tmp_path / "out.csv")
    assert predicted.exit_code == 0, predicted.stderr
    assert len(pd.read_csv(tmp_path / "out.csv")) == 357


def test_layers_of_torch_that_learn_their_sizes_are_put_together(tmp_path: Path) -> None:
    (end,) = train_on_ranks(
        1, DIGITS, [TORCH, "stop.budget={steps: 4}", f"run.dir={tmp_path / 'run'}"]
    )
    assert end.exit_code == 0, end.stderr
    evaluated = command("evaluate", tmp_path / "run", "--json")
    assert evaluated.exit_code == 0, evaluated.stderr


def test_the_logits_of_an_output_object_are_taken_and_one_without_is_refused() -> None:
    batch = {"tokens": torch.randint(0, 12, (4, 5)), "label": torch.tensor([0, 1, 2, 0])}
    task = Classification({"input_ids": "tokens"}, "label")
    whole = components.build(
        {"_target_": "transformers.BertForSequenceClassification", "config": BERT}, "network"
    )
    outputs = task.forward(whole, batch)
    task.fit_to(outputs)
    assert outputs.shape == (4, 3)
    task.loss_sum(outputs, batch).backward()
    bare = components.build({"_target_": "transformers.BertModel", "config": BERT}, "network")
    with pytest.raises(
        ConfigError, match=r"network: returns a BaseModelOutput.*; classification needs logits"
    ):
        task.fit_to(task.forward(bare, batch))
