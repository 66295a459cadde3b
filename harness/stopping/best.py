"""The best value of a metric so far."""

import math
from collections.abc import Iterator

from pydantic import Field

from harness.stopping.judge import wrong_mode
from harness.stopping.pairs import Deviations, paired_error
from harness.stopping.rate import AskedGain, error_of, unknown_error
from harness.stopping.verdict import Best, Evaluation, MetricInfo, Mode


class BestMetric(AskedGain):
    """The metric by which checkpoints are ranked, and the gain that makes a new best."""

    metric: str = Field(description="A metric with its split, e.g. val/accuracy.")
    mode: Mode | None = Field(
        None,
        description="Whether higher (max) or lower (min) is better; null: as the metric declares.",
    )

    def problems(self, where: str, info: MetricInfo) -> Iterator[str]:
        """What contradicts its metric's declaration."""
        yield from wrong_mode(where, self.metric, self.mode, info)
        yield from self.gain_problems(where, self.metric, info)


class BestSoFar:
    """The best value of a metric: any strict gain counts, or one as large as `asked` says; the
    earlier of equal values stays, NaN never counts.
    """

    def __init__(self, metric: str, mode: Mode, asked: AskedGain | None = None) -> None:
        self.metric = metric
        self.mode: Mode = mode
        self.best: Best | None = None
        self.warning = ""
        self._asked = AskedGain(at_least=0.0) if asked is None else asked
        self._error = 0.0
        self._groups: Deviations | None = None

    def take(self, evaluation: Evaluation) -> bool:
        """Whether this evaluation is a new best; `warning`: what was not known for it, or ""."""
        self.warning = ""
        value = evaluation.metrics.get(self.metric)
        if value is None or math.isnan(value):
            return False
        error = evaluation.metrics.get(error_of(self.metric), math.nan)
        groups = evaluation.deviations.get(self.metric)
        if not math.isfinite(error):
            error = 0.0
            if self._asked.errors and groups is None and math.isfinite(value):
                self.warning = unknown_error("best", self.metric, evaluation.step)
        if self.best is not None:
            paired = paired_error(groups, self._groups)
            of_gain = math.hypot(error, self._error) if paired is None else paired
            if not self._asked.gain(value, self.best.value, self.mode, of_gain).enough:
                return False
        self.best = Best(self.metric, value, evaluation.step)
        self._error, self._groups = error, groups
        return True
