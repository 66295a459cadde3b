"""The losses of the training steps, kept on the device until a log point, summed exactly over slots
and ranks.

A step's loss is the exactly rounded sum (`math.fsum`) of its micro-batches' float32 loss sums over
its number of items, so that it has the same bits on any number of ranks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.metrics.exact import ExactSum, exact_sum
from harness.ranks.ranks import Ranks
from harness.stopping.verdict import LoggedSteps


@dataclass(frozen=True)
class StepLoss:
    """What is known of one step at a log point."""

    loss_sum: float
    num_items: int
    grad_norm: float


class LossWindow:
    """Collects on the device, reads at log points.

    `pending`: the steps since the last logged record. The sum since the last evaluation is kept
    separately.
    `num_skipped`: the steps so far that fp16's scaler skipped.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._sums: list[list[Tensor]] = []
        self._items: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._skipped: list[bool] = []
        self.pending: list[StepLoss] = []
        self._interval = ExactSum()
        self._interval_items = 0
        self.num_skipped = 0

    def add(
        self, loss_sums: Sequence[Tensor], num_items: Tensor, grad_norm: Tensor, skipped: bool
    ) -> None:
        """Keep one step's values; no host wait."""
        self._sums.append(list(loss_sums))
        self._items.append(num_items)
        self._norms.append(grad_norm)
        self._skipped.append(skipped)

    def has_unread(self) -> bool:
        """Whether there are steps since the last read."""
        return bool(self._sums)

    def read(self, step: int) -> LoggedSteps:
        """All steps up to `step` since the last read, with the lowest rank that brought a
        non-finite loss. The host waits. Called by every rank.
        """
        count = len(self._sums)
        first = step - count + 1
        if count == 0:
            return LoggedSteps(first_step=first, losses=[], grad_norms=[], skipped=[], offenders={})
        slots = torch.stack([torch.stack(sums) for sums in self._sums])
        mine = torch.cat([slots.double(), torch.stack(self._norms).double()[:, None]], dim=1)
        gathered = self._ranks.gather_rows(mine)
        items = torch.stack(self._items).tolist()
        norms = gathered[0][:, -1].tolist()
        by_rank = [rows[:, :-1] for rows in gathered]  # R x (steps, slots)
        every = torch.cat(by_rank, dim=1)  # (steps, slots of all ranks)
        offenders = {
            first + index: next(
                rank for rank, rows in enumerate(by_rank) if not rows[index].isfinite().all()
            )
            for index in (~every.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
        }
        steps = [
            StepLoss(exact_sum(values), int(count), norm)
            for values, count, norm in zip(every.tolist(), items, norms, strict=True)
        ]
        skipped = self._skipped
        self._sums, self._items, self._norms, self._skipped = [], [], [], []
        self.num_skipped += sum(skipped)
        # A step that the scaler skipped changed nothing
        taken = [one for one, skip in zip(steps, skipped, strict=True) if not skip]
        self.pending += taken
        for one in taken:
            self._interval.add(one.loss_sum)
            self._interval_items += one.num_items
        return LoggedSteps(
            first_step=first,
            losses=[mean_loss([one]) for one in steps],
            grad_norms=[one.grad_norm for one in steps],
            skipped=skipped,
            offenders=offenders,
        )

    def take_pending(self) -> list[StepLoss]:
        """The steps since the last call, for a log record."""
        taken, self.pending = self.pending, []
        return taken

    def take_interval(self, *, reset: bool = True) -> float | None:
        """Mean loss over all items since the last reset; None if there were none, as where fp16's
        scaler skipped every step.
        """
        mean = self._interval.value() / self._interval_items if self._interval_items else None
        if reset:
            self._interval, self._interval_items = ExactSum(), 0
        return mean

    def state(self) -> dict[str, Any]:
        """JSON: what was read and not yet taken. Request after `read`."""
        pending = [[one.loss_sum, one.num_items, one.grad_norm] for one in self.pending]
        return {
            "pending": pending,
            "interval": self._interval.partials,
            "interval_items": self._interval_items,
            "num_skipped": self.num_skipped,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.pending = [StepLoss(*row) for row in state["pending"]]
        self._interval, self._interval_items = ExactSum(state["interval"]), state["interval_items"]
        self.num_skipped = state.get("num_skipped", 0)


def mean_loss(steps: Sequence[StepLoss]) -> float:
    """Mean over all items of some steps; NaN if there were none."""
    items = sum(one.num_items for one in steps)
    return exact_sum([one.loss_sum for one in steps]) / items if items else math.nan
