"""A user's own loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from harness.errors import ConfigError, DataError, require_choice
from harness.metrics.metric import AnyMetric
from harness.stopping.verdict import MetricInfo
from harness.tasks.task import (
    BaseTask,
    Batch,
    Input,
    kind_of,
    map_tensors,
    require_tensor,
    widen,
)

if TYPE_CHECKING:
    import torchmetrics


class Supervised(BaseTask):
    """A user's loss, `loss(outputs, target)` by component; each sample is an item. For a list of
    targets the loss gets a dict of them.

    `reduction` says what the loss gives, and is read from the loss where it has an attribute of
    that name, as those of torch.nn have:

        "none"      numbers (B, ...): a sample's loss is the mean of its own
        "sum"       one number: the sum of the samples' losses
        "mean"      one number: the mean of the samples' losses. Each must weigh the same: a mean
                    over the weights of classes, or over targets that are not ignored, would make
                    the loss depend on `batch.micro_size`, and is refused
        "micro_batch"   one number for the micro-batch as a whole, for a loss that compares samples
                    with each other: it depends on `batch.micro_size`

    The user's `metrics` get (outputs, target). Outputs may be whatever the loss takes: a tensor, a
    dict of them as `harness.networks.Parallel` gives, a list, a tuple, a dataclass, or an object of
    the user's own.
    """

    def __init__(
        self,
        input: Input,
        target: str | Sequence[str],
        loss: Callable[..., Tensor],
        reduction: Literal["none", "sum", "mean", "micro_batch"] | None = None,
        metrics: Mapping[str, torchmetrics.Metric] | None = None,
    ) -> None:
        names = [target] if isinstance(target, str) else list(target)
        super().__init__(
            input, names[0], metrics, {"loss": MetricInfo(mode="min", lower=None, upper=None)}
        )
        stated = getattr(loss, "reduction", None)
        if reduction == "micro_batch" and stated == "mean":
            stated = None
        if reduction is not None and stated is not None and reduction != stated:
            raise ConfigError(
                f"reduction: {reduction!r}, but the loss has {stated!r}. Set it once, in the loss."
            )
        self.reduction = reduction or stated
        require_choice(
            "reduction",
            self.reduction,
            ("none", "sum", "mean", "micro_batch"),
            " State which of them the loss uses.",
        )
        weighs = isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and loss.weight is not None
        if self.reduction == "mean" and weighs:
            raise ConfigError(
                "loss: a mean over class weights divides by the weights of each micro-batch, and "
                "would depend on batch.micro_size. Give the loss reduction: none (or sum)."
            )
        if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
            raise ConfigError(
                "loss: has parameters, which would not be trained. Move them into the network."
            )
        self.loss = loss
        self._is_mean_checked = False
        self.targets = names
        self._several = not isinstance(target, str)

    def fit_to(self, outputs: Any) -> None:
        """Nothing to learn: any outputs that the loss can take."""

    def check(self, batch: Batch) -> None:
        super().check(batch)
        for name in self.targets:
            require_tensor(batch, name, "task.target")
        ignored = getattr(self.loss, "ignore_index", None)
        means = self.reduction == "mean" and ignored is not None and not self._several
        if means and bool((batch[self.target] == ignored).any()):
            raise DataError(
                f"{self.target}: has targets that are ignored ({ignored}), and the loss is a mean "
                "over the others, which would depend on batch.micro_size. Give the loss reduction: "
                "none (or sum), or use harness.tasks.Classification."
            )

    def loss_sum(self, outputs: Any, batch: Batch) -> Tensor:
        device_type = batch[self.target].device.type
        if isinstance(self.loss, nn.Module):
            self.loss.to(batch[self.target].device)  # its buffers, e.g. class weights
        with torch.autocast(device_type, enabled=False):
            loss = self.loss(widen(outputs), self._target(batch))
        size = len(batch[self.target])
        if self.reduction == "none":
            if loss.dim() == 0 or len(loss) != size:
                raise ConfigError(
                    f'task.loss: gave {kind_of(loss)} where reduction "none" means numbers '
                    f"({size}, ...). Set the reduction that it uses."
                )
            each = loss.flatten(1).mean(1) if loss.dim() > 1 else loss
            # As `summed` does; other reductions are the loss's own
            return each.sum() if torch.is_grad_enabled() else each.sum(dtype=torch.float64)
        if loss.dim() != 0:
            raise ConfigError(
                f"task.loss: gave {kind_of(loss)} where reduction {self.reduction!r} means one "
                "number. Set the reduction that it uses."
            )
        if self.reduction == "mean" and size > 1 and not self._is_mean_checked:
            self._check_mean(loss.detach(), outputs, batch)
        return loss if self.reduction == "sum" else loss * size

    def _check_mean(self, whole: Tensor, outputs: Any, batch: Batch) -> None:
        """Once: that the mean over a micro-batch is that over two pieces of it. The host waits.

        Raises ConfigError.
        """
        self._is_mean_checked = True
        loss, size = copy.deepcopy(self.loss), len(batch[self.target])
        total = 0.0
        with torch.no_grad(), torch.autocast(batch[self.target].device.type, enabled=False):
            for piece in (slice(0, 1), slice(1, size)):
                given = _cut(widen(outputs), piece), _cut(self._target(batch), piece)
                total += float(loss(*given)) * len(range(size)[piece])
        if not math.isclose(total / size, float(whole), rel_tol=1e-3, abs_tol=1e-5):
            raise ConfigError(
                f"task.loss: the mean over a micro-batch is {float(whole):.6g}, but "
                f"{total / size:.6g} in two pieces: samples do not weigh the same (class weights, "
                "ignored targets), or are compared with each other, and the loss would depend on "
                "batch.micro_size. Give the loss reduction: none (or sum), or say reduction: "
                "micro_batch if that is meant."
            )

    def num_items(self, batch: Batch) -> int:
        return len(batch[self.target])

    def metrics(self) -> dict[str, AnyMetric]:
        return self._extras()

    def update(self, metrics: Mapping[str, AnyMetric], outputs: Any, batch: Batch) -> None:
        self._update_extras(metrics, widen(outputs), self._target(batch))

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """`predicted`: the outputs (B, ...); one column for each tensor of several."""
        columns: dict[str, Tensor] = {}

        def collect(name: str, value: Any) -> None:
            if isinstance(value, Tensor):
                columns[name or "predicted"] = value
            elif is_dataclass(value):
                collect(name, {one.name: getattr(value, one.name) for one in fields(value)})
            elif isinstance(value, Mapping):
                for key, one in value.items():
                    collect(f"{name}.{key}".lstrip("."), one)
            elif isinstance(value, list | tuple):
                for index, one in enumerate(value):
                    collect(f"{name or 'predicted'}.{index}", one)

        collect("", widen(outputs))
        return columns

    def _target(self, batch: Batch) -> Any:
        return {name: batch[name] for name in self.targets} if self._several else batch[self.target]


def _cut(value: Any, rows: slice) -> Any:
    """Some samples of each tensor."""
    return map_tensors(lambda one: one[rows] if one.dim() else one, value)
