"""What the networks are built of, and the plainest of them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from harness.errors import ConfigError, require_choice

Norm = Literal["none", "batch", "group", "layer"]

_BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def norm_layer(kind: Norm, channels: int, num_axes: int) -> nn.Module:
    """A normalisation of (B, channels, ...) with `num_axes` axes after the channels.

    "group" (Wu & He, "Group normalization", ECCV 2018) and "layer" look at one sample at a time: a
    network does the same on any number of ranks. "batch" looks at its micro-batch; its running
    statistics, used in evaluations, are those of all ranks' micro-batches in order.
    """
    require_choice("norm", kind, ("none", "batch", "group", "layer"))
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return _BATCH_NORMS[num_axes](channels)
    if kind == "layer":
        return nn.LayerNorm(channels) if num_axes == 0 else nn.GroupNorm(1, channels)
    groups = next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)


def activation_layer(name: str) -> nn.Module:
    """An activation by its name in torch.nn, e.g. "ReLU", "GELU", "Tanh"."""
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and kind.__module__ == "torch.nn.modules.activation"):
        raise ConfigError(
            f"activation: {name!r} is not an activation of torch.nn. Give a name such as ReLU, "
            "GELU, SiLU, Tanh."
        )
    layer: nn.Module = kind()
    return layer


def head(features: int, out_features: int | None, dropout: float = 0.0) -> nn.Module:
    """The last layer of a network, or nothing for `out_features=None`."""
    if out_features is None:
        return nn.Identity()
    linear = nn.Linear(features, out_features)
    return nn.Sequential(nn.Dropout(dropout), linear) if dropout else linear


class Mlp(nn.Sequential):
    """A perceptron: (B, ...) with dims[0] numbers a sample, flattened -> (B, dims[-1]); after each
    hidden layer norm, activation, dropout.
    """

    def __init__(
        self,
        dims: Sequence[int],
        activation: str = "ReLU",
        dropout: float = 0.0,
        norm: Norm = "none",
    ) -> None:
        if len(dims) < 2 or min(dims) < 1:
            raise ConfigError(
                f"dims: {list(dims)}: give at least the numbers of inputs and outputs, each 1 or "
                "more."
            )
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(dims[:-1]):
            layers += [
                nn.Linear(before, after),
                norm_layer(norm, after, 0),
                activation_layer(activation),
                nn.Dropout(dropout),
            ]
        super().__init__(
            *(layer for layer in layers if not _is_idle(layer)), nn.Linear(dims[-2], dims[-1])
        )


def _is_idle(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Identity) or (isinstance(layer, nn.Dropout) and layer.p == 0)
