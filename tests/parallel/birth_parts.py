"""Networks whose construction goes beyond layers with values of their own."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Base(nn.Module):
    """Two blocks, (B, 6) -> (B, 3), of `width` features."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(2)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


class Drawn(Base):
    """Draws after parameters: buffers that are saved and that are not (huggingface/transformers
    #45902: rotary frequencies without values), a plain attribute, and an
    object that nobody looks into; ties, marks, frozen values, values given before registration.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(5))
        self.register_buffer("phases", torch.randn(5), persistent=False)
        self.order = torch.randperm(8)
        self.rates = torch.linspace(0, 0.1, 2).tolist()
        self.hidden = Hidden()
        self.scale = nn.Parameter(torch.randn(8, 1))
        self.scale.mark = 3  # type: ignore[attr-defined]  # as timm and transformers mark some
        self.fixed = nn.Parameter(torch.rand(9), requires_grad=False)
        self.lut = nn.Embedding(7, 8, padding_idx=2)
        self.out = nn.Linear(8, 7, bias=False)
        self.out.weight = self.lut.weight
        self.own = torch.Generator().manual_seed(5)
        self.seeded = nn.Parameter(torch.empty(6, 3).normal_(generator=self.own))
        self.later = nn.Parameter(torch.empty(6, 3))
        nn.init.normal_(self.later, generator=self.own)
        for one in (nn.init.orthogonal_, nn.init.trunc_normal_, nn.init.kaiming_uniform_):
            one(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.arange(3.0))
            self.enter.weight[0].zero_()
        self.register_buffer("after", torch.rand(4))


class Hidden:
    def __init__(self) -> None:
        self.values = torch.randn(3)


class Copied(nn.Module):
    """What torch copies layer by layer, and what it reparametrizes."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.normed = parametrizations.weight_norm(nn.Linear(8, 3))


class Reading(Base):
    """Reads a value of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.head.weight.abs().max().item()


class Deriving(Base):
    """Keeps plain values that come from parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.head.weight.detach().clone()


class Lazy(Base):
    """A layer whose shape the first pass tells."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.LazyLinear(8)


class Halved(nn.Module):
    """Halves a value of what it was given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        with torch.no_grad():
            self.inner.get_parameter("transformer.h.1.mlp.c_fc.weight")[0, 0] *= 0.5

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x).logits
        return out
