"""A network with a large buffer, in a file without any write that torch does not count."""

import torch
from torch import Tensor, nn

from tests.resume.parts import NUM_CLASSES, NUM_FEATURES

LARGE = 2**15  # float32: 128 KB


class Masked(nn.Linear):
    """Has a table as large as the masks of language models, and a small buffer; x: (B, 6) -> (B,
    3). With `changes`, the training pass of a slot with x[0, 0] > 1.2 puts its first sample into
    the table: in some steps on one rank, in others on several or none.
    """

    table: Tensor
    small: Tensor

    def __init__(self, changes: bool = False) -> None:
        super().__init__(NUM_FEATURES, NUM_CLASSES)
        self.register_buffer("table", torch.zeros(LARGE))
        self.register_buffer("small", torch.zeros(3))
        self.changes = changes

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.changes and x[0, 0] > 1.2:
            self.table[:NUM_FEATURES] = x[0]
        return super().forward(x) + self.table[:NUM_CLASSES]
