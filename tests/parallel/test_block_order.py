"""Blocks that only some micro-batches use: refused by name before ranks wait for each other, or
compute with rows of several blocks.
"""

from pathlib import Path

import pytest
import torch

from harness.config.parallel import ParallelConfig
from harness.errors import ConfigError
from harness.ranks.ranks import Ranks
from harness.training.birth import Birth
from harness.training.parallel import start_accelerator
from harness.training.shards import Shards
from tests.parallel.test_ways import CONFIG, FSDP, assert_alike, run_of
from tests.parallel.way_parts import Wayward
from tests.pool import on_ranks, train_on_ranks

AHEAD, BACK, END = "the forward pass of blocks", "the backward pass of blocks", "its end"
# What a pass comes to, and what the first one came to
WAYS = {
    "drops": (f"{AHEAD}.2", f"{AHEAD}.1"),
    "turns": (f"{AHEAD}.1", f"{AHEAD}.0"),
    "routes": (f"{AHEAD}.1", f"{AHEAD}.0"),
    "repeats": (f"{AHEAD}.2", END),
    "evaluates": (END, f"{AHEAD}.1"),
    "cuts": (f"{BACK}.0", f"{BACK}.1"),
    "ends": (END, f"{BACK}.2"),
}


def passes(network: Wayward, x: torch.Tensor) -> None:
    """Of a training, two of whose outputs make one loss, and of an evaluation."""
    network.train()
    (network(x).sum() + network(x).sum()).backward()
    with torch.no_grad():
        network.eval()(x)


def refusals() -> list[str]:
    """Of each way; all ranks go it at one time."""
    accelerator, ranks = start_accelerator("no", "none", 60.0), Ranks.join()
    settings = ParallelConfig.model_validate({"kind": "fsdp"})
    found = []
    for way in WAYS:
        network = Wayward(way)
        shards = Shards(Birth(network, {}), accelerator, ranks, settings, find_unused=True)
        x = torch.full((2, 6), -1.0)
        passes(network, x)
        shards.check_gradients()
        shards.begin()
        passes(network, x)
        passes(network, x)
        try:
            passes(network, -x)
        except ConfigError as error:
            found.append(str(error))
    return found


def test_a_pass_that_uses_other_blocks_than_the_first_one_is_refused_by_name() -> None:
    for rank, found in enumerate(on_ranks(2, refusals)):
        for message, (event, wanted) in zip(found, WAYS.values(), strict=True):
            said = f"on rank {rank} a pass comes to {event}, where the first one came to {wanted}."
            assert message.startswith(f"network: {said} Processes gather")


@pytest.mark.parametrize("exactness", ["resume", "elastic"])
def test_blocks_in_another_order_on_one_rank_end_the_launch(tmp_path: Path, exactness: str) -> None:
    # Without a check it went on, with rows of two blocks for the weights of one
    network = "network={_target_: tests.parallel.way_parts.Wayward, how: turns}"
    given = [f"run.dir={tmp_path}", f"run.exactness={exactness}", FSDP, network]
    launched = train_on_ranks(2, CONFIG, given)
    assert [one.exit_code for one in launched] == [2, 2]
    message = "".join(one.stderr for one in launched)
    assert "each pass has to use the same blocks in the same order" in message
    assert "out of parallel.shard: the rest of the network then holds them" in message


def test_blocks_that_some_micro_batches_use_are_held_with_the_rest(tmp_path: Path) -> None:
    given = ["network={_target_: tests.parallel.way_parts.Wayward, how: routes, dtype: float64}"]
    given += ["train.find_unused_parameters=true", "optimizer.weight_decay=0"]
    shared = run_of(tmp_path, "fsdp", 3, *given, "parallel={kind: fsdp, shard: [blocks.2]}")
    assert_alike(shared, run_of(tmp_path, "ddp", 2, *given), 1e-12)
