"""The best value of a metric so far."""

import math
from collections.abc import Iterator

from pydantic import Field

from harness.settings import Section
from harness.stopping.judge import wrong_mode
from harness.stopping.verdict import SIGNS, Best, Evaluation, MetricInfo, Mode


class BestMetric(Section):
    """The metric by which checkpoints are ranked."""

    metric: str = Field(description="A metric with its split, e.g. val/accuracy.")
    mode: Mode | None = Field(
        None,
        description="Whether higher (max) or lower (min) is better; null: as the metric declares.",
    )

    def problems(self, where: str, info: MetricInfo) -> Iterator[str]:
        """What contradicts its metric's declaration."""
        return wrong_mode(where, self.metric, self.mode, info)


class BestSoFar:
    """The best value of a metric: any strict gain counts, the earlier of equal values stays, NaN
    never counts.
    """

    def __init__(self, metric: str, mode: Mode) -> None:
        self.metric = metric
        self.mode: Mode = mode
        self.best: Best | None = None

    def take(self, evaluation: Evaluation) -> bool:
        """Whether this evaluation is a new best."""
        value = evaluation.metrics.get(self.metric)
        if value is None or math.isnan(value):
            return False
        if self.best is not None and not (value - self.best.value) * SIGNS[self.mode] > 0:
            return False
        self.best = Best(self.metric, value, evaluation.step)
        return True
