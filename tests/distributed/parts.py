"""Parts that misbehave at a chosen rank and step."""

import os
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from harness.errors import DataError
from tests.resume.parts import Storm


class Poisoned(Storm):
    """Gives NaN on rank `rank` in the training forward passes of step `step`, counted from the
    launch's first (the trial and the warm-up aside).
    """

    def __init__(self, rank: int, step: int, slots: int, width: int = 16) -> None:
        super().__init__(width)
        self.rank, self.step, self.slots, self.passes = rank, step, slots, -2

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if not self.training:
            return out
        self.passes += 1
        sick = (
            os.environ.get("RANK", "0") == str(self.rank)
            and self.passes > 0
            and (self.passes - 1) // self.slots + 1 == self.step
        )
        return out * (torch.nan if sick else 1.0)


class Faulty(Metric):  # type: ignore[misc]  # torchmetrics is not typed
    """Raises on rank `rank` once it has seen `after` micro-batches."""

    higher_is_better = True
    full_state_update = False
    count: Tensor

    def __init__(self, rank: int, after: int) -> None:
        super().__init__()
        self.rank, self.after = rank, after
        self.add_state("count", torch.zeros(1, dtype=torch.int64), dist_reduce_fx="sum")
        self.seen = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.seen += 1
        self.count += 1
        if self.seen > self.after and os.environ.get("RANK", "0") == str(self.rank):
            raise DataError("the metric is broken on purpose")

    def compute(self) -> Tensor:
        return self.count.sum()


class Shuffled:
    """Labels that have nothing to do with the samples."""

    def __call__(self, batch: dict[str, Any], seeds: Any) -> dict[str, Any]:
        return {**batch, "label": torch.from_numpy((seeds % 3).astype("int64"))}
