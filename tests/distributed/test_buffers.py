"""Buffers that do not change are not sent again, and no rank ever trains with others' values."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.ranks.ranks import Ranks
from harness.training.evaluation import evaluation_mode
from harness.training.parallel import Replicas, start_accelerator
from tests.distributed.masked import LARGE, Masked
from tests.pool import on_ranks, train_on_ranks
from tests.resume.parts import NUM_FEATURES


def shared(network: nn.Module, ranks: Ranks, *, counted: bool = True) -> Replicas:
    accelerator = start_accelerator("no", "none", 60.0)
    return Replicas(network, accelerator, ranks, False, counted)


def bytes_sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each broadcast from now on."""
    sent, broadcast = [], dist.broadcast

    def count(tensor: Tensor, *args: Any, **options: Any) -> Any:
        sent.append(tensor.nbytes)
        return broadcast(tensor, *args, **options)

    monkeypatch.setattr(dist, "broadcast", count)
    return sent


def agree_after_each_change() -> list[Any]:
    """Bytes sent after each of some events, and whether all ranks have rank 0's values then."""
    ranks, network = Ranks.join(), Masked()
    share = shared(network, ranks)
    found: list[Any] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        sent = bytes_sent(monkeypatch)

        def after(event: str) -> None:
            share.agree_on_buffers()
            values = ranks.gather([network.table[:2].tolist(), network.small.tolist()])
            found.append([event, sum(sent), all(one == values[0] for one in values)])
            sent.clear()

        after("the first step")
        after("another")
        with evaluation_mode(network), torch.no_grad():
            network(torch.zeros(2, NUM_FEATURES))
        after("an evaluation")
        if ranks.rank == 1:
            network.table[0] = 7.0
        after("a write on rank 1")
        after("a step after it")
        if ranks.rank == 0:
            network.table = torch.full((LARGE,), 5.0)
        after("another tensor on rank 0")
        found.append(network.table[:2].tolist())
    return found


def test_buffers_are_sent_from_when_they_change() -> None:
    small, all_of_them = 0, 4 * LARGE + 12
    for found in on_ranks(2, agree_after_each_change):
        assert found == [
            ["the first step", small, True],
            ["another", small, True],
            ["an evaluation", small, True],
            ["a write on rank 1", all_of_them, True],
            ["a step after it", all_of_them, True],
            ["another tensor on rank 0", all_of_them, True],
            [5.0, 5.0],
        ]


def agree_uncounted(counted: bool) -> list[Any]:
    """A table that rank 1 writes to in each step along a way that torch does not count."""
    ranks, network = Ranks.join(), Masked()
    share = shared(network, ranks, counted=counted)
    found = []
    for _ in range(2):
        if ranks.rank == 1:
            network.table.data[0] += 1.0
        share.agree_on_buffers()
        found.append(float(network.table[0]))
    return found


@pytest.mark.parametrize("counted", [True, False])
def test_a_first_step_that_writes_uncounted_is_noticed(counted: bool) -> None:
    assert on_ranks(2, agree_uncounted, counted) == [[0.0, 0.0]] * 2


class Sent(Masked):
    """The same; the name of an attribute says that torch may not count all writes."""

    def forward(self, x: Tensor) -> Tensor:
        self.table.data_ptr()
        return super().forward(x)


def trained(directory: Path, *overrides: str) -> list[Any]:
    """The trace of a run of two ranks."""
    ends = train_on_ranks(
        2,
        Path(__file__).parents[1] / "training" / "small.yaml",
        [
            f"run.dir={directory}",
            "network={_target_: tests.distributed.masked.Masked, changes: true}",
            "stop={every: {steps: 4}, budget: {steps: 12}}",
            "log.trace=true",
            *overrides,
        ],
    )
    assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr
    lines = (directory / "trace.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_training_has_the_bits_of_one_that_sends_all_buffers(tmp_path: Path) -> None:
    found = trained(tmp_path / "asked")
    always = trained(tmp_path / "sent", f"network._target_={__name__}.Sent")
    assert found == always
    assert len({one["parameters"] for one in found}) == len(found)
