"""`fermarsi describe` against counts by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pool import command

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "digits.yaml"
# The two layers of the digits' perceptron: weights, biases
HIDDEN, OUT = (64 * 256, 256), (256 * 10, 10)
PARAMETERS = sum(HIDDEN + OUT)


def described(*arguments: str, config: Path = DIGITS) -> dict[str, Any]:
    end = command("describe", config, *arguments, "--json")
    assert end.exit_code == 0, end.stderr
    found: dict[str, Any] = json.loads(end.stdout.splitlines()[-1])
    return found


# Per parameter tensor AdamW and Adafactor keep a count of steps, a float32; Adafactor keeps for a
# matrix the means of its rows and columns.
@pytest.mark.parametrize(
    ("optimizer", "state_bytes"),
    [
        ("{_target_: torch.optim.AdamW, lr: 1e-3}", 4 * (2 * PARAMETERS + 4)),
        ("{_target_: torch.optim.SGD, lr: 1e-3}", 0),
        ("{_target_: torch.optim.SGD, lr: 1e-3, momentum: 0.9}", 4 * PARAMETERS),
        (
            "{_target_: torch.optim.Adafactor, lr: 1e-3}",
            4 * ((256 + 64) + 256 + (10 + 256) + 10 + 4),
        ),
    ],
)
def test_memory_is_what_one_counts_by_hand(optimizer: str, state_bytes: int) -> None:
    total = described(f"optimizer={optimizer}")["total"]
    assert (total["trained"], total["frozen"]) == (PARAMETERS, 0)
    assert (total["weight_bytes"], total["gradient_bytes"], total["optimizer_bytes"]) == (
        4 * PARAMETERS,
        4 * PARAMETERS,
        state_bytes,
    )


def test_activations_and_averages_are_what_one_counts_by_hand() -> None:
    """Of a sample: what ReLU gives, log-probabilities, and at most as much again of the latter."""
    found = described("network.dims=[64, 512, 10]", "train.ema={decay: 0.9}")
    assert 4 * (512 + 10) <= found["activation_bytes"] / 8 <= 4 * (512 + 3 * 10)
    assert found["average_bytes"] == 4 * (64 * 512 + 512 + 512 * 10 + 10)


def test_shapes_flow_and_what_is_frozen_takes_weights_alone() -> None:
    found = described("parts={'1': {freeze: true}}", "network.norm=batch")
    rows = {row["name"]: row for row in found["rows"]}
    assert [rows[name]["kind"] for name in rows] == [
        "Mlp",
        "Flatten",
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
    ]
    assert rows["0"]["takes"] == [8, 1, 8, 8]
    assert rows["0"]["gives"] == rows["1"]["takes"] == [8, 64]
    assert rows["4"]["gives"] == rows[""]["gives"] == [8, 10]
    assert (rows["1"]["trained"], rows["1"]["frozen"], rows["1"]["weight_bytes"]) == (
        0,
        sum(HIDDEN),
        4 * sum(HIDDEN),
    )
    assert (rows["1"]["gradient_bytes"], rows["1"]["optimizer_bytes"]) == (0, 0)
    # Scale, shift, mean, variance; the count of batches is an int64
    assert rows["2"]["weight_bytes"] == 4 * 4 * 256 + 8
    assert (found["num_slots"], found["world_sizes"], found["unreached"]) == (
        12,
        [1, 2, 3, 4, 6, 12],
        [],
    )


def test_a_table_names_what_no_gradient_reaches(tmp_path: Path) -> None:
    end = command(
        "describe",
        ROOT / "tests" / "training" / "halves.yaml",
        "network.idle=true",
        f"run.dir={tmp_path / 'run'}",
        "--depth",
        1,
    )
    assert end.exit_code == 0, end.stderr
    told = end.stdout
    assert "no gradient reaches idle.weight, idle.bias: several processes cannot train this" in told
    assert "a step is 2 micro-batches of 12 samples: launch 1, 2 processes" in told
    assert "BatchNorm" not in told  # deeper than 1
    encoder = next(line for line in told.splitlines() if "encoder" in line)
    assert f"{6 * 16 + 16 + 2 * 16 + 16 * 8 + 8}" in encoder
    assert not list(tmp_path.iterdir())
