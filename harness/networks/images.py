"""Convolutional networks for images (B, C, H, W) of any size."""

from collections.abc import Sequence

from torch import Tensor, nn

from harness.errors import ConfigError
from harness.networks.blocks import Norm, activation_layer, head, norm_layer


class ConvNet(nn.Sequential):
    """Stages of `depth` 3 x 3 convolutions (each with norm and activation) that end by halving
    height and width; then a mean over positions.

    (B, in_channels, H, W) -> (B, out_features), or (B, widths[-1]) without; with `pool` false the
    positions themselves, (B, widths[-1], H', W'), for a head that takes them apart, e.g. an `Mlp`,
    which flattens. The plain design of Simonyan & Zisserman, "Very deep convolutional networks for
    large-scale image recognition", ICLR 2015, with the mean over positions of Lin et al.,
    "Network in network", ICLR 2014.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        out_features: int | None,
        depth: int = 1,
        norm: Norm = "group",
        activation: str = "ReLU",
        dropout: float = 0.0,
        pool: bool = True,
    ) -> None:
        if not pool and out_features is not None:
            raise ConfigError(
                "pool: false gives a map, not features: set out_features to null and put a head "
                "after it in a Chain."
            )
        layers: list[nn.Module] = []
        for before, after in zip([in_channels, *widths[:-1]], widths, strict=True):
            for number in range(depth):
                layers += [
                    nn.Conv2d(
                        after if number else before, after, 3, padding=1, bias=norm == "none"
                    ),
                    norm_layer(norm, after, 2),
                ]
                layers += [activation_layer(activation)]
            layers += [nn.MaxPool2d(2)]
        if pool:
            layers += [
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                head(widths[-1], out_features, dropout),
            ]
        super().__init__(*layers)


class ResNet(nn.Sequential):
    """A residual network for small images: stages of `depth` blocks, each stage after the first at
    half the height and width.

    (B, in_channels, H, W) -> (B, out_features), or (B, widths[-1]) without. He et al., "Deep
    residual learning for image recognition", CVPR 2016, section 4.2 (widths [16, 32, 64] and depth
    3, 5, 7, 9 are its ResNet-20, 32, 44, 56), with projections where the width changes.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        out_features: int | None,
        depth: int = 3,
        norm: Norm = "group",
        dropout: float = 0.0,
    ) -> None:
        blocks = [
            ResidualBlock(
                after if number else before,
                after,
                stride=2 if stage and not number else 1,
                norm=norm,
            )
            for stage, (before, after) in enumerate(
                zip([widths[0], *widths[:-1]], widths, strict=True)
            )
            for number in range(depth)
        ]
        stem = [
            nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False),
            norm_layer(norm, widths[0], 2),
            nn.ReLU(),
        ]
        super().__init__(
            *stem,
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            head(widths[-1], out_features, dropout),
        )


class ResidualBlock(nn.Module):
    """relu(x + f(x)), f two 3 x 3 convolutions: (B, before, H, W) -> (B, after, H / stride, W /
    stride).
    """

    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            norm_layer(norm, after, 2),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            norm_layer(norm, after, 2),
        )
        same = before == after and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), norm_layer(norm, after, 2)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.shortcut(x) + self.change(x))
