"""Runs of shared networks that are killed, again and again."""

import hashlib
from pathlib import Path

import pytest

from tests.parallel.way_parts import trace
from tests.pool import train_on_ranks

CONFIG = Path(__file__).with_name("ways.yaml")
FSDP = "parallel={kind: fsdp}"


def digests_of(run: Path) -> dict[str, str]:
    """Of the files with tensors of its last checkpoint."""
    last = max((run / "checkpoints").glob("step-*"))
    return {
        one.name: hashlib.sha256(one.read_bytes()).hexdigest()
        for one in sorted(last.glob("*.safetensors"))
    }


@pytest.mark.torture
@pytest.mark.parametrize(
    ("num_ranks", "options"),
    [
        (3, [FSDP, "network.norm=true", "train.ema={decay: 0.9}", "train.precision=bf16"]),
        (
            4,
            [
                "parallel={kind: hsdp, replicate: 2, reduce_every: micro_batch}",
                "train.recompute=auto",
                "network.norm=true",
                "train.precision=bf16",
            ],
        ),
    ],
    ids=["fsdp on three", "hsdp on two times two, summed in each slot"],
)
def test_a_run_that_is_killed_at_every_fifth_step_ends_with_the_same_bits(
    num_ranks: int, options: list[str], tmp_path: Path
) -> None:
    common = [
        *options,
        "optimizer={_target_: tests.parallel.way_parts.Doomed, lr: 0.01}",
        "stop.budget.steps=12",
        "checkpoint.every.steps=2",
        "schedule.total_steps=12",
    ]

    def launch(name: str, dies: str) -> list[int]:
        overrides = [f"run.dir={tmp_path / name}", *common]
        launched = train_on_ranks(num_ranks, CONFIG, overrides, env={"DOOM": dies})
        return [one.exit_code for one in launched]

    assert launch("whole", "") == [0] * num_ranks
    deaths = 0
    while -9 in launch("killed", "5") and deaths < 9:  # a kill may come before a save has ended
        deaths += 1
    assert 2 <= deaths < 9
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert trace(killed) == trace(whole)
    assert digests_of(killed) == digests_of(whole)
