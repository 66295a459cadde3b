"""A network that asks for its rank, on a machine whose threads are another number on each."""

import os

import torch
from torch import nn


class Ranked(nn.Linear):
    """x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        torch.set_num_threads(1 + int(os.environ.get("RANK", "0")))
