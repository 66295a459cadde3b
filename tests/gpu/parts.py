"""Networks for tests on a GPU."""

import torch
from torch import Tensor, nn

from tests.resume.parts import NUM_CLASSES, NUM_FEATURES


class Attends(nn.Module):
    """Attention, whose fast backward passes add up in any order. x: (B, 6) -> (B, 3)."""

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 3 * dim)
        self.head = nn.Linear(dim, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.repeat(1, 32).unsqueeze(2)  # (B, T = 192, 1)
        q, k, v = self.embed(tokens).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        logits: Tensor = self.head(out.transpose(1, 2).flatten(2).mean(1))
        return logits


class Waits(nn.Linear):
    """Asks for a value in each forward pass, for which the host has to wait."""

    def __init__(self) -> None:
        super().__init__(NUM_FEATURES, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out * (1.0 if float(out.detach().abs().max()) >= 0 else torch.nan)
