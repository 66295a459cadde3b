"""No step makes the host wait for the device, and nothing of it lies on the wrong one: shown
without a GPU, on tensors that have no values to be read.

On the `meta` device a whole step of ours runs, and a value that is asked for raises. Fake tensors
on `cuda:0` show what `meta` cannot: fused kernels and tensors on different devices; their backward
passes do not run without a GPU (torch 2.15).
"""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from harness.config.read import read_config
from harness.console import Console
from harness.interrupt import Interruption
from harness.metrics.interval import IntervalMetrics
from harness.ranks.ranks import Ranks
from harness.rundir.lease import Lease
from harness.rundir.ledger import Ledger
from harness.tasks import Classification
from harness.tracking.tracker import Tracker
from harness.training.build import build
from harness.training.items import Items
from harness.training.loop import train_step
from harness.training.losses import LossWindow
from harness.training.parallel import Replicas, start_accelerator
from harness.training.run import Launch, Run
from harness.training.stepper import Stepper
from tests.pool import on_ranks
from tests.resume.test_zoo import ANIMALS

SMALL = Path(__file__).with_name("small.yaml")


class Asks(nn.Linear):
    """Asks for a value in each training pass. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out * (1.0 if not self.training or float(out.detach().max()) > 0 else 2.0)


class AsksInMetrics(Classification):
    """Asks for a value in each update of its metrics."""

    def update(self, metrics: Mapping[str, Any], outputs: Any, batch: Mapping[str, Any]) -> None:
        super().update(metrics, outputs, batch)
        if batch[self.target].max().item() > 2:
            raise ValueError


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples without values cannot be compared before the first step."""
    monkeypatch.setattr("harness.training.build.unsteady", lambda *_: [])


@contextmanager
def run_on(device: str, directory: Path, *overrides: str) -> Iterator[Run]:
    """A run, built as a launch builds it; on `meta` its device has no values."""
    config = read_config(SMALL, [f"run.dir={directory}", "log.trace=false", *overrides])
    accelerator = start_accelerator("no", "none", 60.0)
    accelerator.state.device = torch.device(device)
    with Interruption() as interruption, Console(False) as console:
        run = build(
            config,
            accelerator,
            Ranks(),
            Launch("id", 1, None),
            interruption,
            Ledger(directory / "ledger.json", age_s=0.0),
            Lease(directory),
            Tracker(directory, console, enabled=False),
        )
        try:
            run.engine.wrap(run.ranks)
            yield run
        finally:
            run.store.close(1.0)


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule={_target_: harness.schedules.WarmupCosine, total_steps: 12}"],
        ["train.clip_grad_norm=null",
         "optimizer={_target_: torch.optim.SGD, lr: 0.1, foreach: true}"],
        ["task={_target_: harness.tasks.Regression, input: x, target: label}",
         "network={_target_: torch.nn.Linear, in_features: 6, out_features: 1}"],
        ["task.class_weights=balanced", "task.label_smoothing=0.1"],
        ANIMALS["batch-norm"],
        ANIMALS["gpt2"],
        ANIMALS["timm"],
    ],
)  # fmt: skip
def test_a_step_asks_for_no_value(tmp_path: Path, overrides: list[str]) -> None:
    with run_on("meta", tmp_path, "optimizer.foreach=true", *overrides) as run:
        for _ in range(2):
            train_step(run)
        assert run.step == 2
        # The host waits here, and here alone
        with pytest.raises((RuntimeError, NotImplementedError), match=r"[Mm]eta tensor"):
            run.losses.read(run.step)


@pytest.mark.parametrize(
    "overrides",
    [
        [f"network={{_target_: {__name__}.Asks}}"],
        [f"task._target_={__name__}.AsksInMetrics"],
    ],
)
def test_a_value_that_is_asked_for_is_found(tmp_path: Path, overrides: list[str]) -> None:
    with (
        run_on("meta", tmp_path, *overrides) as run,
        pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"),
    ):
        train_step(run)


def live_tensors() -> tuple[int, int]:
    """How many there are, and their bytes."""
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) is Tensor]
    return len(found), sum(one.nbytes for one in found)


def held_after_reads(directory: Path) -> list[tuple[int, int]]:
    """The live tensors of this process after each of five log points."""
    held = []
    with run_on("cpu", directory) as run:
        for _ in range(5):
            for _ in range(16):  # as many micro-batches as the metrics hold back at most
                train_step(run)
            run.losses.read(run.step)
            run.losses.take_pending()
            held.append(live_tensors())
    return held


def test_no_step_keeps_what_a_read_does_not_free(tmp_path: Path) -> None:
    """Losses that are kept with their graphs, or for ever, grow from step to step.

    In a process of its own: tensors of other tests, of which some leave threads behind on purpose,
    would come and go between two counts.
    """
    [held] = on_ranks(1, held_after_reads, tmp_path)
    assert held[2:] == held[1:2] * 3  # once the optimizer has its state


class Reads(TorchDispatchMode):
    """Counts the values that are read, by their device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            kind = args[0].device.type
            self.found[kind] = self.found.get(kind, 0) + 1
            return 1.0
        return func(*args, **(kwargs or {}))


def step_on_cuda(kernel: str, task: Classification) -> dict[str, int]:
    """What a step reads of its device but for the backward pass; raises where devices differ."""
    task.num_classes = 3
    metrics = IntervalMetrics(task.metrics())
    # Any network's: how a step clips
    clip = Replicas(nn.Linear(1, 1), start_accelerator("no", "none", 60.0), Ranks(), False).clip
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.device("cuda:0"), Reads() as reads:
        network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        options: dict[str, Any] = {kernel: True} if kernel else {}
        optimizer = torch.optim.AdamW(network.parameters(), **options)
        batch = {"x": torch.empty(4, 6), "label": torch.empty(4, dtype=torch.int64)}
        losses = LossWindow(Ranks())
        items = Items(task, Ranks(), torch.device("cuda:0"), 1, 1)
        stepper = Stepper(optimizer, None, 1.0)
        for number in range(2):
            outputs = task.forward(network, batch)
            loss_sum = task.loss_sum(outputs, batch).detach()
            for parameter in network.parameters():
                parameter.grad = torch.empty_like(parameter)
            norm, skipped = stepper.step(clip)
            assert norm.device.type == "cuda"
            metrics.update(task, outputs.detach(), batch, number)
            losses.add([loss_sum], items.of([batch]).number(), norm, skipped)
    return reads.found


@pytest.mark.parametrize("kernel", ["foreach", "fused", ""])
def test_a_step_on_cuda_asks_for_no_value(kernel: str) -> None:
    assert "cuda" not in step_on_cuda(kernel, Classification("x", "label"))


def test_a_value_that_is_asked_of_cuda_is_found() -> None:
    assert step_on_cuda("fused", AsksInMetrics("x", "label"))["cuda"] == 2
