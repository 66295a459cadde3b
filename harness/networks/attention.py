"""Transformers (Vaswani et al., "Attention is all you need", NeurIPS 2017), with the norm before
each sublayer (Xiong et al., ICML 2020).
"""

import math

import torch
from torch import Tensor, nn

from harness.errors import ConfigError
from harness.networks.blocks import head


class TransformerEncoder(nn.Module):
    """Attention of all positions of a series to each other, then a mean over positions.

    (B, in_channels, T) with T <= max_length -> (B, out_features), or (B, dim) without. For images
    put a `torch.nn.Conv2d` that cuts patches and a `torch.nn.Flatten(2)` before it in a `Chain`
    (Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021).
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        out_features: int | None,
        max_length: int,
        depth: int = 4,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.embedding = nn.Linear(in_channels, dim)
        self.positions = nn.Parameter(torch.empty(max_length, dim).normal_(0, 0.02))
        layer = nn.TransformerEncoderLayer(
            dim, num_heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True
        )
        # torch copies one layer's initial weights into all: harmless, as their inputs differ.
        self.layers = nn.TransformerEncoder(
            layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.head = head(dim, out_features)

    def forward(self, series: Tensor) -> Tensor:
        x = self.embedding(series.transpose(1, 2))
        x = self.layers(x + self.positions[: x.shape[1]])
        logits: Tensor = self.head(x.mean(1))
        return logits


class Gpt(nn.Module):
    """A language model of GPT-2's design: tokens (B, T) int64 in [0, vocabulary), T <= context ->
    logits (B, T, vocabulary) of each next token.

    Radford et al., "Language models are unsupervised multitask learners", 2019: norms before each
    sublayer and one at the end, weights N(0, 0.02), those that write to the residual stream divided
    by sqrt(2 depth). The last layer's weights are the embedding's (Press & Wolf, "Using the output
    embedding to improve language models", EACL 2017) unless `tied` is false.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        dim: int,
        depth: int,
        num_heads: int,
        dropout: float = 0.0,
        tied: bool = True,
    ) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.embedding = nn.Embedding(vocabulary, dim)
        self.positions = nn.Embedding(context, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(GptBlock(dim, num_heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(
                    parameter,
                    0,
                    0.02 / math.sqrt(2 * depth) if name.endswith("out.weight") else 0.02,
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(self.dropout(x))))
        return logits


class GptBlock(nn.Module):
    """Causal attention, then two layers for each position: (B, T, dim) -> (B, T, dim)."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.attention_in = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp_in = nn.Linear(dim, 4 * dim)
        self.mlp_out = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention_out(self._attend(self.attention_norm(x))))
        changed: Tensor = x + self.dropout(
            self.mlp_out(nn.functional.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh"))
        )
        return changed

    def _attend(self, x: Tensor) -> Tensor:
        # Each (B, heads, T, dim / heads)
        queries, keys, values = (
            self.attention_in(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        dropout = self.dropout.p if self.training else 0.0
        attended: Tensor = nn.functional.scaled_dot_product_attention(
            queries, keys, values, dropout_p=dropout, is_causal=True
        )
        return attended.transpose(1, 2).flatten(2)


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise ConfigError(f"num_heads: {num_heads}: dim {dim} is not a multiple of it.")
