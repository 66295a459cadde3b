"""The confusion matrix, and the metrics that are computed from it."""

import torch
from torch import Tensor

from harness.metrics.metric import Metric


class Confusion(Metric):
    """How often class t was taken for class p: a table (C, C) int64, rows are targets.

    Unlike in torchmetrics' own, no update waits for the GPU.
    """

    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(confusion=torch.zeros(num_classes, num_classes, dtype=torch.int64))
        self.num_classes = num_classes

    def update(self, predicted: Tensor, targets: Tensor, counted: Tensor) -> None:
        """predicted, targets: (...) class numbers; counted: (...) bool, False for a target that is
        ignored and may be any number.
        """
        cells = torch.where(counted, targets * self.num_classes + predicted, 0).flatten()
        self.confusion.view(-1).scatter_add_(0, cells, counted.flatten().to(torch.int64))

    def compute(self) -> Tensor:
        return self.confusion
