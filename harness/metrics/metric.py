"""What our own metrics are: torchmetrics' take seconds to import, so they load only if named."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    import torchmetrics


class Metric:
    """Sums that begin at zero, each an attribute, and `compute`, which turns them into a value.

    It has what `harness.metrics.IntervalMetrics` asks of one of torchmetrics: the names and shapes
    of its sums are in `sums`, and its class defines `update` and `compute`. One that `holds` adds
    up many micro-batches at once, in `fold`: its sums are whole numbers, so it cannot matter.
    """

    holds = False

    def __init__(self, **sums: Tensor) -> None:
        self.sums = sums
        self.device = torch.device("cpu")
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        for name, zero in self.sums.items():
            setattr(self, name, zero.to(self.device, copy=True))

    def clone(self) -> Metric:
        """A copy that shares nothing."""
        return copy.deepcopy(self)

    def to(self, device: torch.device) -> None:
        """Move the sums."""
        self.fold()
        self.device = device
        for name in self.sums:
            setattr(self, name, getattr(self, name).to(device))

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take in a micro-batch; no host wait."""
        raise NotImplementedError

    def fold(self) -> None:
        """Add up what updates held back; nothing if they hold nothing."""

    def compute(self) -> Tensor:
        """The value of what was seen. Raises ValueError where there is none."""
        raise NotImplementedError


AnyMetric: TypeAlias = "Metric | torchmetrics.Metric"


def count() -> Tensor:
    """A sum of whole numbers: () int64."""
    return torch.zeros((), dtype=torch.int64)
