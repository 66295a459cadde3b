"""Metrics of an interval: ours or torchmetrics' in, the same bits out on any number of ranks.

An update never waits for the device.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from harness.errors import CheckpointError, ConfigError, DataError
from harness.metrics.metric import AnyMetric, Metric
from harness.metrics.states import states_of
from harness.ranks.ranks import Ranks


class Updates(Protocol):
    """What turns the outputs of a task into metric updates."""

    def update(
        self, metrics: Mapping[str, AnyMetric], outputs: Any, batch: Mapping[str, Any]
    ) -> None: ...


class IntervalMetrics:
    """Metrics over the micro-batches since the last `reset`, on all ranks together.

    `number` orders micro-batches over all ranks.

    Raises ConfigError for a metric whose states cannot be added up exactly.
    """

    def __init__(self, metrics: Mapping[str, AnyMetric]) -> None:
        self._blank = {name: _blank(name, metric) for name, metric in metrics.items()}
        self._states = {name: states_of(name, metric) for name, metric in self._blank.items()}
        # Those that hold back what they see are asked for their sums where these are wanted
        self._holding = [
            name
            for name, metric in self._blank.items()
            if isinstance(metric, Metric) and metric.holds
        ]
        self.holds_all = len(self._holding) == len(metrics)
        self._eager = [name for name in metrics if name not in self._holding]
        self._live: dict[str, AnyMetric] = {}
        self._device = torch.device("cpu")
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self._live = {name: metric.clone() for name, metric in self._blank.items()}
        self._device = torch.device("cpu")
        for states in self._states.values():
            for state in states:
                state.clear()

    def update(self, task: Updates, outputs: Any, batch: Mapping[str, Any], number: int) -> None:
        """Take in one micro-batch; no host wait, no collective."""
        for value in batch.values():
            if isinstance(value, Tensor):
                device = value.device
                break
        if self._device != device:
            self._device = device
            for metric in self._live.values():
                metric.to(device)
        for name in self._eager:
            for state in self._states[name]:
                state.begin(self._live[name], device)
        task.update(self._live, outputs, batch)
        for name in self._eager:
            for state in self._states[name]:
                state.take(self._live[name], number)

    def _fold(self) -> None:
        for name in self._holding:
            metric = self._live[name]
            assert isinstance(metric, Metric)
            metric.fold()
            for state in self._states[name]:
                state.take(metric, 0)

    def compute(self, ranks: Ranks, *, or_nan: bool = False) -> dict[str, Tensor]:
        """What each metric gives, on the CPU; one that gives a dict is spread as `<metric>_<key>`.
        Called by every rank; the host waits.

        Raises DataError if a metric cannot be computed from what was seen, or with `or_nan` lets it
        be NaN; ConfigError if it gives anything other than tensors.
        """
        self._fold()
        computed: dict[str, Tensor] = {}
        for name, blank in self._blank.items():
            metric = blank.clone()
            for state in self._states[name]:
                setattr(metric, state.name, state.merge(ranks))
            try:
                value = _value(metric)
            except (ValueError, RuntimeError, IndexError) as error:
                if not or_nan:
                    reason = str(error).rstrip(". ")
                    raise DataError(
                        f"metric {name}: cannot be computed: {reason}. Remove it from "
                        "task.metrics, or use a split for which it is defined."
                    ) from error
                value = torch.tensor(torch.nan)
            tensors = (
                {f"{name}_{key}": tensor for key, tensor in value.items()}
                if isinstance(value, Mapping)
                else {name: value}
            )
            for key, tensor in tensors.items():
                if not isinstance(tensor, Tensor):
                    raise ConfigError(
                        f"task.metrics.{name}: gives a {type(tensor).__name__}; only metrics that "
                        "return tensors can be used."
                    )
                computed[key] = tensor.squeeze() if tensor.numel() == 1 else tensor
        return computed

    def state(self, ranks: Ranks) -> dict[str, Any]:
        """JSON, with exact floats: the whole interval over all ranks. Called by every rank; the
        host waits.
        """
        self._fold()
        return {
            name: {state.name: state.pack(ranks) for state in states}
            for name, states in self._states.items()
        }

    def restore(self, stored: Mapping[str, Mapping[str, Any]], rank: int) -> None:
        """Go on from what `state` gave, on any number of ranks: rank 0 takes it all, the others
        start empty. Raises CheckpointError.
        """
        self.reset()
        have = {name: sorted(states) for name, states in stored.items()}
        want = {
            name: sorted(state.name for state in states) for name, states in self._states.items()
        }
        if have != want:
            raise CheckpointError(
                f"train_metrics: the checkpoint holds the states {have}, the task needs {want}. "
                "Give it the metrics it had."
            )
        if rank == 0:
            for name, states in self._states.items():
                for state in states:
                    state.restore(stored[name][state.name], self._live[name])


def _value(metric: AnyMetric) -> Any:
    if isinstance(metric, Metric):
        return metric.compute()
    with _undefined_raises():
        # The class's own method: the instance's would gather over ranks by itself, a second time.
        return type(metric).compute(metric)


# What torchmetrics says where it gives 0 or 1 for what is not defined, e.g. the area under the
# curve of a class that does not occur
_UNDEFINED = r"No (positive|negative) samples (found )?in target"


@contextmanager
def _undefined_raises() -> Iterator[None]:
    """Raise ValueError, on every rank, where torchmetrics warns that a value has no meaning."""
    from torchmetrics.utilities.prints import rank_zero_only

    rank, rank_zero_only.rank = rank_zero_only.rank, 0  # it warns on rank 0 alone
    try:
        with warnings.catch_warnings():
            if rank != 0:
                warnings.simplefilter("ignore")
            warnings.filterwarnings("error", _UNDEFINED)
            yield
    except UserWarning as error:
        if re.match(_UNDEFINED, str(error)) is None:
            raise
        raise ValueError(str(error)) from error
    finally:
        rank_zero_only.rank = rank


def _blank(name: str, metric: AnyMetric) -> AnyMetric:
    """An unused copy of a metric on the CPU that does not look at values on the device."""
    blank = metric.clone()
    blank.to(torch.device("cpu"))
    blank.reset()
    if isinstance(blank, Metric):
        return blank
    import torchmetrics

    if hasattr(blank, "validate_args"):
        # Task.check has looked at the values, in a worker: here the host would wait for the GPU
        blank.validate_args = False
    if not blank._defaults or any(
        isinstance(one, torchmetrics.Metric) for one in blank.modules() if one is not blank
    ):
        raise ConfigError(
            f"task.metrics.{name}: {type(metric).__name__} keeps no state of its own (a wrapper?). "
            "Use the wrapped metric itself."
        )
    return blank
