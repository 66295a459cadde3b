"""What makes an evaluation fast changes nothing that it gives."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.data.split import Split
from harness.networks import Mlp
from harness.ranks.ranks import Ranks
from harness.tasks import Classification
from harness.training.evaluation import EvaluationPlan, Result, evaluate

CPU = torch.device("cpu")


class Flowers:
    """Samples in one piece of memory that is used again for each micro-batch, and a count of how
    many were read.
    """

    def __init__(self, count: int = 301, *, shares: bool = False) -> None:
        draw = np.random.default_rng(3)
        self.x = draw.normal(size=(count, 8)).astype(np.float32)
        self.label = draw.integers(0, 5, count)
        self.shared = np.zeros((64, 8), np.float32) if shares else None
        self.num_read = 0

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        raise NotImplementedError

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        self.num_read += len(indices)
        x = self.x[indices]
        if self.shared is not None:
            self.shared[: len(x)] = x
            x = self.shared[: len(x)]
        return {"x": x, "label": self.label[indices]}


class Centred(nn.Module):
    """Writes to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.sub_(1.0))
        return logits


def evaluations(
    network: nn.Module, source: Flowers, task: Classification, size: int, *, keep: bool
) -> list[Result]:
    task.fit_to(torch.zeros(1, 5))
    errors = frozenset(["loss", "accuracy"])
    plan = EvaluationPlan(Split(source, (), "flowers", task.check), size, errors=errors, keep=keep)
    return [evaluate(network, task, plan, Ranks(), CPU) for _ in range(3)]


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1, "class_weights": [1.0, 2.0, 0.5, 1.0, 3.0]}, {"ignore_index": 2}],
    ids=str,
)
def test_micro_batches_that_are_counted_at_once_give_the_bits_of_each(
    size: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    network = Mlp([8, 16, 5])
    task = Classification("x", "label", **options)
    joined: list[int] = []
    sums = Classification.loss_sums
    monkeypatch.setattr(
        Classification,
        "loss_sums",
        lambda self, outputs, batch, parts: (
            joined.append(parts) or sums(self, outputs, batch, parts)
        ),
    )
    together = evaluations(network, Flowers(), task, size, keep=False)
    assert sum(joined) > 2 * 301 // size
    # A hook may do anything, also give the same memory again: each is counted at once
    network.register_forward_hook(lambda *_: None)
    joined.clear()
    alone = evaluations(network, Flowers(), task, size, keep=False)
    assert not joined
    for one in together:
        assert one.values == alone[0].values
        assert one.deviations == alone[0].deviations
        assert torch.equal(one.computed["confusion"], alone[0].computed["confusion"])


@pytest.mark.parametrize("network", [Mlp([8, 16, 5]), Centred()], ids=["reads", "writes"])
@pytest.mark.parametrize("shares", [False, True])
def test_later_evaluations_are_of_the_same_samples(network: nn.Module, shares: bool) -> None:
    task, source = Classification("x", "label"), Flowers(shares=shares)
    found = evaluations(network, source, task, 32, keep=True)
    fresh = evaluations(network, Flowers(), task, 32, keep=False)
    assert [one.values for one in found] == [one.values for one in fresh]
    # Those that the second evaluation wrote to are read again for the third
    assert source.num_read == (301 if isinstance(network, Mlp) else 2 * 301)


def test_what_does_not_fit_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.data.delivery._MOST_KEPT", 10 * 8 * (8 * 4 + 8) + 1)
    task, source = Classification("x", "label"), Flowers()
    evaluations(Mlp([8, 16, 5]), source, task, 8, keep=True)
    assert source.num_read == 3 * 301 - 2 * 10 * 8
