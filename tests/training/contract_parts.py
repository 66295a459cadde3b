"""Objects of a user's own that keep a contract in an unusual way, or break it."""

import os
import time
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn

from harness.tasks import Classification
from tests.resume.parts import NUM_CLASSES, NUM_FEATURES, Blobs

Pair = namedtuple("Pair", "logits extra")


@dataclass
class Answer:
    logits: Tensor
    extra: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Frozen:
    logits: Tensor
    size: int = field(init=False, default=0)


class Attributes(dict[str, Any]):
    """A dict whose keys are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Plain:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Gives(nn.Module):
    """(B, 6) -> logits (B, 3), in any wrapping."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        out = self.layer(x)
        wrappings: dict[str, Any] = {
            "tuple": (out, None),
            "list": [out],
            "dict": {"logits": out, "extra": None},
            "namedtuple": Pair(out, out.sum()),
            "dataclass": Answer(out),
            "object": Plain(out),
            "frozen dataclass": Frozen(out),
            "attributes": Attributes(logits=out),
            "none": None,
            "tokens": out[:, None].expand(-1, 5, -1),
        }
        return wrappings[self.kind]


class Unwraps(nn.Module):
    """The cross entropy of each sample, of logits in any wrapping."""

    reduction = "none"

    def forward(self, outputs: Any, targets: Tensor) -> Tensor:
        if isinstance(outputs, dict):
            outputs = outputs["logits"]
        outputs = getattr(outputs, "logits", outputs)
        if isinstance(outputs, list | tuple):
            outputs = outputs[0]
        return nn.functional.cross_entropy(outputs, targets.long(), reduction="none")


class Buffers(nn.Module):
    """A buffer of any type; a view of one element if `expanded`. x: (B, 6) -> (B, 3)."""

    def __init__(self, dtype: str = "float32", expanded: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        values = torch.ones(4).to(getattr(torch, dtype))
        self.register_buffer("kept", values[:1].expand(4) if expanded else values)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class Named(nn.Module):
    """A parameter with the name that safetensors keeps for itself. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("__metadata__", nn.Parameter(torch.ones(NUM_CLASSES)))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :NUM_CLASSES] * self.get_parameter("__metadata__")


class Counts(torch.optim.SGD):
    """Keeps a state of its own beside torch's."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "steps": 1}


class Deep(torch.optim.SGD):
    """Makes a state in its first step that no checkpoint can hold."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for one in group["params"]:
                self.state[one]["wide"] = torch.zeros(2, dtype=torch.complex128)
        return super().step(closure)


class Normalised(nn.Module):
    """BatchNorm, which needs two samples. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.norm = nn.BatchNorm1d(NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.layer(x))
        return out


class Unseeded(nn.Module):
    """Other weights in each process. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        with torch.no_grad():
            self.layer.bias.fill_(os.urandom(1)[0] / 255)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class FirstOnly(nn.Module):
    """Uses a layer in its first passes only. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.early = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.passes = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.passes[0] += self.training
        out: Tensor = self.always(x)
        return out + self.early(x) if self.passes[0] < 8 else out


class Samples:
    """64 samples of a kind that is no mapping of names, or not always the same."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        x, label = np.full(NUM_FEATURES, index, np.float32), index % NUM_CLASSES
        whole = {"x": x, "label": label}
        kinds: dict[str, Any] = {
            "tuple": (x, label),
            "none": whole if index % 2 else None,
            "more": whole if index % 2 else {**whole, "note": 1},
            "no-label": {"x": x, "label": None},
        }
        return kinds[self.kind]


class Stream(torch.utils.data.IterableDataset[Mapping[str, Any]]):
    def __iter__(self) -> Any:
        yield {"x": np.zeros(NUM_FEATURES, np.float32), "label": 0}


class OneClass:
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"x": np.full(NUM_FEATURES, index, np.float32), "label": 1}


def collection() -> torchmetrics.MetricCollection:
    from torchmetrics.classification import MulticlassF1Score, MulticlassPrecision

    return torchmetrics.MetricCollection(
        {
            "f1": MulticlassF1Score(num_classes=NUM_CLASSES),
            "precision": MulticlassPrecision(num_classes=NUM_CLASSES),
        }
    )


class CountsItems(Classification):
    """Counts its items, though they are as many as the samples."""

    def num_items(self, batch: Mapping[str, Any]) -> Tensor | int:
        return torch.ones_like(batch[self.target], dtype=torch.bool).sum()


class CountsItemsAtTimes(CountsItems):
    """Does so on all ranks but the first."""

    def num_items(self, batch: Mapping[str, Any]) -> Tensor | int:
        first = os.environ.get("RANK", "0") == "0"
        return len(batch[self.target]) if first else super().num_items(batch)


class Miscounts(Classification):
    """Says by an int what is not the same for all micro-batches."""

    def num_items(self, batch: Mapping[str, Any]) -> Tensor | int:
        return len(batch[self.target])


class Slow(Blobs):
    """Takes 10 ms a micro-batch."""

    def __getitems__(self, indices: list[int]) -> Any:
        time.sleep(0.01)
        return super().__getitems__(indices)
