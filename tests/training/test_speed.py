"""Samples and operations in a second, in the record of each log point."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _len_torch_dispatch_stack

from harness.config.read import read_config
from harness.rundir.ledger import Ledger
from harness.tracking.records import read_records
from harness.training.in_process import train_in_process
from harness.training.speed import Operations, Speed, peak_of
from tests.training.test_pacing import Clock

SMALL = Path(__file__).with_name("small.yaml")
WIDTH = 6


class Shy(nn.Linear):
    """Cannot be looked at while it computes. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        if _len_torch_dispatch_stack():
            raise TypeError("no data pointer")
        return super().forward(x)


def records(directory: Path, network: str) -> list[dict[str, Any]]:
    asked = [f"run.dir={directory}", f"network={network}"]
    train_in_process(lambda: read_config(SMALL, asked))
    return [one for one in read_records(directory / "metrics.jsonl") if one["kind"] == "train"]


def test_each_log_point_tells_samples_and_operations_in_a_second(tmp_path: Path) -> None:
    found = records(
        tmp_path, f"{{_target_: torch.nn.Linear, in_features: {WIDTH}, out_features: 3}}"
    )
    assert len(found) == 6
    # The product of the forward pass, and that of the weight's gradient: inputs have none
    of_sample = 2 * (2 * WIDTH * 3)
    for one in found:
        assert one["samples_per_s"] > 0
        assert one["flop_per_s"] == pytest.approx(of_sample * one["samples_per_s"])
        assert "peak_share" not in one  # of processors torch has no data sheets


def test_a_network_that_cannot_be_counted_is_trained_all_the_same(tmp_path: Path) -> None:
    found = records(tmp_path, "{_target_: tests.training.test_speed.Shy}")
    assert all(one["samples_per_s"] > 0 and "flop_per_s" not in one for one in found)


def test_rates_are_of_the_steps_alone_since_the_last_log_point() -> None:
    clock = Clock()
    ledger = Ledger(None, clock, Clock())
    ledger.resume({"compute": 500.0, "data_wait": 50.0})
    ledger.begin_training()
    speed = Speed(step=7, num_samples=32, peak=1e6)
    clock.now += 4.0
    with ledger.account("evaluation"):
        clock.now += 100.0
    with ledger.account("data_wait"):
        clock.now += 1.0
    rates = {"samples_per_s": 64.0, "flop_per_s": 2000.0, "peak_share": 0.002}
    assert speed.measure(17, ledger.stepped_s(), 1000) == rates
    assert speed.measure(17, ledger.stepped_s(), 1000) == {}  # no step since
    clock.now += 2.0
    assert speed.measure(18, ledger.stepped_s(), None) == {"samples_per_s": 16.0}


def test_operations_are_those_of_torchs_own_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = nn.Sequential(nn.Conv1d(4, 16, 3), nn.Flatten(2), nn.LSTM(30, 16))
    ours, theirs = Operations(), FlopCounterMode(display=False)
    for mode in (ours, theirs):
        with mode:
            layer(torch.rand(3, 5, 16)).sum().backward()
            net(torch.rand(3, 4, 32))[0].sum().backward()
    assert ours.count == theirs.get_total_flops() > 0


def test_the_peak_is_that_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(SMALL, ["train.precision=bf16"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    assert peak_of(config, torch.device("cuda"), 4) == 4 * 312.5e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "another")
    assert peak_of(config, torch.device("cuda"), 4) is None
    assert peak_of(config, torch.device("cpu"), 4) is None
