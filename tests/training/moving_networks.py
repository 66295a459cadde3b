"""Networks whose passes change more than their gradients. x: (B, 6) -> (B, 3)."""

import torch
from torch import Tensor, nn

from tests.resume.parts import NUM_CLASSES, NUM_FEATURES


class Still(nn.Module):
    """Batch normalisation, dropout, a frozen average of a weight and a spectral norm: buffers and a
    frozen weight move, trained weights do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(NUM_FEATURES, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.utils.parametrizations.spectral_norm(nn.Linear(8, NUM_CLASSES))
        self.average = nn.Parameter(self.first.weight.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.average.lerp_(self.first.weight, 0.1)
        out = self.norm(self.first(x)) + nn.functional.linear(x, self.average)
        logits: Tensor = self.last(nn.functional.dropout(out, 0.1, self.training))
        return logits


class Renormed(nn.Module):
    """An embedding whose rows are scaled down when they are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(4, 8, max_norm=0.5)
        self.last = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.rows((x[:, :1] > 0).long() + (x[:, 1:2] > 0)).sum(1))
        return logits


class Hidden(nn.Linear):
    """Clamps its weight at each pass, along a way that torch does not count."""

    def __init__(self) -> None:
        super().__init__(NUM_FEATURES, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            getattr(self.weight, "da" + "ta").mul_(0.999)
        return super().forward(x)


class Late(nn.Linear):
    """Scales its weight in the fifth step, and never else."""

    def __init__(self) -> None:
        super().__init__(NUM_FEATURES, NUM_CLASSES)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
            if self.count == 4 * 4 + 1:
                self.change()
        return super().forward(x)

    @torch.no_grad()
    def change(self) -> None:
        self.weight.mul_(0.5)
