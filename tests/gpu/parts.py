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


class Expects(nn.Module):
    """A convolution that raises where it is not run by the kernels that it expects. x: (B, 6) ->
    (B, 3).
    """

    def __init__(self, products: str, benchmark: bool) -> None:
        super().__init__()
        self.products, self.benchmark = products, benchmark
        self.conv = nn.Conv2d(2, 4, (1, 3))
        self.head = nn.Linear(4, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        if (torch.get_float32_matmul_precision(), cudnn.benchmark, matmul.allow_tf32) != (
            self.products,
            self.benchmark,
            self.products != "highest",
        ):
            raise ValueError("other kernels than were asked for")
        if not self.conv.weight.is_contiguous(memory_format=torch.channels_last):
            raise ValueError("channels are not last")
        logits: Tensor = self.head(self.conv(x.view(-1, 2, 1, 3)).flatten(1))
        return logits
