"""Networks that keep state in one way or another. x: (B, 6) -> (B, 3)."""

import os
from typing import Any

import numpy as np
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


class Noise:
    """A helper object with a generator of its own, in a list."""

    def __init__(self) -> None:
        self.generators = [torch.Generator().manual_seed(3)]

    def __call__(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generators[0])


class Helped(nn.Linear):
    """Draws from a generator that a helper object keeps."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.helpers = {"noise": Noise()}

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out + 0.1 * self.helpers["noise"](out) if self.training else out


class OwnJitter:
    """A treatment that draws from a generator of its own."""

    training_only = True

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        noise = self.rng.normal(size=tuple(batch["x"].shape)).astype("float32")
        return {**batch, "x": batch["x"] + 0.1 * torch.from_numpy(noise)}


class Centred(nn.Module):
    """A loss with a running centre, as DINO's: (outputs (B, 3), labels (B,)) -> (B,)."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(3))

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            self.centre.mul_(0.9).add_(0.1 * outputs.mean(0))
        return nn.functional.cross_entropy(outputs - self.centre, target, reduction="none")


class ActNorm(nn.Module):
    """Scales by what it sees in its first forward pass in training, as flows do."""

    begun: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x)
        if self.training and not self.begun:
            with torch.no_grad():
                self.scale.copy_(1 / (out.std(0) + 1e-3))
                self.begun.fill_(True)
        return out * self.scale


class Drifts(nn.Linear):
    """Changes a weight on rank 1 in its ninth pass in training. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.passes = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.passes[0] += self.training
        if self.passes[0] == 9 and os.environ["RANK"] == "1":
            with torch.no_grad():
                self.weight[0, 0] += 1e-3
        return super().forward(x)


class KeepsExtra(Keeps):
    """The count as extra state, a tensor or a dict."""

    def get_extra_state(self) -> Any:
        return torch.tensor(self.calls) if self.how == "extra tensor" else {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = int(state)
