"""Blocks of which a second run in the backward pass could be another."""

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tests.resume.parts import NUM_CLASSES, NUM_FEATURES

WIDTH = 8


class Block(nn.Module):
    """BatchNorm, dropout, power iterations, a buffer that a pass changes before it is used, and
    noise of every kind of generator. (B, 8) -> (B, 8).
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mix = spectral_norm(nn.Linear(WIDTH, WIDTH))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("scale", torch.ones(()))
        self.generator = torch.Generator().manual_seed(7)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale += 0.1
        x = x + self.dropout(self.norm(self.mix(x))).relu() * self.scale
        if not self.training:
            return x
        drawn = torch.rand(x.shape, generator=self.generator) + random.random() + np.random.rand()
        return x * (1 + 0.1 * drawn)


class Blocks(nn.Module):
    """(B, 6) -> (B, 3), two blocks in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(NUM_FEATURES, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.last = nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.blocks(self.first(x)))
        return out
