"""One of several classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from harness.data.source import Learner
from harness.errors import ConfigError
from harness.metrics.confusion import Confusion
from harness.metrics.errors import share_error
from harness.metrics.metric import AnyMetric
from harness.tasks.class_weights import BalancedWeights
from harness.tasks.labels import (
    check_label_smoothing,
    check_labels,
    cross_entropy_sum,
    is_item,
)
from harness.tasks.task import (
    ACCURACY,
    ERROR,
    BaseTask,
    Batch,
    Input,
    kind_of,
    widen,
)

if TYPE_CHECKING:
    import torchmetrics


_SHARE = replace(ACCURACY, has_chance=True)
_RATE = replace(_SHARE, has_error=True)


class Classification(BaseTask):
    """One of C classes for each target: outputs (B, C, ...) logits, targets (B, ...) integers in
    [0, C); each target is an item.

    The loss is the cross entropy (torch.nn.functional.cross_entropy, label smoothing as there).
    With `class_weights` (C values) an item's loss is multiplied by its class's weight, and the mean
    is still over the *number* of items, not over the sum of their weights as in torch's
    `reduction="mean"`: weights whose mean over the data is 1 keep the gradient's scale. "balanced"
    are such: N / (C n_c) for a class with n_c of the training split's N targets. A target equal to
    `ignore_index` is no item.

    Metrics: accuracy, balanced_accuracy (mean recall over the classes that occur among the targets)
    and f1 (macro, over the classes that occur among the targets or the predictions), all from the
    table `confusion` (C, C). The user's `metrics` get (probabilities (B, C, ...), targets).
    """

    def __init__(
        self,
        input: Input,
        target: str,
        metrics: Mapping[str, torchmetrics.Metric] | None = None,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Literal["balanced"] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            input,
            target,
            metrics,
            {"loss": ERROR, "accuracy": _RATE, "balanced_accuracy": _SHARE, "f1": _SHARE},
        )
        check_label_smoothing(label_smoothing)
        self._balanced = (
            BalancedWeights(target, ignore_index) if class_weights == "balanced" else None
        )
        self._weights: Tensor | None = None
        if isinstance(class_weights, str):
            if self._balanced is None:
                raise ConfigError(
                    f"class_weights: {class_weights!r} is neither balanced nor a list of weights."
                )
        elif class_weights is not None:
            if not all(math.isfinite(weight) and weight >= 0 for weight in class_weights):
                raise ConfigError(
                    f"class_weights: {list(class_weights)}: every weight must be finite and at "
                    "least 0."
                )
            self._weights = torch.tensor([float(weight) for weight in class_weights])
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.num_classes: int | None = None

    def learners(self) -> dict[str, Learner]:
        """What counts the classes, for balanced weights."""
        return {} if self._balanced is None else {"class_weights": self._balanced}

    def fit_to(self, outputs: Any) -> None:
        if not isinstance(outputs, Tensor) or outputs.dim() < 2 or outputs.shape[1] < 2:
            raise ConfigError(
                f"network: returns {kind_of(outputs)}; classification needs logits (B, C, ...) of "
                "C >= 2 classes."
            )
        self.num_classes = outputs.shape[1]
        # Without: only the shapes are wanted
        if self._balanced is not None and self._balanced.state()["counts"]:
            self._weights = torch.tensor(self._balanced.weights(self.num_classes))
        if self._weights is not None and len(self._weights) != self.num_classes:
            raise ConfigError(
                f"task.class_weights: {len(self._weights)} weights for {self.num_classes} classes. "
                "Give one for each class."
            )

    def check(self, batch: Batch) -> None:
        super().check(batch)
        check_labels(
            batch[self.target], self.target, self.num_classes, self.ignore_index, "class", "outputs"
        )

    def loss_sum(self, outputs: Any, batch: Batch) -> Tensor:
        assert self._balanced is None or self._weights is not None, (
            "the training split has to be observed before `fit_to`"
        )
        targets = batch[self.target]
        shape = outputs.shape
        if shape[:1] + shape[2:] != targets.shape:
            raise ConfigError(
                f"network: returns {kind_of(outputs)} for {kind_of(targets)} in {self.target!r}; "
                "classification takes logits (B, C, ...) for targets (B, ...), with the classes "
                "along the second axis. Move them there in the network; tokens (B, T, V) are for "
                "harness.tasks.LanguageModelling."
            )
        return self._cross_entropy(outputs, targets)

    def join(self, outputs: Sequence[Any], batches: Sequence[Batch]) -> tuple[Tensor, Batch] | None:
        shape = outputs[0].shape
        if len(shape) != 2 or any(one.shape != shape for one in outputs):
            return None
        return torch.cat(list(outputs)), {
            self.target: torch.cat([batch[self.target] for batch in batches])
        }

    def loss_sums(self, outputs: Tensor, batch: Batch, parts: int) -> Tensor:
        return self._cross_entropy(outputs, batch[self.target], parts)

    def _cross_entropy(self, outputs: Tensor, targets: Tensor, parts: int | None = None) -> Tensor:
        if self._weights is not None and self._weights.device != outputs.device:
            self._weights = self._weights.to(outputs.device)
        return cross_entropy_sum(
            outputs,
            targets.long(),
            self.ignore_index,
            self.label_smoothing,
            self._weights,
            parts,
        )

    def num_items(self, batch: Batch) -> Tensor | int:
        targets: Tensor = batch[self.target]
        if self.ignore_index is None and targets.dim() == 1:
            return len(targets)
        return is_item(targets, self.ignore_index).sum()

    def metrics(self) -> dict[str, AnyMetric]:
        if self.num_classes is None:
            raise ConfigError(
                "task: the number of classes is not known before the network's first forward pass "
                "(`fit_to`)."
            )
        return {"confusion": Confusion(self.num_classes), **self._extras()}

    def update(self, metrics: Mapping[str, AnyMetric], outputs: Any, batch: Batch) -> None:
        targets = batch[self.target].long()
        counted = None if self.ignore_index is None else targets != self.ignore_index
        metrics["confusion"].update(outputs.argmax(1), targets, counted)
        if self._extra:
            self._update_extras(metrics, widen(outputs).softmax(1), targets)

    def values(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        return {**confusion_values(computed["confusion"]), **super().values(computed)}

    def chance(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        table = computed["confusion"]
        majority = torch.zeros_like(table)
        majority[:, table.sum(1).argmax()] = table.sum(1)
        return confusion_values(majority)

    def standard_errors(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        table = computed["confusion"]
        return {"accuracy": share_error(int(table.diagonal().sum()), int(table.sum()))}

    def hits(self, outputs: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        targets = batch[self.target]
        counted = is_item(targets, self.ignore_index)
        right = (outputs.argmax(1) == targets) & counted
        return {"accuracy": (_by_sample(right), _by_sample(counted))}

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """`predicted`: (B, ...) class numbers; `probability`: (B, C, ...)."""
        return {"predicted": outputs.argmax(1), "probability": widen(outputs).softmax(1)}

    def targets_of(self) -> dict[str, str]:
        return dict.fromkeys(("predicted", "probability", "confusion"), self.target)


def _by_sample(flags: Tensor) -> Tensor:
    """(B, ...) -> (B,): how many are true."""
    return flags.reshape(len(flags), -1).sum(1)


def confusion_values(table: Tensor) -> dict[str, float]:
    """accuracy, balanced accuracy and macro F1 of a table (C, C) of counts [target][predicted]; NaN
    if it is empty. The definitions are scikit-learn's.
    """
    classes = range(len(table))
    targets, predicted = table.sum(1).tolist(), table.sum(0).tolist()
    right = table.diagonal().tolist()
    recalls = [right[index] / targets[index] for index in classes if targets[index]]
    f1 = [
        2 * right[index] / (targets[index] + predicted[index])
        for index in classes
        if targets[index] + predicted[index]
    ]
    total = sum(targets)
    return {
        "accuracy": sum(right) / total if total else math.nan,
        "balanced_accuracy": math.fsum(recalls) / len(recalls) if recalls else math.nan,
        "f1": math.fsum(f1) / len(f1) if f1 else math.nan,
    }
