"""Starting from somebody else's weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from harness.errors import CheckpointError
from harness.training.warm_start import warm_start


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "other.safetensors"
    save_file(
        {
            "encoder.weight": torch.full((2, 3), 5.0),
            "encoder.bias": torch.full((2,), 6.0),
            "head.weight": torch.ones(1, 2),
        },
        path,
    )
    return path


class Net(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, width)
        self.decoder = nn.Linear(3, width)


def test_what_matches_is_put_in_and_what_does_not_is_named(weights: Path) -> None:
    network = Net()
    told = warm_start(network, weights, {})
    assert network.encoder.weight.eq(5.0).all()
    assert "2 tensors loaded" in told
    assert "newly initialised: decoder.weight, decoder.bias" in told
    assert "not used: head.weight" in told


def test_a_prefix_puts_a_part_into_another_part(weights: Path) -> None:
    network = Net()
    before = network.encoder.weight.clone()
    warm_start(network, weights, {"encoder.": "decoder."})
    assert network.decoder.bias.eq(6.0).all()
    assert network.encoder.weight.equal(before)


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ({"enc.": "decoder."}, "none of its names begins with 'enc.'"),
        ({"encoder.": "x.", "encoder.w": "x.w"}, "two weights would be called x.weight"),
    ],
)
def test_a_prefix_that_cannot_be_meant_is_refused(
    weights: Path, prefixes: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        warm_start(Net(), weights, prefixes)


def test_shapes_that_do_not_fit_are_named_and_nothing_is_changed(weights: Path) -> None:
    network = Net(width=4)
    before = network.encoder.weight.clone()
    with pytest.raises(
        CheckpointError,
        match=r"encoder\.weight: torch\.float32 \(2, 3\), the network's is torch\.float32 \(4, 3\)",
    ):
        warm_start(network, weights, {})
    assert network.encoder.weight.equal(before)


def test_no_common_name_and_no_safetensors_file_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none of its 3 tensors has a name in the network"):
        warm_start(nn.Linear(3, 2), weights, {})
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match=r"run\.init_from"):
        warm_start(Net(), tmp_path / "text", {})
