"""Components for the tests of parts: an optimizer that takes groups and may die, and a network
whose parts can be told apart.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tests.resume.parts import Mortal


class MortalGroups(Mortal):
    """AdamW that takes the groups it is given, and dies as `Mortal` does."""

    def __init__(self, params: Any, lr: float, **options: Any) -> None:
        torch.optim.AdamW.__init__(self, params, lr=lr, **options)
        self.calls = 0


class Halves(nn.Module):
    """(B, 6) -> (B, 3): an encoder with BatchNorm and dropout, a head, and a layer that nothing
    uses if `idle`.
    """

    def __init__(self, idle: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 8)
        )
        self.head = nn.Linear(8, 3)
        if idle:
            self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x).relu())
        return out
