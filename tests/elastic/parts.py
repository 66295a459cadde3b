"""Trainings in which all is present that could depend on the number of ranks."""

import os
import random
import signal
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.data.source import Batch
from harness.training import buckets

NUM_FEATURES, NUM_CLASSES, IGNORED = 6, 3, -100


class Points:
    """`count` points around three centres. A third of the labels is ignored, mostly in the first
    half; groups are uneven.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        centres = np.random.default_rng(1).normal(size=(NUM_CLASSES, NUM_FEATURES))
        labels = generator.integers(0, NUM_CLASSES, count)
        points = centres[labels] + generator.normal(size=(count, NUM_FEATURES))
        self.points = points.astype(np.float32)
        ignored = generator.random(count) < np.linspace(0.6, 0.0, count)
        self.labels = np.where(ignored, IGNORED, labels)
        self.groups = (generator.random(count) < 0.2).astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {
            "x": self.points[index],
            "label": self.labels[index],
            "group": self.groups[index],
        }


class Noise:
    """An augmentation that draws from its seeds, and from the ambient generators."""

    training_only = True

    def __call__(self, batch: Batch, seeds: np.ndarray[Any, Any]) -> Batch:
        drawn = [np.random.default_rng(int(seed)).normal(size=NUM_FEATURES) for seed in seeds]
        noise = torch.from_numpy(np.stack(drawn).astype(np.float32))
        ambient = 0.01 * random.random() + 0.01 * float(np.random.rand())
        return {**batch, "x": batch["x"] + 0.1 * noise + ambient}


class Everything(nn.Module):
    """Two branches, one of which only some micro-batches take; batch normalisation of three kinds,
    one of them used twice; tied weights, a frozen one, one that nothing uses, and more than one
    bucket of gradients.

    x: (B, 6) -> (B, 3).
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        buckets.BUCKET_BYTES = 3000
        self.first = nn.Linear(NUM_FEATURES, width)
        self.norm = nn.BatchNorm1d(width)
        self.twice = nn.BatchNorm1d(width, momentum=0.3)
        self.mean = nn.BatchNorm1d(width, momentum=None, affine=False)
        self.taken = nn.Linear(width, width)
        self.other = nn.Linear(width, width, bias=False)
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.taken.weight
        self.unused = nn.Linear(width, 2)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x)).relu()
        if self.training and torch.rand(()) < 0.4:
            hidden = hidden + self.dropout(self.other(hidden))
        else:
            hidden = hidden + self.dropout(self.taken(hidden)).relu()
        hidden = self.twice(self.twice(self.tied(hidden)))
        out: Tensor = self.last(self.mean(self.frozen(hidden)))
        return out


class Picture(nn.Module):
    """The features as a picture of 2 x 3. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, NUM_CLASSES, (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.norm(self.first(x.view(-1, 1, 2, 3))).relu()).flatten(1)
        return out


class Mortal(torch.optim.AdamW):
    """AdamW all of whose processes die after the step that DIE_AT names, counted from the start of
    the launch.
    """

    calls = 0

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        self.calls += 1
        if os.environ.get("DIE_AT") == str(self.calls):
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class Wholesale(torch.optim.SGD):
    """Fails for parameters of other shapes than it knows."""

    def step(self, closure: Any = None) -> Any:
        raise ValueError("which layer is this?")


class Sentences:
    """Tokens (T + 1,), of which the sequences have unevenly many; the rest is ignored."""

    def __init__(self, count: int, length: int = 13, vocabulary: int = 17) -> None:
        generator = np.random.default_rng(4)
        self.tokens = generator.integers(0, vocabulary, (count, length))
        lengths = generator.integers(2, length + 1, count)
        self.tokens[np.arange(length)[None, :] >= lengths[:, None]] = IGNORED

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"tokens": self.tokens[index]}


class Speaker(nn.Module):
    """tokens: (B, T) -> (B, T, V)."""

    def __init__(self, vocabulary: int = 17, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.block(self.embedding(tokens), src_mask=mask, is_causal=True)
        out: Tensor = self.head(hidden)
        return out


class Counting(nn.Module):
    """A buffer that a forward pass changes. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += x.mean().detach()
        out: Tensor = self.layer(x)
        return out


class Uneven(nn.Module):
    """A layer that only some micro-batches use. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.some = nn.Linear(NUM_FEATURES, NUM_FEATURES)
        self.layer = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.some(x) if x[0, 0] > 0 else x)
        return out


class Reentrant(nn.Module):
    """A layer in two checkpoints, whose backward passes are backward passes of their own.

    x: (B, 6) -> (B, 3).
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_FEATURES, NUM_FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = checkpoint(self.layer, x.requires_grad_(), use_reentrant=True)
        return x[:, :NUM_CLASSES]


class Spare(nn.Module):
    """With a layer that nothing uses. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.layer = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class Drawing(nn.Module):
    """With a generator of its own. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)
        self.layer = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x + 0.1 * torch.rand(x.shape, generator=self.generator))
        return out
