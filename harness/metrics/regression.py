"""How far predicted numbers are from their targets. States and values are those of the metrics of
the same names in torchmetrics.
"""

import torch
from torch import Tensor

from harness.metrics.metric import Metric, count

NEARLY_ZERO = 1e-4  # a sum of squares below: the numbers are taken to be all the same


class MeanSquaredError(Metric):
    """The mean of the squared differences."""

    sum_squared_error: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__(sum_squared_error=torch.zeros(1), total=count())

    def update(self, predicted: Tensor, targets: Tensor) -> None:
        """predicted, targets: (...) of the same shape and dtype."""
        differences = predicted.detach().flatten() - targets.flatten()
        self.sum_squared_error = self.sum_squared_error + (differences * differences).sum(dim=0)
        self.total = self.total + targets.numel()

    def compute(self) -> Tensor:
        return self.sum_squared_error / self.total


class MeanAbsoluteError(Metric):
    """The mean of the absolute differences."""

    sum_abs_error: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__(sum_abs_error=torch.zeros(1), total=count())

    def update(self, predicted: Tensor, targets: Tensor) -> None:
        """predicted, targets: (...) of the same shape and dtype."""
        differences = predicted.detach().flatten() - targets.flatten()
        self.sum_abs_error = self.sum_abs_error + differences.abs().sum(dim=0)
        self.total = self.total + targets.numel()

    def compute(self) -> Tensor:
        return self.sum_abs_error / self.total


class R2Score(Metric):
    """The coefficient of determination: 1 - (residual sum of squares / that around the targets'
    mean), averaged over D outputs. An output whose targets are all the same has 1 if it was met, 0
    if not.
    """

    sum_squared_error: Tensor  # of the targets themselves: the name that checkpoints know
    sum_error: Tensor  # the same
    residual: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__(
            sum_squared_error=torch.zeros(()),
            sum_error=torch.zeros(()),
            residual=torch.zeros(()),
            total=count(),
        )

    def update(self, predicted: Tensor, targets: Tensor) -> None:
        """predicted, targets: (B,) or (B, D) of the same dtype."""
        residual = targets - predicted.detach()
        self.sum_squared_error = self.sum_squared_error + (targets * targets).sum(dim=0)
        self.sum_error = self.sum_error + targets.sum(dim=0)
        self.residual = self.residual + (residual * residual).sum(dim=0)
        self.total = self.total + len(targets)

    def compute(self) -> Tensor:
        if self.total < 2:
            raise ValueError("Needs at least two samples to calculate r2 score.")
        around_mean = self.sum_squared_error - self.sum_error * (self.sum_error / self.total)
        is_off, varies = (
            ~torch.isclose(squares, torch.zeros_like(squares), atol=NEARLY_ZERO)
            for squares in (self.residual, around_mean)
        )
        scores = torch.ones_like(self.residual)
        scores[is_off & varies] = 1 - (self.residual / around_mean)[is_off & varies]
        scores[is_off & ~varies] = 0.0
        return scores.mean()
