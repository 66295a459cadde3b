"""Trainings of each way of sharing a network, against each other."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.checkpoint.read import find_checkpoint
from harness.checkpoint.state import extra_files_of
from harness.config.parallel import ParallelConfig, num_replicas_of
from harness.config.read import read_config
from harness.errors import ConfigError
from harness.ranks.mesh import Mesh
from harness.ranks.ranks import Ranks
from harness.training.birth import Birth
from harness.training.parallel import start_accelerator
from harness.training.shards import Shards, check_network, units_of
from tests.checkpoint.examples import loaded_from
from tests.parallel.way_parts import GRAPHS, Tower, records, trace
from tests.pool import command, on_ranks, train_on_ranks

CONFIG = Path(__file__).with_name("ways.yaml")
FSDP, HSDP = "parallel={kind: fsdp}", "parallel={kind: hsdp, replicate: 2}"
WIDE = ("network.dtype=float64", "train.ema={decay: 0.9}")


def run_of(tmp_path: Path, name: str, num_ranks: int, *overrides: str) -> Path:
    """The directory of a training that ends well on all ranks."""
    directory = tmp_path / name
    launched = train_on_ranks(num_ranks, CONFIG, [f"run.dir={directory}", *overrides])
    assert [one.exit_code for one in launched] == [0] * num_ranks, launched[0].stderr
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training in one process."""
    return run_of(tmp_path_factory.mktemp("alone"), "run", 1, *WIDE)


def losses_of(run: Path) -> list[float]:
    """Of each step."""
    return [float.fromhex(one["loss"]) for one in trace(run)]


def evaluations_of(run: Path) -> list[dict[str, Any]]:
    """Metrics of each evaluation."""
    return [
        {name: value for name, value in one.items() if name.startswith(("val/", "train/"))}
        for one in records(run, "eval")
    ]


def assert_alike(run: Path, other: Path, tolerance: float) -> None:
    """The same samples, and losses, norms and metrics within a relative tolerance."""
    assert [one["samples"] for one in trace(run)] == [one["samples"] for one in trace(other)]
    assert losses_of(run) == pytest.approx(losses_of(other), rel=tolerance)
    norms = [[one["grad_norm"] for one in records(each, "train")] for each in (run, other)]
    assert norms[0] == pytest.approx(norms[1], rel=tolerance)
    for mine, theirs in zip(evaluations_of(run), evaluations_of(other), strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance)


def test_a_network_trains_alike_however_it_is_shared_to_the_rounding_of_float64(
    alone: Path, tmp_path: Path
) -> None:
    # Accumulation, clipping, a schedule, dropout, a frozen part, tied weights, an average; five
    # micro-batches of evaluation on three and four ranks
    ways = {"fsdp": (3, FSDP), "hsdp": (4, HSDP), "one": (1, FSDP)}
    for name, (num_ranks, way) in ways.items():
        assert_alike(run_of(tmp_path, name, num_ranks, *WIDE, way), alone, 1e-12)


def test_a_compiled_network_is_shared_as_one_that_is_not(alone: Path, tmp_path: Path) -> None:
    given = [f"run.dir={tmp_path / 'run'}", *WIDE, FSDP, "train.compile=true"]
    given += ["network._target_=tests.parallel.way_parts.Traced"]
    graphs = tmp_path / "graphs"
    launched = train_on_ranks(2, CONFIG, given, env={GRAPHS: str(graphs)})
    assert [one.exit_code for one in launched] == [0, 0], launched[0].stderr
    assert_alike(tmp_path / "run", alone, 1e-12)
    assert len(graphs.read_text().split()) >= 8  # each block of each rank, and the rest
    found = (loaded_from(find_checkpoint(one)).model.keys() for one in (tmp_path / "run", alone))
    assert len({*map(frozenset, found)}) == 1


def test_batch_norm_s_statistics_are_those_of_ddp(tmp_path: Path) -> None:
    options = (*WIDE, "network.norm=true", "train.recompute=auto", "optimizer.fused=false")
    ddp = run_of(tmp_path, "ddp", 2, *options)
    assert_alike(run_of(tmp_path, "fsdp", 2, *options, FSDP), ddp, 1e-12)


def test_bfloat16_trains_as_with_ddp_to_its_own_rounding(tmp_path: Path) -> None:
    ddp = run_of(tmp_path, "ddp", 2, "train.precision=bf16")
    policy = "parallel={kind: fsdp, precision: {params: bf16, reduce: fp32}}"
    first = run_of(tmp_path, "policy", 2, policy)
    assert losses_of(first) == pytest.approx(losses_of(ddp), rel=0.05)
    assert trace(run_of(tmp_path, "again", 2, policy)) == trace(first)


def test_a_run_goes_on_in_any_way_with_the_samples_it_would_have_had(
    alone: Path, tmp_path: Path
) -> None:
    ddp, each = "parallel.kind=ddp", "parallel={kind: KIND, reduce_every: micro_batch}"
    summed = [each.replace("KIND", kind) for kind in ("fsdp", "hsdp, replicate: 2")]
    ways = [(2, FSDP), (1, ddp), (3, summed[0]), (4, summed[1]), (4, ddp)]
    for launch, (num_ranks, way) in enumerate(ways, 1):
        steps = 8 if launch == len(ways) else launch
        budget = f"stop.budget.steps={steps}"
        run_of(tmp_path, "chain", num_ranks, *WIDE, way, budget, "checkpoint.every.steps=1")
    chain = tmp_path / "chain"
    assert [one["samples"] for one in trace(chain)] == [one["samples"] for one in trace(alone)]
    assert losses_of(chain) == pytest.approx(losses_of(alone), rel=1e-12)
    # Of the averaged weights, which went through every way of sharing
    assert evaluations_of(chain)[-1] == pytest.approx(evaluations_of(alone)[-1], rel=1e-12)
    changes = [one["changes"] for one in records(chain, "event") if one.get("event") == "changes"]
    assert "parallel.kind: 'fsdp' -> 'ddp'" in changes[0]


def test_a_sample_that_one_rank_cannot_read_ends_an_evaluation_on_all(tmp_path: Path) -> None:
    val = "data.val.source={_target_: tests.parallel.way_parts.Torn, count: 9, torn: 8}"
    launched = train_on_ranks(3, CONFIG, [f"run.dir={tmp_path / 'run'}", FSDP, val])
    assert [one.exit_code for one in launched] == [2, 2, 2]
    assert "sample 8 is torn" in launched[2].stderr


def test_offloading_without_a_gpu_is_refused(tmp_path: Path) -> None:
    offload = "parallel={kind: fsdp, offload: cpu}"
    (launched,) = train_on_ranks(1, CONFIG, [f"run.dir={tmp_path / 'run'}", offload])
    assert launched.exit_code == 2
    assert "no effect on a machine without GPUs" in launched.stderr


def test_one_message_says_what_cannot_be_shared(tmp_path: Path) -> None:
    def said(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            read_config(CONFIG, [f"run.dir={tmp_path}", *overrides])
        return str(caught.value)

    assert "shard: no effect with kind: ddp" in said("parallel.shard=[blocks.*]")
    assert "reduce_every: no effect with kind: ddp" in said("parallel.reduce_every=micro_batch")
    each = "parallel={kind: fsdp, reduce_every: micro_batch}"
    assert "does not go with run.exactness" in said(each, "run.exactness=elastic")
    assert "replicate: no effect with kind: fsdp" in said("parallel={kind: fsdp, replicate: 2}")
    assert "train.precision: fp16" in said(FSDP, "train.precision=fp16")
    assert "train.channels_last" in said(FSDP, "train.channels_last=true")
    assert "parallel.shard" in said("parallel={kind: fsdp, shard: []}")


def settings(**options: Any) -> ParallelConfig:
    return ParallelConfig.model_validate({"kind": "fsdp", **options})


class Tied(nn.Module):
    """Two blocks that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(2)])
        self.blocks[1][0].weight = self.blocks[0][0].weight  # type: ignore[index]  # a block


def refusal(network: nn.Module, num_shards: int = 2, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_network(network, units_of(network, settings(**options)), num_shards)
    return str(caught.value)


def test_networks_that_cannot_be_shared_usefully_are_refused() -> None:
    assert "auto finds no blocks that repeat" in refusal(nn.Sequential(nn.Linear(4, 4)))
    assert "no module of the network matches 'block.*'" in refusal(Tower(), shard=["block.*"])
    assert "blocks is a ModuleList" in refusal(Tower(), shard=["blocks"])
    assert "blocks.0.0.weight and blocks.1.0.weight are tied" in refusal(Tied())
    assert "again and first" in refusal(Tower(), shard=["first", "again"])
    assert "no parameter has more than 15 rows" in refusal(Tower(), num_shards=16)
    check_network(Tower(), ["blocks.0"], 15)
    mixed = Tower()
    mixed.blocks[1].norm.bfloat16()  # type: ignore[union-attr]  # a module
    assert "trained parameters of several types" in refusal(mixed)
    turned = Tower()
    turned.enter.weight = nn.Parameter(torch.zeros(6, 7).T)
    assert "enter.weight is not contiguous in memory" in refusal(turned)
    scaled = Tower()
    scaled.scale = nn.Parameter(torch.ones(()))
    assert "scale is a single number" in refusal(scaled)
    # PrimeIntellect-ai/prime-rl#3252: experts with a placeholder
    scaled.scale = nn.Parameter(torch.empty(0, 3))
    assert "scale has no elements" in refusal(scaled)
    check_network(scaled.requires_grad_(False), ["blocks.0"], 2)


def test_replicas_are_machines_or_as_many_as_are_asked_for() -> None:
    hsdp = settings(kind="hsdp")
    assert num_replicas_of(hsdp, 16, {"LOCAL_WORLD_SIZE": "8"}) == 2
    assert num_replicas_of(hsdp, 4, {}) == 1
    assert num_replicas_of(settings(), 16, {"LOCAL_WORLD_SIZE": "8"}) == 1
    with pytest.raises(ConfigError, match=r"6 processes do not make 4 groups .* 1, 2, 3, 6"):
        num_replicas_of(settings(kind="hsdp", replicate=4), 6, {})


def kept_between_slots(reduce_every: str) -> list[bool]:
    """Which parameters of a trained network have gradients of this rank's rows after a slot that is
    not the step's last.
    """
    accelerator, ranks = start_accelerator("no", "none", 60.0), Ranks.join()
    network = Tower()
    asked = settings(reduce_every=reduce_every)
    shards = Shards(Birth(network, {}), accelerator, ranks, asked, find_unused=False)
    with shards.accumulate(last=False):
        shards.model(torch.randn(2, 6)).sum().backward()
    return [one.grad is not None for one in network.parameters()]


def test_gradients_are_summed_with_the_last_slot_or_with_each() -> None:
    for reduce_every, found in (("step", {False}), ("micro_batch", {True})):
        assert {*on_ranks(2, kept_between_slots, reduce_every)[0]} == found


def buffers_after_sharing() -> list[list[float]]:
    """Of a network whose ranks begin, and go on, with buffers of their own: a plain one twice, and
    running statistics.
    """
    accelerator, ranks = start_accelerator("no", "none", 60.0), Ranks.join()
    network = Tower(norm=True)
    network.register_buffer("seen", torch.full((2,), ranks.rank + 1.0))
    shards = Shards(Birth(network, {}), accelerator, ranks, settings(), find_unused=False)
    seen: Any = network.seen
    found = [seen.tolist()]
    with shards.accumulate(last=True):
        shards.model(torch.full((2, 6), float(ranks.rank))).sum().backward()
        seen.fill_(ranks.rank + 5.0)
    shards.agree_on_buffers()
    norm: Any = network.blocks[0].norm  # type: ignore[union-attr]  # a module
    return [*found, seen.tolist(), norm.running_mean.tolist()]


def test_buffers_that_differ_between_ranks_become_those_of_rank_0_or_of_all_slots() -> None:
    first, second = on_ranks(2, buffers_after_sharing)
    assert first == second
    assert first[:2] == [[1.0, 1.0], [5.0, 5.0]]
    assert any(first[2])


def shared_on_machines_of(sizes: list[int]) -> str:
    """How ranks share a network whose launchers tell them these numbers of processes."""
    accelerator, ranks = start_accelerator("no", "none", 60.0), Ranks.join()
    os.environ["LOCAL_WORLD_SIZE"] = str(sizes[ranks.rank])
    shards = Shards(
        Birth(Tower(), {}), accelerator, ranks, settings(kind="hsdp"), find_unused=False
    )
    return shards.description()


def test_machines_with_other_numbers_of_processes_share_in_one_way() -> None:
    one, other = on_ranks(2, shared_on_machines_of, [2, 1])
    assert one == other


def config_beside_weights() -> str:
    """Of a network of transformers that this rank alone has sharded."""
    from transformers import GPT2Config, GPT2LMHeadModel

    network = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=1, n_embd=4, vocab_size=9))
    blocks = [network.get_submodule(name) for name in units_of(network, settings())]
    options: dict[str, Any] = {"params": None, "reduce": None, "offload": False}
    mesh = Mesh.open(Ranks.join(), 1, torch.device("cpu"))
    mesh.shard([*blocks, network], reshard_after_forward=True, **options)
    return extra_files_of(network)["config.json"]


def test_a_sharded_network_keeps_the_name_of_its_class_in_files() -> None:
    (text,) = on_ranks(1, config_beside_weights)
    assert json.loads(text)["architectures"] == ["GPT2LMHeadModel"]


def test_the_description_of_a_shared_network_is_of_all_of_it() -> None:
    described = command("describe", CONFIG, FSDP)
    assert "are shared among the processes of parallel.kind: fsdp" in described.stdout
    assert "FSDP" not in described.stdout


@pytest.mark.torture
@pytest.mark.skipif(shutil.which("g++") is None, reason="nothing compiles for the CPU here: no g++")
def test_compiled_kernels_are_those_of_blocks_between_exchanges(tmp_path: Path) -> None:
    # In this thread: the pool's processes are to leave nothing behind
    env = {
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels"),
    }
    network = "network={_target_: tests.parallel.large_parts.Tall, depth: 2, width: 8}"
    given = [network, "data.val=null", FSDP, "stop={every: {steps: 3}, budget: {steps: 3}}"]
    for name in ("plain", "compiled"):
        each = [f"run.dir={tmp_path / name}", *given, f"train.compile={name == 'compiled'}"]
        launched = train_on_ranks(2, CONFIG, each, env=env, timeout_s=200.0)
        assert [one.exit_code for one in launched] == [0, 0], launched[0].stderr
    assert_alike(tmp_path / "compiled", tmp_path / "plain", 1e-5)
    assert [*(tmp_path / "kernels").rglob("*.so")]
