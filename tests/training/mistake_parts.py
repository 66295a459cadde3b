"""Parts of trainings that a user has not thought through."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.resume.parts import Blobs

NO_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 TB"


def pinball(outputs: Tensor, target: Tensor, quantile: float = 0.5) -> Tensor:
    error = target - outputs.squeeze(-1)
    return torch.maximum(quantile * error, (quantile - 1) * error).mean()


def power_loss(exponent: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, target: ((outputs - target).abs() ** exponent).mean()


class Prices(Blobs):
    """Blobs whose labels are prices."""

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        return {**super().__getitems__(indices), "label": np.array(indices) * 1.25}


class Greedy(nn.Linear):
    """x: (B, 6) -> (B, 3). Wants more memory than there is at its seventh call in training."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls == 7:
            raise RuntimeError(NO_MEMORY)
        return super().forward(x)


class GreedyWhenEvaluated(nn.Linear):
    """The same at its fourth call in evaluation."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += not self.training
        if self.calls == 4:
            raise MemoryError
        return super().forward(x)
