"""Networks as people have them: each killed during a step and resumed, on 1 and 2 ranks."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.resume.test_exact import assert_same, launch
from tests.resume.zoo import BODIES

SMALL = Path(__file__).parents[1] / "training" / "small.yaml"
ZOO = "tests.resume.zoo"
TOKENS = [
    f"data.train.source={{_target_: {ZOO}.Tokens, count: 64}}",
    f"data.val.source={{_target_: {ZOO}.Tokens, count: 20, seed: 5}}",
]
SENTENCES = [
    *TOKENS,
    "task={_target_: harness.tasks.Classification, "
    "input: {input_ids: tokens, attention_mask: mask}, target: label}",
]
PICTURES = [
    f"data.train.source={{_target_: {ZOO}.Pictures, count: 64}}",
    f"data.val.source={{_target_: {ZOO}.Pictures, count: 20, seed: 5}}",
]
LARGE = {
    "bert": [*SENTENCES, f"network={{_target_: {ZOO}.bert}}"],
    "bert-peft": [*SENTENCES, f"network={{_target_: {ZOO}.bert, adapted: true}}"],
    "gpt2": [
        *TOKENS,
        f"network={{_target_: {ZOO}.gpt2}}",
        "task={_target_: harness.tasks.LanguageModelling, input: tokens}",
    ],
    "gpt2-mapping": [
        *TOKENS,
        f"network={{_target_: {ZOO}.gpt2}}",
        "task={_target_: harness.tasks.LanguageModelling, "
        "input: {input_ids: tokens, attention_mask: mask}}",
    ],
    "timm": [
        *PICTURES,
        "network={_target_: timm.create_model, model_name: test_resnet, num_classes: 3}",
    ],
}
ANIMALS = {
    **{
        kind: [f"network={{_target_: {ZOO}.small, kind: {kind}}}"]
        for kind in (*BODIES, "whole-compiled", "peft")
    },
    **{
        kind: [
            f"network={{_target_: {ZOO}.small, kind: {kind}}}",
            "train.find_unused_parameters=true",
        ]
        for kind in ("fickle", "experts")
    },
    **LARGE,
    "channels-last": [*LARGE["timm"], "train.channels_last=true"],
}


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.torture), 2])
@pytest.mark.parametrize("animal", ANIMALS)
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, animal: str, ranks: int) -> None:
    overrides = ["optimizer={_target_: tests.resume.parts.Mortal, lr: 0.01}", *ANIMALS[animal]]

    def train(name: str, die_at: str = "") -> Sequence[int]:
        ends = launch(tmp_path / name, ranks, *overrides, die_at=die_at, config=SMALL)
        return [one.exit_code for one in ends]

    assert train("whole") == [0] * ranks
    assert -9 in train("cut", die_at=f"{ranks - 1}:7")
    assert train("cut") == [0] * ranks
    assert_same(tmp_path / "cut", tmp_path / "whole")
    for name in ("whole", "cut"):
        assert json.loads((tmp_path / name / "outcome.json").read_text())["exact"]
