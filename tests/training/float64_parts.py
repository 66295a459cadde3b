"""Networks in float64 with the same weights each time, and data with uneven items."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, CLASSES, LENGTH = 6, 3, 5


class Uneven:
    """Inputs (6,), labels of which every third is ignored, numbers, and tokens (5,) of which more
    and more are ignored.
    """

    def __init__(self, count: int = 24) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
        self.label = torch.randint(CLASSES, (count,), generator=generator)
        self.label[::3] = -1
        self.number = torch.randn(count, generator=generator, dtype=torch.float64)
        self.tokens = torch.randint(CLASSES, (count, LENGTH), generator=generator)
        for index in range(count):
            self.tokens[index, 1 + index % (LENGTH - 1) :] = -1

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        names = ("x", "label", "number", "tokens")
        return {name: getattr(self, name)[index].numpy() for name in names}


class Heads(nn.Module):
    """One layer and the head that is asked for: "label" (B, 3), "number" (B,), "tokens" (B, T, 3)
    from tokens (B, T), or "both" of the first two.
    """

    def __init__(self, head: str) -> None:
        super().__init__()
        self.head = head
        self.first = nn.Linear(CLASSES if head == "tokens" else WIDTH, 4, dtype=torch.float64)
        self.last = nn.Linear(4, CLASSES + 1, dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.parameters():
                count = parameter.numel()
                values = torch.linspace(-0.7, 0.9, count, dtype=torch.float64)
                parameter.copy_(values.reshape(parameter.shape))

    def forward(self, x: Tensor) -> Any:
        if self.head == "tokens":
            x = nn.functional.one_hot(x.clamp(min=0), CLASSES).double()
        out = self.last(self.first(x).tanh())
        label, number = out[..., :CLASSES], out[..., CLASSES]
        both = {"label": label, "number": number}
        return both if self.head == "both" else number if self.head == "number" else label
