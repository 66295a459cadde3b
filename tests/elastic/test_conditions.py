"""What a run on any number of ranks needs of a network: refused or said by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness import components
from harness.config.parallel import ParallelConfig
from harness.config.read import read_config
from harness.data.code import places_asked
from harness.data.source import Batch
from harness.errors import ConfigError
from harness.ranks.ranks import Ranks
from harness.training.buckets import Partial, WholeBucket, add, grouped
from harness.training.elastic import Elastic, refuse_precision, refuse_synchronised
from harness.training.engine import Engine
from harness.training.items import Count
from harness.training.parallel import start_accelerator
from harness.training.row_steps import depends_on_rows
from harness.training.statistics import RunningStatistics
from tests.elastic import parts
from tests.elastic.runs import CONFIGS, finish, outcome
from tests.pool import on_ranks

SMALL = CONFIGS.parent / "training" / "small.yaml"
PARTS = "tests.elastic.parts"


def batch_of(sign: float) -> Batch:
    return {"x": torch.full((2, 6), sign), "label": torch.tensor([0, 2])}


def warm_up(network: str) -> Engine:
    """An engine after what a run does before its first step."""
    settings = [f"network={{_target_: {PARTS}.{network}}}", "run.exactness=elastic"]
    config = read_config(SMALL, settings)
    task = components.build(config.task, "task")
    engine = Engine(config, start_accelerator("no", "elastic", 60.0), task, batch_of(1.0))
    ranks = Ranks.join()
    engine.shard(ranks)
    engine.open()
    engine.warm_up(ranks, batch_of(1.0), batch_of(2.0))
    return engine


def refusal_of_buffers() -> str:
    with pytest.raises(ConfigError) as error:
        warm_up("Counting")
    return str(error.value)


def test_buffers_that_a_pass_changes_are_refused_by_name() -> None:
    for message in (refusal_of_buffers(), *on_ranks(2, refusal_of_buffers)):
        assert "the buffers seen" in message
        assert "set run.exactness: resume" in message


def test_statistics_over_the_samples_of_all_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1 \(SyncBatchNorm\)"):
        refuse_synchronised(nn.Sequential(nn.Linear(2, 2), nn.SyncBatchNorm(2)))


def test_gradients_that_torch_keeps_elsewhere_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch 2.15 those of blocks that compute in another type (pytorch#125191)."""

    def settings_of(params: str | None, reduce: str | None) -> ParallelConfig:
        precision = {"params": params, "reduce": reduce}
        return ParallelConfig.model_validate({"kind": "fsdp", "precision": precision})

    single, double = nn.Linear(2, 2), nn.Linear(2, 2).double()
    half = nn.Linear(2, 2).bfloat16()
    refuse_precision(settings_of("bf16", "fp32"), single)
    param = "torch.distributed.fsdp._fully_shard._fsdp_param.FSDPParam"
    monkeypatch.setattr(f"{param}.to_accumulated_grad_if_needed", None, raising=False)
    for params, reduce, network in (
        (None, None, single),
        (None, "fp32", single),
        ("bf16", "bf16", double),
        (None, "bf16", half),
    ):
        refuse_precision(settings_of(params, reduce), network)
    for params, reduce, network in (
        ("bf16", "fp32", single),
        ("bf16", None, single),  # summed as the parameters are
        (None, "bf16", single),
        (None, "fp32", double),
    ):
        with pytest.raises(ConfigError, match=r"precision: with torch .* would not find the"):
            refuse_precision(settings_of(params, reduce), network)


def work_on_slot(engine: Engine, sign: float, *, last: bool = False) -> None:
    with engine.accumulate(last=last):
        engine.forward_backward(batch_of(sign), Count(torch.tensor(2), 1))


def refusal_of_slot() -> str:
    engine = warm_up("Uneven")
    work_on_slot(engine, 1.0)
    with pytest.raises(ConfigError) as error:
        work_on_slot(engine, -1.0)
    return str(error.value)


def test_a_layer_that_only_some_micro_batches_use_needs_a_setting() -> None:
    for message in (refusal_of_slot(), *on_ranks(2, refusal_of_slot)):
        assert "network: some.bias, some.weight get a gradient in some micro-batches" in message
        assert "Set train.find_unused_parameters: true" in message


def refusal_of_pieces() -> str:
    engine = warm_up("Reentrant")
    work_on_slot(engine, 1.0)
    with pytest.raises(ConfigError) as error:
        work_on_slot(engine, 1.0, last=True)
    return str(error.value)


def test_gradients_in_several_pieces_are_refused() -> None:
    """One would be sent before it is complete."""
    for message in on_ranks(2, refusal_of_pieces):
        assert "comes in several pieces" in message
        assert "use_reentrant=False" in message


def test_what_nothing_uses_is_left_out_without_a_setting() -> None:
    engine = warm_up("Spare")
    assert isinstance(engine.sharing, Elastic)


def test_reasons_are_said(tmp_path: Path) -> None:
    """A generator of the network's own, and code that asks for its rank."""
    drawing = f"network={{_target_: {PARTS}.Drawing}}"
    finish(SMALL, tmp_path / "run", 2, drawing, "stop.budget.steps=2")
    found = outcome(tmp_path / "run")
    assert found["exact"] is False
    assert "generator keeps a generator of its own" in found["exact_reason"]
    assert "tests.resume.parts: RANK" in found["exact_reason"]  # its source's module
    assert places_asked([{"_target_": f"{PARTS}.Drawing"}]) == []


def test_a_network_that_asks_for_its_rank_and_machines_that_differ_are_said(tmp_path: Path) -> None:
    """In one launch, and where a run goes on."""
    run, network = tmp_path / "run", "network={_target_: tests.elastic.rank_parts.Ranked}"
    finish(SMALL, run, 2, network, "stop.budget.steps=2")
    found = outcome(run)
    assert found["exact"] is False
    assert "tests.elastic.rank_parts: RANK" in found["exact_reason"]
    assert "the processes' machines differ (threads: 1 -> 2)" in found["exact_reason"]
    finish(SMALL, run, 1, network, "stop.budget.steps=4")
    found = outcome(run)
    assert found["exact"] is False
    assert "other machines from step 2 on (threads: 1, 2 -> 1)" in found["exact_reason"]


@pytest.mark.torture
def test_another_set_of_instructions_is_said(tmp_path: Path) -> None:
    """Torch's kernels without AVX, in a process of its own."""
    run = tmp_path / "run"
    finish(SMALL, run, 2, "stop.budget.steps=2")
    given = [f"run.dir={run}", "run.exactness=elastic", "stop.budget.steps=4"]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "ACCELERATE_USE_CPU": "true"}
    train = [sys.executable, "-m", "harness.train", str(SMALL), *given]
    subprocess.run(train, env=environment, check=True, timeout=120)
    found = outcome(run)
    assert found["exact"] is False
    assert "other machines from step 2 on (CPU capability: " in found["exact_reason"]
    assert "-> DEFAULT)" in found["exact_reason"]


def step_reason(target: str, **options: object) -> str:
    spec = {"_target_": target, "lr": 0.01, **options}
    return depends_on_rows(spec, torch.float32, torch.device("cpu"))


def test_an_optimizer_that_looks_past_its_rows_is_found() -> None:
    """Fused kernels compute the last elements of a tensor otherwise (torch 2.15, AVX2)."""
    for name in ("AdamW", "Adam", "SGD", "RMSprop", "Adagrad", "NAdam", "RAdam"):
        assert step_reason(f"torch.optim.{name}") == "", name
    assert step_reason("torch.optim.SGD", momentum=0.9, nesterov=True) == ""
    assert "does not compute each element" in step_reason("torch.optim.Adafactor")
    assert "does not compute each element" in step_reason("torch.optim.Muon")
    assert "could not be tried" in step_reason(f"{PARTS}.Wholesale")


class Norms(nn.Module):
    """x: (B, 6) -> (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.BatchNorm1d(6)
        self.twice = nn.BatchNorm1d(6, momentum=0.3)
        self.mean = nn.BatchNorm1d(6, momentum=None)
        self.fixed = nn.BatchNorm1d(6).eval()
        self.bare = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mean(self.twice(self.twice(self.plain(x)) + 1))
        if x[0, 0] > 0:
            x = self.mean(x + 2)
        out: Tensor = self.bare(self.fixed(x))
        return out


def statistics_of_slots(num_slots: int, num_steps: int) -> dict[str, list[float]]:
    """Ours, of this rank's share of the slots."""
    ranks = Ranks.join()
    network = Norms()
    statistics = RunningStatistics(network, ranks)
    share = num_slots // ranks.size
    for step in range(num_steps):
        for slot in range(ranks.rank * share, (ranks.rank + 1) * share):
            with statistics.slot():
                network(slot_input(step, slot))
        statistics.update()
    return {name: one.reshape(-1).tolist() for name, one in network.named_buffers()}


def slot_input(step: int, slot: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + slot)
    return 3 * torch.randn(4, 6, generator=generator) + slot


def test_running_statistics_are_those_of_one_pass_after_another() -> None:
    """The oracle: torch's own, on one rank, slot after slot."""
    network = Norms()
    for step in range(3):
        for slot in range(6):
            network(slot_input(step, slot))
    alone = statistics_of_slots(6, 3)
    for name, one in network.named_buffers():
        assert alone[name] == pytest.approx(one.reshape(-1).tolist(), rel=2e-5), name
    for ranks in (2, 3):
        assert on_ranks(ranks, statistics_of_slots, 6, 3) == [alone] * ranks


def test_sums_leave_alone_what_autograd_may_still_have() -> None:
    leaf = torch.ones(3)
    total = add(Partial([leaf, None]), Partial([torch.ones(3), leaf]))
    total = add(total, Partial([torch.ones(3), torch.ones(3)]))
    assert leaf.tolist() == [1.0] * 3
    assert [one.tolist() for one in total.tensors if one is not None] == [[3.0] * 3, [2.0] * 3]


def test_buckets_are_a_function_of_the_network() -> None:
    network = parts.Everything()
    trained = [one for one in network.parameters() if one.requires_grad]
    found = grouped(trained, lambda one: one.dtype)
    assert len(found) > 2
    assert [id(one) for bucket in found for one in bucket] == [id(one) for one in reversed(trained)]
    ranks = Ranks.join()
    assert all(offset % 16 == 0 for each in found for offset in WholeBucket(each, ranks).offsets)
