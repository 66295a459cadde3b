"""The best value of a metric so far."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import Field

from harness.settings import _Settings
from harness.stopping.verdict import Evaluation, MetricInfo, Mode

SIGNS = {"max": 1.0, "min": -1.0}


@dataclass
class BestSoFar:
    """The best value of a metric: any strict gain; ties keep the earlier one; NaN never."""

    metric: str
    mode: Mode
    value: float | None = None
    step: int = 0

    def take(self, evaluation: Evaluation) -> bool:
        """Whether this evaluation is a new best."""
        value = evaluation.metrics.get(self.metric)
        if (
            value is None
            or math.isnan(value)
            or (self.value is not None and not (value - self.value) * SIGNS[self.mode] > 0)
        ):
            return False
        self.value, self.step = value, evaluation.step
        return True


def _of_mode(where: str, metric: str, mode: Mode | None, info: MetricInfo) -> Iterator[str]:
    if mode is not None and mode != info.mode:
        yield f"{where}.mode: {mode}, but of {metric} {_better(info.mode)} is better. Leave mode out."


def _better(mode: Mode) -> str:
    return "more" if mode == "max" else "less"


class BestMetric(_Settings):
    """What the best checkpoint is best in."""

    metric: str = Field(description="A metric with its split, e.g. val/accuracy.")
    mode: Mode | None = Field(
        None, description="Which way is better; null: what the metric declares."
    )
