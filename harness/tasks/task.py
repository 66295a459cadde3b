"""What every task provides, and what ours share."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from harness import components
from harness.data.source import Learner
from harness.errors import ConfigError, DataError
from harness.metrics.metric import AnyMetric
from harness.stopping.verdict import MetricInfo

if TYPE_CHECKING:
    import torchmetrics

Batch = Mapping[str, Any]


class Task(Protocol):
    """What the loop, the evaluation and the prediction ask of a task; a user's own class by dotted
    path works like ours.
    """

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The network's outputs for a micro-batch: a tensor (B, ...), or a dict of them from
        several heads.
        """

    def loss_sum(self, outputs: Any, batch: Batch) -> Tensor:
        """The sum of the losses of all items: a scalar tensor with a gradient."""

    def join(self, outputs: Sequence[Any], batches: Sequence[Batch]) -> tuple[Tensor, Batch] | None:
        """Several micro-batches of an evaluation on the CPU as one of what `update` and `loss_sums`
        take; None if they cannot be joined. A task may lack this method.
        """

    def loss_sums(self, outputs: Tensor, batch: Batch, parts: int) -> Tensor:
        """Of what `join` made of that many micro-batches, to the bits of `loss_sum` for each:
        (parts,) float64. A task without `join` may lack this method.
        """

    def num_items(self, batch: Batch) -> Tensor | int:
        """How many items: a scalar int64 tensor on the batch's device; no host wait. A plain int
        where it follows from the number of samples alone: then ranks agree on it once, instead of
        summing at each step.
        """

    def learners(self) -> Mapping[str, Learner]:
        """What has to have seen the training split before `fit_to`, by name; a task of a user's own
        may lack this method.
        """

    def fit_to(self, outputs: Any) -> None:
        """Learn from a first forward pass what the network gives, e.g. how many classes.

        Raises ConfigError if the task cannot use it.
        """

    def check(self, batch: Batch) -> None:
        """Raise DataError for a micro-batch (on the CPU, in a loader's worker) that the task cannot
        learn from.
        """

    def check_input(self, batch: Batch) -> None:
        """The same for a micro-batch without targets, as a prediction has it."""

    def metrics(self) -> dict[str, AnyMetric]:
        """New, empty metrics by name, to be kept by `harness.metrics.IntervalMetrics`."""

    def update(self, metrics: Mapping[str, AnyMetric], outputs: Any, batch: Batch) -> None:
        """Take a micro-batch into the metrics; no host wait."""

    def values(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        """The scalars by which a training is judged, from what the metrics gave."""

    def chance(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        """What always predicting the most frequent class would give, of the metrics whose infos say
        `has_chance`; a task without such metrics may lack this method.
        """

    def standard_errors(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        """Those of the metrics whose infos say `has_error`; a task without such metrics may lack
        this method.
        """

    def hits(self, outputs: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Of the metrics that are shares of items, by name: how many items of each sample are
        right, and how many there are, (B,) int64; no host wait. With it, evaluations are compared
        in pairs; a task may lack this method.
        """

    def infos(self) -> dict[str, MetricInfo]:
        """Which way each value is better and how far it can go; "loss" is among them."""

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Columns (B, ...) for a table of predictions."""

    def targets_of(self) -> dict[str, str]:
        """Which target the columns of predictions and the tables of metrics speak of, by their
        names: that target's classes name theirs, and its unit is theirs. A task may lack this
        method.
        """


def known_metrics(task: Task, splits: Sequence[str]) -> dict[str, MetricInfo]:
    """What the stop settings may name: the task's metrics on each of the splits that are evaluated,
    by `split/name`.
    """
    infos = task.infos()
    if "loss" in infos:  # by micro-batches of the evaluation
        infos["loss"] = dataclasses.replace(infos["loss"], has_error=True)
    return {f"{split}/{name}": info for split in splits for name, info in infos.items()}


def metrics_of(spec: Mapping[str, Any], splits: Sequence[str]) -> dict[str, MetricInfo]:
    """The same of a task that is yet a component of a config; {} of one that does not tell. Raises
    ConfigError.
    """
    task = components.build(spec, "task")
    return known_metrics(task, splits) if hasattr(task, "infos") else {}


def targets_of(task: Task) -> Mapping[str, str]:
    """{column or table: target} of a task; {} of one that does not tell."""
    return task.targets_of() if hasattr(task, "targets_of") else {}


Input = str | Sequence[str] | Mapping[str, str]


ACCURACY = MetricInfo(mode="max", lower=0.0, upper=1.0)
ERROR = MetricInfo(mode="min", lower=0.0, upper=None)
# Metrics from which our tasks take their values
_TABLES = ("confusion", "tokens")


class BaseTask(Task):
    """What our tasks share: the network's input, the target's presence, the user's own metrics."""

    def __init__(
        self,
        input: Input,
        target: str,
        metrics: Mapping[str, torchmetrics.Metric] | None,
        own: Mapping[str, MetricInfo],
    ) -> None:
        self.input = input
        self.target = target
        self._extra = _single_metrics(metrics or {})
        self._own = dict(own)
        if self._extra:
            self._check_extras()

    def _check_extras(self) -> None:
        import torchmetrics

        for name, metric in self._extra.items():
            if not isinstance(metric, torchmetrics.Metric):
                raise ConfigError(
                    f"metrics.{name}: a {type(metric).__name__} is not a torchmetrics.Metric. "
                    "Give one by its _target_."
                )
            if name in self._own or name in _TABLES or not re.fullmatch(r"[A-Za-z]\w*", name):
                raise ConfigError(
                    f"metrics.{name}: taken, or not a single word. The tasks' own are "
                    f"{', '.join([*self._own, *_TABLES])}."
                )

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The network's outputs; of an output object as `transformers` gives it, its logits."""
        if isinstance(self.input, str):
            outputs = model(batch[self.input])
        elif isinstance(self.input, Mapping):
            outputs = model(**{argument: batch[key] for argument, key in self.input.items()})
        else:
            outputs = model({key: batch[key] for key in self.input})
        return getattr(outputs, "logits", outputs)

    def learners(self) -> Mapping[str, Learner]:
        return {}

    def check_input(self, batch: Batch) -> None:
        for name in input_names(self.input):
            require_tensor(batch, name, "task.input")

    def check(self, batch: Batch) -> None:
        self.check_input(batch)
        require_tensor(batch, self.target, "task.target")

    def values(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: float(value) for name, value in computed.items() if value.dim() == 0}

    def chance(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def standard_errors(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def targets_of(self) -> dict[str, str]:
        return {}

    def hits(self, outputs: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        return {}

    def infos(self) -> dict[str, MetricInfo]:
        """The task's own, and the user's metrics that say which way is better; the others are only
        recorded.
        """
        given = {
            name: _info(metric)
            for name, metric in self._extra.items()
            if metric.higher_is_better is not None
        }
        return {**self._own, **given}

    def _extras(self) -> dict[str, torchmetrics.Metric]:
        return {name: metric.clone() for name, metric in self._extra.items()}

    def _update_extras(
        self, metrics: Mapping[str, AnyMetric], outputs: Tensor, targets: Tensor
    ) -> None:
        for name in self._extra:
            metrics[name].update(outputs, targets)


def _single_metrics(metrics: Mapping[str, Any]) -> dict[str, torchmetrics.Metric]:
    """Each of torchmetrics' collections as its metrics, by `<name>_<its name>`."""
    if not metrics:
        return {}
    import torchmetrics

    singles: dict[str, torchmetrics.Metric] = {}
    for name, metric in metrics.items():
        found = {name: metric}
        if isinstance(metric, torchmetrics.MetricCollection):
            found = {f"{name}_{key}": one for key, one in metric.items(copy_state=False)}
        twice = found.keys() & singles.keys()
        if twice:
            raise ConfigError(
                f"metrics.{name}: {', '.join(sorted(twice))} is the name of another metric as "
                "well. Rename one of them."
            )
        singles |= found
    return singles


def input_names(input: Input) -> Sequence[str]:
    """What a network is given of a batch, by its names there."""
    if isinstance(input, str):
        return [input]
    return list(input.values()) if isinstance(input, Mapping) else input


def map_tensors(change: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    """Outputs with `change` applied to each tensor in them: in mappings, lists, tuples and
    dataclasses, as the outputs of transformers are. Other things stay as they are.
    """
    if isinstance(outputs, Tensor):
        return change(outputs)
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        copied = copy.copy(outputs)
        for one in dataclasses.fields(outputs):
            value = map_tensors(change, getattr(outputs, one.name))
            try:
                setattr(copied, one.name, value)
            except dataclasses.FrozenInstanceError:
                object.__setattr__(copied, one.name, value)
        return copied
    if isinstance(outputs, MutableMapping):
        changed = copy.copy(outputs)
        for name, value in outputs.items():
            changed[name] = map_tensors(change, value)
        return changed
    if isinstance(outputs, Mapping):
        return {name: map_tensors(change, value) for name, value in outputs.items()}
    if isinstance(outputs, list | tuple):
        values = [map_tensors(change, value) for value in outputs]
        named = hasattr(outputs, "_fields")  # a named tuple
        return type(outputs)(*values) if named else type(outputs)(values)
    return outputs


def detach(outputs: Any) -> Any:
    """Outputs without their graph."""
    return map_tensors(Tensor.detach, outputs)


def _info(metric: torchmetrics.Metric) -> MetricInfo:
    bounds = [
        None if bound is None else float(bound)
        for bound in (metric.plot_lower_bound, metric.plot_upper_bound)
    ]
    return MetricInfo(
        mode="max" if metric.higher_is_better else "min", lower=bounds[0], upper=bounds[1]
    )


def require_tensor(batch: Batch, name: str, setting: str) -> None:
    """Raise DataError unless the batch has a tensor of this name; `setting` is the one that asks
    for it.
    """
    if name not in batch:
        raise DataError(
            f"{setting}: samples have no {name!r}, they have {', '.join(sorted(batch))}. Use one "
            "of these, or add it with a treatment."
        )
    if not isinstance(batch[name], Tensor):
        raise DataError(
            f"{setting}: {name!r} is not a numeric array but e.g. {str(batch[name][0])[:40]!r}. "
            "Encode it with a treatment."
        )


def widen(outputs: Any) -> Any:
    """In float32 at least: losses and probabilities in half precision would lose small
    differences.
    """
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
    return map_tensors(widen, outputs)


def sum_loss(
    loss: Callable[..., Tensor],
    outputs: Tensor,
    targets: Tensor,
    parts: int | None = None,
    **options: Any,
) -> Tensor:
    """The sum of a loss of torch's over all items; where no gradient is taken, in float64, so that
    an evaluation does not depend on the size of its micro-batches.

    parts: of how many micro-batches of equal shape these are; their sums (parts,) are given then,
    without a gradient.
    """
    if parts is None and torch.is_grad_enabled():
        return loss(outputs, targets, reduction="sum", **options)
    losses = loss(outputs, targets, reduction="none", **options)
    if parts is None:
        return losses.sum(dtype=torch.float64)
    return losses.view(parts, -1).sum(1, dtype=torch.float64)


def kind_of(value: Any) -> str:
    """A value's kind, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping):
        items = ", ".join(f"{name}: {kind_of(one)}" for name, one in value.items())
        return f"a {type(value).__name__} of {items or 'nothing'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(map(kind_of, value)) or 'nothing'}"
    return "None" if value is None else f"a {type(value).__name__}"
