"""Several tasks at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from harness.data.source import Learner
from harness.errors import ConfigError
from harness.metrics.metric import AnyMetric
from harness.stopping.verdict import MetricInfo
from harness.tasks.task import BaseTask, Batch, kind_of

T = TypeVar("T")


class Joint:
    """A task for each of a network's heads: outputs are {head: its outputs}, as
    `harness.networks.Parallel` gives them. Each sample is an item.

    The loss of a sample is the sum over heads of `weights` (1 where not given) times that head's
    loss on it, itself the sum over the head's items in the sample: an ignored target adds nothing.
    All heads name the same input. Metrics are the heads' own, called `<head>_<metric>`.
    """

    def __init__(
        self, heads: Mapping[str, BaseTask], weights: Mapping[str, float] | None = None
    ) -> None:
        if not heads:
            raise ConfigError(
                "heads: none. Give a task for each head of the network, by the head's name."
            )
        for name, task in heads.items():
            if not isinstance(task, BaseTask):
                raise ConfigError(
                    f"heads.{name}: a {type(task).__name__} is not a task of harness.tasks."
                )
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name):
                raise ConfigError(
                    f"heads.{name}: use letters and digits only, because metrics are "
                    "named <head>_<metric>."
                )
        inputs = {str(task.input) for task in heads.values()}
        if len(inputs) > 1:
            raise ConfigError(
                f"heads: have the inputs {', '.join(sorted(inputs))}. Give all the same: there is "
                "one forward pass."
            )
        unknown = set(weights or {}) - set(heads)
        if unknown:
            raise ConfigError(
                f"weights: {', '.join(sorted(unknown))}: no such head; the heads are "
                f"{', '.join(heads)}."
            )
        self.heads = dict(heads)
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in heads}
        self._first = next(iter(self.heads.values()))

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        return self._first.forward(model, batch)

    def loss_sum(self, outputs: Any, batch: Batch) -> Tensor:
        losses = [
            self.weights[name] * task.loss_sum(outputs[name], batch)
            for name, task in self.heads.items()
        ]
        return torch.stack(losses).sum()

    def num_items(self, batch: Batch) -> int:
        return len(batch[self._first.target])

    def learners(self) -> dict[str, Learner]:
        return {
            f"{name}_{learner}": value
            for name, task in self.heads.items()
            for learner, value in task.learners().items()
        }

    def fit_to(self, outputs: Any) -> None:
        if not isinstance(outputs, Mapping) or outputs.keys() != self.heads.keys():
            given = (
                f"heads {', '.join(outputs)}" if isinstance(outputs, Mapping) else kind_of(outputs)
            )
            raise ConfigError(
                f"network: returns {given}; task.heads are {', '.join(self.heads)}. End it with a "
                "harness.networks.Parallel of those."
            )
        for name, task in self.heads.items():
            task.fit_to(outputs[name])

    def check(self, batch: Batch) -> None:
        for task in self.heads.values():
            task.check(batch)

    def check_input(self, batch: Batch) -> None:
        self._first.check_input(batch)

    def metrics(self) -> dict[str, AnyMetric]:
        return {
            f"{name}_{metric}": value
            for name, task in self.heads.items()
            for metric, value in task.metrics().items()
        }

    def update(self, metrics: Mapping[str, AnyMetric], outputs: Any, batch: Batch) -> None:
        for name, task in self.heads.items():
            task.update(_of(name, metrics), outputs[name], batch)

    def values(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        return {
            f"{name}_{metric}": value
            for name, task in self.heads.items()
            for metric, value in task.values(_of(name, computed)).items()
        }

    def chance(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        return {
            f"{name}_{metric}": value
            for name, task in self.heads.items()
            for metric, value in task.chance(_of(name, computed)).items()
        }

    def standard_errors(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        return {
            f"{name}_{metric}": value
            for name, task in self.heads.items()
            for metric, value in task.standard_errors(_of(name, computed)).items()
        }

    def hits(self, outputs: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            f"{name}_{metric}": counts
            for name, task in self.heads.items()
            for metric, counts in task.hits(outputs[name], batch).items()
        }

    def infos(self) -> dict[str, MetricInfo]:
        infos = [(name, task.infos()) for name, task in self.heads.items()]
        own = {
            f"{name}_{metric}": info
            for name, given in infos
            for metric, info in given.items()
            if metric != "loss"
        }
        bounded = (
            all(given["loss"].lower == 0 for _, given in infos) and min(self.weights.values()) >= 0
        )
        return {"loss": MetricInfo(mode="min", lower=0.0 if bounded else None, upper=None), **own}

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The heads' columns, called `<head>_<column>`."""
        return {
            f"{name}_{column}": value
            for name, task in self.heads.items()
            for column, value in task.predictions(outputs[name], batch).items()
        }

    def targets_of(self) -> dict[str, str]:
        return {
            f"{name}_{column}": target
            for name, task in self.heads.items()
            for column, target in task.targets_of().items()
        }


def _of(head: str, values: Mapping[str, T]) -> dict[str, T]:
    return {
        name.removeprefix(f"{head}_"): value
        for name, value in values.items()
        if name.startswith(f"{head}_")
    }
