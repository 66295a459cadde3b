"""Numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from harness.errors import ConfigError, DataError, require_choice
from harness.metrics.metric import AnyMetric
from harness.metrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score
from harness.stopping.verdict import MetricInfo
from harness.tasks.task import (
    ERROR,
    BaseTask,
    Batch,
    Input,
    kind_of,
    sum_loss,
    widen,
)

if TYPE_CHECKING:
    import torchmetrics


class Regression(BaseTask):
    """Numbers: outputs and targets (B, ...) of the same shape, axes of length 1 aside; each number
    is an item.

    `loss`: the mean squared error, the mean absolute error, or Huber's loss with `delta`. Metrics:
    mse, mae, and r2 (the coefficient of determination, averaged over outputs). The user's `metrics`
    get (outputs, targets), both (B,) or (B, D).
    """

    def __init__(
        self,
        input: Input,
        target: str,
        metrics: Mapping[str, torchmetrics.Metric] | None = None,
        loss: Literal["mse", "mae", "huber"] = "mse",
        delta: float = 1.0,
    ) -> None:
        super().__init__(
            input,
            target,
            metrics,
            {
                "loss": ERROR,
                "mse": ERROR,
                "mae": ERROR,
                "r2": MetricInfo(mode="max", lower=None, upper=1.0),
            },
        )
        hint = " For another loss use harness.tasks.Supervised."
        require_choice("loss", loss, ("mse", "mae", "huber"), hint)
        if not delta > 0:
            raise ConfigError(f"delta: {delta}: must be above 0.")
        self.loss = loss
        self.delta = delta
        self._shape: list[int] | None = None  # of one sample's output, without axes of length 1

    def fit_to(self, outputs: Any) -> None:
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            raise ConfigError(
                f"network: returns {kind_of(outputs)}; regression needs a tensor (B, ...) of "
                "floating-point numbers."
            )
        self._shape = _long_axes(outputs)

    def check(self, batch: Batch) -> None:
        super().check(batch)
        targets = batch[self.target]
        if targets.dtype == torch.bool or targets.is_complex():
            raise DataError(
                f"{self.target}: {targets.dtype} where a regression needs numbers. Convert it with "
                "a treatment, or use a Classification."
            )
        if self._shape is not None and _long_axes(targets) != self._shape:
            shape = ", ".join(map(str, ["B", *self._shape]))
            raise DataError(
                f"{self.target}: targets {tuple(targets.shape)} do not fit the network's outputs "
                f"({shape}). Change its last layer."
            )
        bad = ~targets.double().isfinite()
        if bad.any():
            raise DataError(
                f"{self.target}: {int(bad.sum())} of {bad.numel()} targets are NaN or infinite. "
                "Remove those samples."
            )

    def loss_sum(self, outputs: Any, batch: Batch) -> Tensor:
        predicted = widen(outputs)
        targets = batch[self.target].to(predicted.dtype)
        predicted = predicted.reshape(targets.shape)
        if self.loss == "huber":
            return sum_loss(nn.functional.huber_loss, predicted, targets, delta=self.delta)
        loss = nn.functional.mse_loss if self.loss == "mse" else nn.functional.l1_loss
        return sum_loss(loss, predicted, targets)

    def num_items(self, batch: Batch) -> int:
        return int(batch[self.target].numel())  # `check` holds targets to one shape

    def metrics(self) -> dict[str, AnyMetric]:
        return {
            "mse": MeanSquaredError(),
            "mae": MeanAbsoluteError(),
            "r2": R2Score(),
            **self._extras(),
        }

    def update(self, metrics: Mapping[str, AnyMetric], outputs: Any, batch: Batch) -> None:
        targets = _by_output(batch[self.target])
        predicted = outputs.reshape(targets.shape).contiguous()
        for name in ("mse", "mae", "r2"):
            metrics[name].update(predicted.double(), targets.double())
        self._update_extras(metrics, widen(predicted), targets.to(widen(predicted).dtype))

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """`predicted`: the outputs (B, ...)."""
        return {"predicted": widen(outputs)}

    def targets_of(self) -> dict[str, str]:
        return {"predicted": self.target}


def _long_axes(values: Tensor) -> list[int]:
    return [length for length in values.shape[1:] if length != 1]


def _by_output(values: Tensor) -> Tensor:
    """(B, ...) -> (B,) or (B, D)."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    return flat.squeeze(1) if flat.shape[1] == 1 else flat
