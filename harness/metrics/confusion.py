"""The confusion matrix, and the metrics that are computed from it."""

import torch
from torch import Tensor

from harness.metrics.metric import Metric

# What is held back at most: micro-batches, and targets but for those of the last
_MOST_HELD, _MOST_TARGETS = 64, 65_536


class Confusion(Metric):
    """How often class t was taken for class p: a table (C, C) int64, rows are targets.

    Unlike in torchmetrics' own, no update waits for the GPU.
    """

    confusion: Tensor
    holds = True

    def __init__(self, num_classes: int) -> None:
        self._held: list[tuple[Tensor, Tensor | None]] = []
        self._num_held = 0
        super().__init__(confusion=torch.zeros(num_classes, num_classes, dtype=torch.int64))
        self.num_classes = num_classes

    def reset(self) -> None:
        super().reset()
        self._held, self._num_held = [], 0

    def update(self, predicted: Tensor, targets: Tensor, counted: Tensor | None = None) -> None:
        """predicted, targets: (...) class numbers; counted: (...) bool, False for a target that is
        ignored and may be any number, None: all are counted.
        """
        cells = torch.add(predicted, targets, alpha=self.num_classes)
        self._held.append((cells, counted))
        self._num_held += cells.numel()
        if len(self._held) >= _MOST_HELD or self._num_held >= _MOST_TARGETS:
            self.fold()

    def fold(self) -> None:
        if not self._held:
            return
        cells = torch.cat([one.flatten() for one, _ in self._held])
        weights = torch.ones_like(cells)
        if any(counted is not None for _, counted in self._held):
            wanted = [
                torch.ones_like(one, dtype=torch.bool) if counted is None else counted
                for one, counted in self._held
            ]
            weights = torch.cat([one.flatten() for one in wanted]).to(torch.int64)
            cells = torch.where(weights > 0, cells, 0)
        self.confusion.view(-1).scatter_add_(0, cells, weights)
        self._held, self._num_held = [], 0

    def compute(self) -> Tensor:
        self.fold()
        return self.confusion
