"""Networks, and how they are combined.

Axes are channels first everywhere: vectors (B, C), series (B, C, T), images (B, C, H, W), clips (B,
C, T, H, W); tokens are (B, T) int64. A network with `out_features: null` ends before its last
linear layer and gives the features (B, F) that a head takes.
"""

from harness.networks.attention import Gpt, TransformerEncoder
from harness.networks.blocks import Mlp
from harness.networks.clips import ClipNet
from harness.networks.combine import Chain, Fuse, Parallel
from harness.networks.images import ConvNet, ResNet
from harness.networks.series import Recurrent, Tcn

__all__ = [
    "Chain",
    "ClipNet",
    "ConvNet",
    "Fuse",
    "Gpt",
    "Mlp",
    "Parallel",
    "Recurrent",
    "ResNet",
    "Tcn",
    "TransformerEncoder",
]
