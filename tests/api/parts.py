"""A network as a user's module has it."""

import os
import signal
import time

from torch import Tensor, nn


class Net(nn.Module):
    """Logits (B, 3) for x (B, 6)."""

    def __init__(self, width: int = 8, rate: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Linear(6, width)
        self.drop = nn.Dropout(rate)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.body(x).relu()))
        return out


class Impatient(Net):
    """Interrupts the process twice within its thirtieth forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for _ in range(2 * (self.calls == 30)):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        return super().forward(x)
