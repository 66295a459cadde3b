"""Networks whose exactness depends on what torch or the machine does."""

import os

import torch
from torch import Tensor, nn


class Puts(nn.Module):
    """A network with an operation that has no deterministic kernel: from its `late`-th forward pass
    in training mode on, or in all of them.
    """

    def __init__(self, late: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.late = late

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        # After the trial and the warm-up, which are in training mode too.
        if int(os.environ.get("LATE", "0")) == 0 or (self.training and self._passes() > self.late):
            out = torch.zeros_like(out).put(torch.arange(out.numel()), out.flatten())
        return out

    def _passes(self) -> int:
        passes = int(os.environ.get("PASSES", "0")) + 1
        os.environ["PASSES"] = str(passes)
        return passes


class Threads(nn.Linear):
    """A linear layer on a machine with as many threads as THREADS says."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        torch.set_num_threads(int(os.environ.get("THREADS", "1")))
