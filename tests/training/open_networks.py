"""A network whose code goes past torch's count of writes, now and then. x: (B, 6) -> (B, 3)."""

import torch
from torch import Tensor, nn

from tests.resume.parts import NUM_CLASSES, NUM_FEATURES


class Revived(nn.Linear):
    """Sets weights that are nearly dead to others in the fifth step."""

    def __init__(self) -> None:
        super().__init__(NUM_FEATURES, NUM_CLASSES)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
            if self.count == 4 * 4 + 1:
                self.weight.data[self.weight.abs() < 0.2] = 0.2
        return super().forward(x)
