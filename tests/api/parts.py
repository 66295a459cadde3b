"""A network as a user's module has it."""

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
