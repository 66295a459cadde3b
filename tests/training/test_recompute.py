"""Activations that are computed again: the same bits, and less memory.

Elsewhere BatchNorm's statistics are updated twice (pytorch 96136, YOLO-Master 262), or in the
second run alone (fairscale 1035).
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from harness.config.read import read_config
from harness.errors import ConfigError
from harness.networks import ConvNet, Gpt, ResNet
from harness.training.recompute import matching, recompute, repeated_blocks
from tests.pool import train_on_ranks
from tests.resume.test_exact import evaluations, last_state, trace

SMALL = Path(__file__).with_name("small.yaml")
BLOCKS = "network={_target_: tests.training.recompute_parts.Blocks}"


def train(directory: Path, ranks: int, *overrides: str) -> None:
    ends = train_on_ranks(ranks, SMALL, [f"run.dir={directory}", BLOCKS, *overrides])
    assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_bit_is_as_without_also_after_an_interruption(tmp_path: Path, ranks: int) -> None:
    train(tmp_path / "plain", ranks)
    train(tmp_path / "again", ranks, "train.recompute=auto", "stop.budget.steps=4")
    train(tmp_path / "again", ranks, "train.recompute=[blocks.1]")
    for read in (trace, evaluations):
        assert read(tmp_path / "again") == read(tmp_path / "plain")
    own, other = last_state(tmp_path / "again"), last_state(tmp_path / "plain")
    assert own["files"] == other["files"]
    assert json.loads((tmp_path / "again" / "outcome.json").read_text())["exact"]


def gradients(network: nn.Module, tokens: Tensor) -> tuple[list[Tensor], int]:
    """Of one pass, and the bytes that it kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    torch.manual_seed(5)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(tokens)
        loss = getattr(outputs, "logits", outputs).square().sum()
    held = sum(kept.values())
    loss.backward()
    return [one.grad for one in network.parameters() if one.grad is not None], held


def of_transformers() -> nn.Module:
    settings = {"n_layer": 4, "n_embd": 16, "n_head": 2, "vocab_size": 32, "n_positions": 32}
    config = transformers.GPT2Config(**settings, bos_token_id=0, eos_token_id=0)
    network: nn.Module = transformers.GPT2LMHeadModel(config)
    return network


@pytest.mark.parametrize(
    "build", [lambda: Gpt(32, 32, 16, depth=4, num_heads=2, dropout=0.1), of_transformers]
)
def test_a_transformer_keeps_less_and_has_the_same_gradients(
    build: Callable[[], nn.Module],
) -> None:
    tokens = torch.arange(64).reshape(2, 32) % 32
    torch.manual_seed(3)
    expected, held = gradients(build().train(), tokens)
    torch.manual_seed(3)
    network = build().train()
    assert len(recompute(network, "auto")) == 4
    found, fewer = gradients(network, tokens)
    assert len(found) == len(expected) > 0
    assert all(map(torch.equal, found, expected))
    assert fewer < held / 3
    assert list(network.state_dict()) == list(build().state_dict())


def test_what_is_named_is_found_and_what_is_not_is_refused() -> None:
    network = ResNet(3, [8, 16], 4, depth=2)
    assert repeated_blocks(network) == ["3", "4", "5", "6"]
    assert matching(network, ["3*", "5.change"]) == ["3", "5.change"]
    with pytest.raises(ConfigError, match=r"train.recompute: no module .* matches 'blokcs\.\*'"):
        recompute(network, ["3", "blokcs.*"])
    with pytest.raises(ConfigError, match="recompute does not go with compile"):
        read_config(SMALL, ["train={compile: true, recompute: auto}"])
    with pytest.raises(ConfigError, match="auto finds no blocks that repeat"):
        recompute(ConvNet(3, [8, 16], 4), "auto")


class Counted(nn.Linear):
    """With an attribute that only transformers' layers mean something by."""

    gradient_checkpointing = False
    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(input)


def test_a_users_module_runs_again_whatever_attributes_it_has() -> None:
    network = nn.Sequential(Counted(2, 2))
    assert recompute(network, ["0"]) == ["0"]
    network(torch.ones(2, 2)).sum().backward()
    assert Counted.calls == 2
