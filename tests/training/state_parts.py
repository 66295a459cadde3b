"""Networks that keep state in one way or another. x: (B, 6) -> (B, 3)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Keeps(nn.Module):
    """`how`: where it keeps a running mean, or a count, of what it has seen in training."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.calls = 0
        if how in ("assigned", "in place", "not persistent", "grows", "begins as None"):
            start = None if how == "begins as None" else torch.zeros(0 if how == "grows" else 8)
            self.register_buffer("mean", start, persistent=how != "not persistent")
        if how == "momentum":
            self.slow = AveragedModel(self.a)
            self.slow.requires_grad_(False)
        if how == "attribute tensor":
            self.hidden: Tensor | None = None
        if how == "cache":
            self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu()
        seen, how = hidden.detach().mean(0), self.how
        if self.training:
            if how == "assigned":
                self.mean = 0.9 * self.mean + 0.1 * seen
            if how in ("in place", "not persistent"):
                self.mean.mul_(0.9).add_(0.1 * seen)
            if how == "grows":
                self.mean = torch.cat([self.mean, seen])
            if how == "begins as None":
                self.mean = seen
            if how in ("attribute", "extra tensor", "extra dict"):
                self.calls += 1
            if how == "momentum":
                self.slow.update_parameters(self.a)
            if how == "attribute tensor":
                self.hidden = seen
        if how == "cache" and self.table is None:
            self.table = torch.linspace(0, 1, 8)
        if how in ("assigned", "in place", "not persistent"):
            hidden = hidden - self.mean
        if how == "momentum":
            hidden = hidden + 0.1 * self.slow(x)
        return self.b(hidden) * (1 + 1e-3 * self.calls)


class KeepsExtra(Keeps):
    """The count as extra state, a tensor or a dict."""

    def get_extra_state(self) -> Any:
        return torch.tensor(self.calls) if self.how == "extra tensor" else {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = int(state)
