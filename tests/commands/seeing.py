"""A network that says by what kernels it is run."""

import torch
from torch import Tensor, nn

SEEN: list[tuple[str, bool]] = []


class Seeing(nn.Module):
    """Keeps, of each forward pass, the precision of float32 products and whether its weights have
    their channels last. x: (B, 6) -> (B, 3).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, (1, 3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        last = self.conv.weight.is_contiguous(memory_format=torch.channels_last)
        SEEN.append(
            (torch.get_float32_matmul_precision(), last and self.conv.weight.stride(1) == 1)
        )
        logits: Tensor = self.head(self.conv(x.view(-1, 2, 1, 3)).flatten(1))
        return logits
