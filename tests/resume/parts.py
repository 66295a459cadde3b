"""A training in which everything that could go wrong with exactness is present, and which can be
made to die at a given step.
"""

import os
import random
import signal
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.checkpoint import history
from harness.data.source import Batch

NUM_FEATURES = 6
NUM_CLASSES = 3


class Blobs:
    """`count` points around three centres; sample i is always the same."""

    def __init__(self, count: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        centres = np.random.default_rng(1).normal(size=(NUM_CLASSES, NUM_FEATURES))
        self.labels = generator.integers(0, NUM_CLASSES, count)
        self.points = (centres[self.labels] + generator.normal(size=(count, NUM_FEATURES))).astype(
            np.float32
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"x": self.points[index], "label": self.labels[index]}

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        return {"x": self.points[indices], "label": self.labels[indices]}


class Jitter:
    """Noise from the given seeds, and some from the ambient generators, as a user's treatment may
    draw it.
    """

    training_only = True

    def __call__(self, batch: Batch, seeds: np.ndarray[Any, Any]) -> Batch:
        noise = torch.from_numpy(
            np.stack(
                [np.random.default_rng(int(seed)).normal(size=NUM_FEATURES) for seed in seeds]
            ).astype(np.float32)
        )
        return {
            **batch,
            "x": batch["x"]
            + 0.1 * noise
            + 0.01 * random.random()
            + 0.01 * float(np.random.rand())
            + 0.01 * torch.rand(()),
        }


class Storm(nn.Module):
    """Dropout, BatchNorm, and randomness from everywhere; larger than DDP's first bucket, and
    defined in another order than it is used.

    x: (B, 6) -> (B, 3).
    """

    def __init__(self, width: int = 400) -> None:
        super().__init__()
        self.last = nn.Linear(width, NUM_CLASSES)
        self.second = nn.Linear(width, width)
        self.first = nn.Linear(NUM_FEATURES, width)
        self.third = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x)).relu()
        hidden = hidden + self.dropout(self.second(hidden)).relu()
        hidden = hidden + self.third(hidden).relu()
        if self.training:
            hidden = hidden * (
                1 + 0.01 * random.random() + 0.01 * float(np.random.rand()) + 0.01 * torch.rand(())
            )
        out: Tensor = self.last(hidden)
        return out


def die_in(name: str, number: int) -> None:
    """Make the process die in the `number`-th call of os.<name> on a checkpoint's history, or of
    all with "rename", half of whose work is done where that can be.
    """
    real, calls = getattr(os, name), iter(range(1, 10**9))

    def call(*args: Any, **options: Any) -> Any:
        where = str(args[0])
        if isinstance(args[0], int):
            where = os.readlink(f"/proc/self/fd/{where}")
        if (where.endswith("history.jsonl") or name == "rename") and next(calls) == number:
            if name == "pwrite":
                real(args[0], args[1][: len(args[1]) // 2], args[2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    setattr(os, name, call)


class Mortal(torch.optim.AdamW):
    """AdamW in two groups whose process dies in the step that DIE_AT="rank:step[:before]" names,
    counted from the start of the launch; with DIE_AT="in:call:number", see `die_in`.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, **options: Any) -> None:
        held = list(params)
        matrices, vectors = (
            [one for one in held if one.dim() > 1],
            [one for one in held if one.dim() <= 1],
        )
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "lr": lr / 2}]
        super().__init__(groups, lr=lr, **options)
        history.SHARED_FROM_BYTES = 0  # as in runs of many evaluations
        self.calls = 0
        if os.environ.get("DIE_AT", "").startswith("in:"):
            _, name, number = os.environ["DIE_AT"].split(":")
            die_in(name, int(number))

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        dies = os.environ.get("DIE_AT", "").split(":")
        mine = dies[:2] == [os.environ.get("RANK", "0"), str(self.calls)]
        if mine and "before" in dies:
            os.kill(os.getpid(), signal.SIGKILL)
        result = super().step(closure)
        if mine:
            os.kill(os.getpid(), signal.SIGTERM if "term" in dies else signal.SIGKILL)
        return result
