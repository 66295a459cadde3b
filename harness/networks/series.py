"""Networks for series (B, C, T): C channels at T times."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from harness.errors import ConfigError, require_choice
from harness.networks.blocks import Norm, activation_layer, head, norm_layer


class Tcn(nn.Sequential):
    """Residual blocks of convolutions over time, each dilated twice as far as the one before; then
    a mean over time.

    (B, in_channels, T) -> (B, out_features), or (B, widths[-1]) without. Bai, Kolter & Koltun, "An
    empirical evaluation of generic convolutional and recurrent networks for sequence modeling",
    2018, but with `norm` for their weight normalisation, and with symmetric convolutions: a network
    that judges a whole window has no future to be kept from.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        out_features: int | None,
        kernel: int = 3,
        norm: Norm = "group",
        activation: str = "ReLU",
        dropout: float = 0.0,
    ) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"kernel: {kernel}: must be odd, so that a series keeps its length.")
        blocks = [
            _TcnBlock(before, after, kernel, 2**level, norm, activation, dropout)
            for level, (before, after) in enumerate(
                zip([in_channels, *widths[:-1]], widths, strict=True)
            )
        ]
        super().__init__(
            *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), head(widths[-1], out_features)
        )


class _TcnBlock(nn.Module):
    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        dilation: int,
        norm: Norm,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (before, after):
            layers += [
                nn.Conv1d(
                    channels, after, kernel, padding=kernel // 2 * dilation, dilation=dilation
                )
            ]
            layers += [
                norm_layer(norm, after, 1),
                activation_layer(activation),
                nn.Dropout(dropout),
            ]
        self.change = nn.Sequential(*layers)
        self.shortcut = nn.Identity() if before == after else nn.Conv1d(before, after, 1)
        self.activation = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.activation(self.shortcut(x) + self.change(x))
        return activated


class Recurrent(nn.Module):
    """A GRU (Cho et al., EMNLP 2014) or LSTM (Hochreiter & Schmidhuber, Neural Computation 9, 1997)
    over a series.

    (B, in_channels, T) -> (B, out_features), or without the features (B, hidden), twice as many if
    `both_ways`: the last state of each direction.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_features: int | None,
        cell: Literal["gru", "lstm"] = "gru",
        num_layers: int = 1,
        both_ways: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_choice("cell", cell, ("gru", "lstm"))
        kind = nn.GRU if cell == "gru" else nn.LSTM
        # Torch drops between layers only, and warns if there is only one
        between = dropout if num_layers > 1 else 0.0
        self.cells = kind(
            in_channels,
            hidden,
            num_layers,
            batch_first=True,
            dropout=between,
            bidirectional=both_ways,
        )
        self.head = head(hidden * (2 if both_ways else 1), out_features, dropout)

    def forward(self, series: Tensor) -> Tensor:
        _, state = self.cells(series.transpose(1, 2))
        # (layers x directions, B, hidden); an LSTM returns its cells as well
        last = state[0] if isinstance(state, tuple) else state
        directions = 2 if self.cells.bidirectional else 1
        logits: Tensor = self.head(last[-directions:].transpose(0, 1).flatten(1))
        return logits
