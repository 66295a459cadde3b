"""Convolutional networks for clips (B, C, T, H, W): frames over time."""

from collections.abc import Sequence

from torch import nn

from harness.networks.blocks import Norm, activation_layer, head, norm_layer


class ClipNet(nn.Sequential):
    """One convolution a stage, each after the first at half the time, height and width; then a mean
    over time and positions.

    (B, in_channels, T, H, W) -> (B, out_features), or (B, widths[-1]) without. `factorised`: each
    3 x 3 x 3 convolution is one over positions followed by one over time, with an activation
    between them and about as many parameters: the (2+1)D convolution of Tran et al., "A closer look
    at spatiotemporal convolutions for action recognition", CVPR 2018, section 3.5. Otherwise plain
    3-D convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        out_features: int | None,
        factorised: bool = True,
        norm: Norm = "group",
        activation: str = "ReLU",
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        for stage, (before, after) in enumerate(
            zip([in_channels, *widths[:-1]], widths, strict=True)
        ):
            stride = 2 if stage else 1
            if factorised:
                # Section 3.5: as many parameters as the 3-D convolution
                between = (27 * before * after) // (9 * before + 3 * after)
                between = max(8, between // 8 * 8)  # a width that groups divide
                layers += [
                    nn.Conv3d(
                        before, between, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False
                    ),
                    norm_layer(norm, between, 3),
                    activation_layer(activation),
                    nn.Conv3d(between, after, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
                ]
            else:
                layers += [nn.Conv3d(before, after, 3, stride, padding=1, bias=False)]
            layers += [norm_layer(norm, after, 3), activation_layer(activation)]
        super().__init__(
            *layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), head(widths[-1], out_features, dropout)
        )
