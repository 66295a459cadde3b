"""How the states of metrics are kept between updates and brought together over ranks, so that the
order of additions cannot matter.

Integer sums add up in place on the device; floating-point sums are kept as one summand a
micro-batch and added without rounding (Shewchuk, "Adaptive precision floating-point arithmetic",
1997); rows ("cat" states) are put in the order of their micro-batches.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from harness.errors import CheckpointError, ConfigError
from harness.metrics.exact import ExactSum, exact_sum
from harness.metrics.metric import AnyMetric, Metric
from harness.ranks.ranks import Ranks

if TYPE_CHECKING:
    import torchmetrics


class State(Protocol):
    """How one state of a metric is kept between updates and brought together over ranks."""

    name: str

    def clear(self) -> None: ...
    def begin(self, metric: AnyMetric, device: torch.device) -> None: ...
    def take(self, metric: AnyMetric, number: int) -> None: ...
    def merge(self, ranks: Ranks) -> Any: ...
    def pack(self, ranks: Ranks) -> Any: ...
    def restore(self, stored: Any, metric: AnyMetric) -> None: ...


class _Count:
    """An integer sum: stays in the metric."""

    def __init__(self, name: str, default: Tensor) -> None:
        self.name = name
        self._default = default
        self._sum = default

    def clear(self) -> None:
        self._sum = self._default

    def begin(self, metric: AnyMetric, device: torch.device) -> None:
        """Nothing to do: the metric goes on counting."""

    def take(self, metric: AnyMetric, number: int) -> None:
        self._sum = getattr(metric, self.name)
        if self._sum.is_floating_point() or self._sum.shape != self._default.shape:
            raise ConfigError(
                f"task.metrics: {type(metric).__name__}.{self.name} began as integers "
                f"{tuple(self._default.shape)} and became "
                f"{self._sum.dtype} {tuple(self._sum.shape)}: it cannot be summed exactly. Use "
                "another metric."
            )

    def merge(self, ranks: Ranks) -> Tensor:
        return (
            torch.stack(ranks.gather_rows(self._sum.to(torch.int64).reshape(1, -1)))
            .sum(0)
            .view(self._sum.shape)
        )

    def pack(self, ranks: Ranks) -> dict[str, Any]:
        total = self.merge(ranks)
        return {"shape": list(total.shape), "values": total.flatten().tolist()}

    def restore(self, stored: Any, metric: AnyMetric) -> None:
        self._sum = torch.tensor(stored["values"], dtype=torch.int64).view(stored["shape"])
        setattr(metric, self.name, self._sum.to(metric.device))


class _Sum:
    """A floating-point sum: one summand a micro-batch, in float64, added up without rounding
    whenever it is asked for.
    """

    def __init__(self, name: str, default: Tensor) -> None:
        self.name = name
        self._zero = default.double()
        self._summands: list[Tensor] = []
        self._carried = self._no_rows()  # (n, ...) from before a restore

    def clear(self) -> None:
        self._summands = []
        self._carried = self._no_rows()

    def begin(self, metric: AnyMetric, device: torch.device) -> None:
        setattr(metric, self.name, torch.zeros_like(self._zero, device=device))

    def take(self, metric: AnyMetric, number: int) -> None:
        summand = getattr(metric, self.name)
        if self._summands and summand.shape != self._summands[0].shape:
            raise ConfigError(
                f"task.metrics: {type(metric).__name__}.{self.name} has the shape "
                f"{tuple(self._summands[0].shape)} in one micro-batch and "
                f"{tuple(summand.shape)} in another: it cannot be summed. Use another metric."
            )
        self._summands.append(summand)

    def merge(self, ranks: Ranks) -> Tensor:
        shape, columns = self._gather(ranks)
        return torch.tensor([exact_sum(column) for column in columns], dtype=torch.float64).view(
            shape
        )

    def pack(self, ranks: Ranks) -> dict[str, Any]:
        """Each value as a few summands whose sum it is to the last bit, so that more can be added
        after a restore.
        """
        shape, columns = self._gather(ranks)
        return {"shape": shape, "values": [_condense(column) for column in columns]}

    def restore(self, stored: Any, metric: AnyMetric) -> None:
        columns = stored["values"]
        rows = torch.zeros(max(map(len, columns), default=0), len(columns), dtype=torch.float64)
        for index, column in enumerate(columns):
            rows[: len(column), index] = torch.tensor(column, dtype=torch.float64)
        self._carried = rows.view(-1, *stored["shape"])

    def _no_rows(self) -> Tensor:
        return torch.zeros(0, *self._zero.shape, dtype=torch.float64)

    def _gather(self, ranks: Ranks) -> tuple[list[int], list[list[float]]]:
        """The state's shape, which it may have found only in its first update, and for each of its
        values all summands of all ranks.
        """
        seen = [torch.stack(self._summands).double().cpu()] if self._summands else []
        chunks = [chunk for chunk in (self._carried, *seen) if len(chunk)]
        shapes = [
            shape
            for held in ranks.gather([list(chunk.shape[1:]) for chunk in chunks])
            for shape in held
        ]
        shape = shapes[0] if shapes else list(self._zero.shape)
        if any(other != shape for other in shapes):
            raise ConfigError(
                f"task.metrics: the state {self.name} has the shapes {shapes} on different ranks: "
                "it cannot be summed. Use another metric."
            )
        rows = torch.cat(
            ranks.gather_rows(torch.cat([torch.zeros(0, *shape, dtype=torch.float64), *chunks]))
        )
        return shape, rows.reshape(len(rows), math.prod(shape)).T.tolist()


class _Rows:
    """A "cat" state: the rows of each micro-batch, brought into the order of `number`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._rows: list[tuple[int, Tensor]] = []

    def clear(self) -> None:
        self._rows = []

    def begin(self, metric: AnyMetric, device: torch.device) -> None:
        setattr(metric, self.name, [])

    def take(self, metric: AnyMetric, number: int) -> None:
        from torchmetrics.utilities.data import dim_zero_cat

        found = getattr(metric, self.name)
        if isinstance(found, Tensor) or found:
            self._rows.append((number, dim_zero_cat(found)))

    def merge(self, ranks: Ranks) -> list[Tensor]:
        _, _, rows = self._gather(ranks)
        return [rows] if len(rows) else []

    def pack(self, ranks: Ranks) -> dict[str, Any]:
        numbers, counts, rows = self._gather(ranks)
        # There may be millions: as decimal text they would take seconds
        packed = base64.b64encode(_as_bytes(rows).numpy().tobytes()).decode()
        return {
            "numbers": numbers,
            "counts": counts,
            "dtype": str(rows.dtype),
            "shape": list(rows.shape[1:]),
            "base64": packed,
        }

    def restore(self, stored: Any, metric: AnyMetric) -> None:
        if not stored["numbers"]:
            return
        data = torch.frombuffer(bytearray(base64.b64decode(stored["base64"])), dtype=torch.uint8)
        rows = _from_bytes(data.view(sum(stored["counts"]), -1), stored["dtype"], stored["shape"])
        self._rows = list(zip(stored["numbers"], torch.split(rows, stored["counts"]), strict=True))

    def _gather(self, ranks: Ranks) -> tuple[list[int], list[int], Tensor]:
        """(numbers, rows of each, all rows) over all ranks, in the order of numbers.

        Bytes travel, so that any dtype can.
        """
        held = [rows.cpu() for _, rows in self._rows]
        layout: list[Any] = [
            [number, len(rows), str(rows.dtype), list(rows.shape[1:])]
            for number, rows in self._rows
        ]
        layouts = ranks.gather(layout)
        # A rank without rows learns from the others what a row looks like.
        dtype, shape = next(
            ((kind, form) for layout in layouts for _, _, kind, form in layout),
            ("torch.float32", []),
        )
        none = torch.zeros(0, *shape, dtype=_dtype(dtype))
        chunks = ranks.gather_rows(_as_bytes(torch.cat(held) if held else none))
        blocks: list[tuple[int, Tensor]] = []
        for layout, chunk in zip(layouts, chunks, strict=True):
            rows = torch.split(
                _from_bytes(chunk, dtype, shape), [count for _, count, _, _ in layout]
            )
            blocks += zip([number for number, _, _, _ in layout], rows, strict=True)
        blocks.sort(key=lambda block: block[0])
        return (
            [number for number, _ in blocks],
            [len(rows) for _, rows in blocks],
            torch.cat([none, *(rows for _, rows in blocks)]),
        )


def states_of(name: str, metric: AnyMetric) -> Sequence[State]:
    """How to keep each state of a metric.

    Raises ConfigError for one that cannot be brought together exactly.
    """
    if isinstance(metric, Metric):
        return [_sum_state(state, zero) for state, zero in metric.sums.items()]
    return [_state(name, metric, state, default) for state, default in metric._defaults.items()]


def _sum_state(name: str, zero: Tensor) -> State:
    return _Sum(name, zero) if zero.is_floating_point() else _Count(name, zero)


def _state(name: str, metric: torchmetrics.Metric, state: str, default: Any) -> State:
    """How to keep a state, by what torchmetrics (1.9; it has no public name for either) says of its
    default and its reduction over ranks.
    """
    from torchmetrics.utilities.data import dim_zero_cat, dim_zero_sum

    reduction = metric._reductions[state]
    if reduction is dim_zero_cat and isinstance(default, list):
        return _Rows(state)
    if (
        reduction is dim_zero_sum
        and isinstance(default, Tensor)
        and not default.any()
        and (default.is_floating_point() or default.dtype in (torch.int64, torch.int32))
    ):
        return _sum_state(state, default)
    reduced = getattr(reduction, "__name__", reduction)
    raise ConfigError(
        f"task.metrics.{name}: {type(metric).__name__} keeps a state {state!r} that is reduced "
        f"over ranks by {reduced}; only sums and concatenations "
        "give the same value on any number of ranks. Choose a metric, or one of its options, that "
        "keeps those."
    )


def _condense(summands: Sequence[float]) -> list[float]:
    if not all(map(math.isfinite, summands)):
        return [exact_sum(summands)]
    total = ExactSum()
    for summand in summands:
        total.add(summand)
    return total.partials


def _as_bytes(rows: Tensor) -> Tensor:
    """(n, ...) of any dtype -> (n, bytes of a row) uint8."""
    return rows.reshape(len(rows), math.prod(rows.shape[1:])).contiguous().view(torch.uint8)


def _from_bytes(data: Tensor, dtype: str, shape: Sequence[int]) -> Tensor:
    """The inverse of `_as_bytes`; `dtype` as torch prints it, `shape` of one row."""
    return data.contiguous().view(_dtype(dtype)).view(len(data), *shape)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"train_metrics: there is no dtype {name!r}. Use a newer torch.")
    return found
