"""Sums over tokens, from which perplexity and accuracy are computed."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Tokens(Metric):  # type: ignore[misc]  # torchmetrics is not typed
    """Sums over tokens: the negative log likelihood (float), the tokens that were predicted right,
    and all tokens.
    """

    full_state_update = False
    nll: Tensor
    right: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("right", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, right: Tensor, tokens: Tensor) -> None:
        self.nll += nll
        self.right += right
        self.tokens += tokens

    def compute(self) -> Tensor:
        return torch.stack([self.nll, self.right.double(), self.tokens.double()])
