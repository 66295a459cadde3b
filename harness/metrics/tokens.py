"""Sums over tokens, from which perplexity and accuracy are computed."""

import torch
from torch import Tensor

from harness.metrics.metric import Metric, count


class Tokens(Metric):
    """Sums over tokens: the negative log likelihood (float), the tokens that were predicted right,
    and all tokens.
    """

    nll: Tensor
    right: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__(nll=torch.zeros(()), right=count(), tokens=count())

    def update(self, nll: Tensor, right: Tensor, tokens: Tensor) -> None:
        self.nll = self.nll + nll.detach()
        self.right = self.right + right
        self.tokens = self.tokens + tokens

    def compute(self) -> Tensor:
        return torch.stack([self.nll, self.right.double(), self.tokens.double()])
