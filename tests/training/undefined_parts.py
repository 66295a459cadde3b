"""A metric that is undefined once."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Fickle(Metric):  # type: ignore[misc]  # torchmetrics is not typed
    """NaN from the first interval's training samples (4 steps of 24), 1 from any other."""

    higher_is_better = True
    full_state_update = False
    count: Tensor
    asked = 0

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.count += len(targets)

    def compute(self) -> Tensor:
        Fickle.asked += int(self.count) == 96
        return torch.tensor(torch.nan if int(self.count) == 96 and Fickle.asked == 1 else 1.0)
