"""Blocks that only some micro-batches use: refused by name before ranks wait for each other, or
compute with rows of several blocks.
"""

from copy import deepcopy
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
from tests.parallel.way_parts import Tiled, Tower, Wayward
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


def passes(network: Tower, x: torch.Tensor) -> None:
    """Of a training, two of whose outputs make one loss, and of an evaluation."""
    network.train()
    (network(x).sum() + network(x).sum()).backward()
    with torch.no_grad():
        network.eval()(x)


def begun(network: Tower, x: torch.Tensor, *blocks: int) -> Shards:
    """Its rows on each rank, after a trial with x, and of some blocks by themselves."""
    accelerator, ranks = start_accelerator("no", "none", 60.0), Ranks.join()
    settings = ParallelConfig.model_validate({"kind": "fsdp"})
    shards = Shards(Birth(network, {}), accelerator, ranks, settings, find_unused=True)
    passes(network, x)
    call_blocks(network, *blocks)
    shards.check_gradients()
    shards.begin()
    return shards


def refusals() -> list[str]:
    """Of each way; all ranks go it at one time."""
    found = []
    for way in WAYS:
        network = Wayward(way)
        x = torch.full((2, 6), -1.0)
        begun(network, x)
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


def evaluated(network: Tower, shards: Shards, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), shards.in_step({"x": x}):
        out: torch.Tensor = network.eval()(x)
    return out


def refusals_of_sizes() -> list[str]:
    """Where ranks evaluate with unlike sizes, and unlike samples of one size; like ones go on."""
    torch.manual_seed(0)
    network = Tiled(2)
    plain = deepcopy(network).eval()
    shards = begun(network, torch.ones(2, 6))
    for num_rows in (4, 2, 6, 4):
        x = torch.randn(num_rows, 6)
        torch.testing.assert_close(evaluated(network, shards, x), plain(x).detach())
        passes(network, x[:2])
    other = Wayward("evaluates")
    others = begun(other, -torch.ones(2, 6))
    evaluated(other, others, -torch.ones(4, 6))
    rank, found = shards.ranks.rank, []
    for one, its, x in (
        (network, shards, torch.ones(4 + 4 * rank, 6)),
        (other, others, torch.ones(4, 6)),  # of a known size: without an exchange, each by itself
    ):
        with pytest.raises(ConfigError) as caught:
            evaluated(one, its, x)
        found.append(str(caught.value))
    return found


def test_evaluations_may_use_blocks_as_often_as_their_sizes_ask_for_on_all_ranks() -> None:
    start = "network: on rank {} a pass comes to {}, where {} comes to {}. Processes gather"
    (first, second), (third, _) = on_ranks(2, refusals_of_sizes)
    assert first.startswith(start.format(0, END, "rank 1", f"{AHEAD}.0"))
    assert third.startswith(start.format(1, f"{AHEAD}.0", "rank 0", END))
    assert f"a pass comes to {END}, where the first one came to {AHEAD}.1" in second


def refusal_of_block() -> str:
    """Called by another way than the network's own forward pass, in an evaluation."""
    network, x = Wayward(""), torch.ones(2, 6)
    begun(network, x, 0, 1)
    passes(network, x)
    call_blocks(network, 0, 1)
    passes(network, x)
    call_blocks(network, 0)
    with pytest.raises(ConfigError) as caught:
        call_blocks(network, 2)
    return str(caught.value)


def call_blocks(network: Tower, *indices: int) -> None:
    with torch.no_grad():
        for index in indices:
            network.blocks[index](torch.ones(2, 7))


def test_blocks_called_by_themselves_without_gradients_are_no_part_of_a_training_pass() -> None:
    for found in on_ranks(2, refusal_of_block):
        assert f"a pass comes to {AHEAD}.2, where the first one came to {AHEAD}.1" in found


def test_a_training_evaluates_larger_micro_batches_in_more_pieces(tmp_path: Path) -> None:
    given = ["network={_target_: tests.parallel.way_parts.Tiled, rows: 4, dtype: float64}"]
    given += ["evaluation.micro_size=8", "data.val.source.count=32"]
    run_of(tmp_path, "run", 2, *given, FSDP)


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
