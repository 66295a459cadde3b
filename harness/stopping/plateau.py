"""Plateaus: a metric whose trend over its last values is not clearly for the better."""

import math
from collections import deque
from collections.abc import Iterator, Sequence

from pydantic import Field

from harness.settings import Section
from harness.stopping.judge import Finding, Judge, problems_of
from harness.stopping.verdict import SIGNS, Evaluation, MetricInfo, Metrics, Mode, show


class Plateau(Section):
    """How many last values of a metric, and how certain an improving trend must be."""

    metric: str = Field(description="A metric with its split, e.g. val/loss.")
    over: int = Field(ge=4, description="The number of last values that the trend is fitted to.")
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="The slope must be above 0 at this confidence, one-sided.",
    )

    def problems(self, where: str, info: MetricInfo) -> Iterator[str]:
        """What is wrong with it for what its metric declares."""
        return iter(())


def slope_and_error(steps: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The least-squares slope of values over steps, and its standard error by the residuals."""
    # Of a height and a length of about 1 no square is infinite
    width, height = (max(map(abs, column)) or 1.0 for column in (steps, values))
    steps, values = [step / width for step in steps], [value / height for value in values]
    count = len(values)
    middle, mean = math.fsum(steps) / count, math.fsum(values) / count
    spread = math.fsum((step - middle) ** 2 for step in steps)
    pairs = list(zip(steps, values, strict=True))
    slope = math.fsum((step - middle) * (value - mean) for step, value in pairs) / spread
    squares = math.fsum((value - mean - slope * (step - middle)) ** 2 for step, value in pairs)
    unit = height / width
    return slope * unit, math.sqrt(squares / (count - 2) / spread) * unit


class RunningPlateau:
    """The last values of one metric."""

    def __init__(self, settings: Plateau, mode: Mode) -> None:
        self._settings = settings
        self._sign = SIGNS[mode]
        # (step, value)
        self._last: deque[tuple[int, float]] = deque(maxlen=settings.over)

    def take(self, evaluation: Evaluation) -> Finding:
        """Stops if the slope is not above 0; NaN and infinities are left out."""
        one = self._settings
        value = evaluation.metrics.get(one.metric)
        if value is None or not math.isfinite(value):
            return Finding()
        self._last.append((evaluation.step, value))
        if len(self._last) < one.over:
            return Finding()
        slope, error = slope_and_error(*zip(*self._last, strict=True))
        # Loaded where a plateau is looked for
        from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy has no stubs

        if slope * self._sign > error * float(stdtrit(one.over - 2, one.confidence)):
            return Finding()
        return Finding(
            f"{one.metric} shows no improving trend over its last {one.over} values at "
            f"{show(one.confidence * 100)} % confidence: slope {show(slope, digits=3)} +- "
            f"{show(error, digits=2)} per step"
        )


class PlateauJudge(Judge):
    """Stops when all plateaus that are looked for are there at one evaluation."""

    reason = "plateau"
    of_intervals = True

    def __init__(self, settings: Sequence[Plateau], metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._plateaus = [
            RunningPlateau(one, metrics[one.metric].mode)
            for one in settings
            if one.metric in metrics
        ]

    def problems(self) -> Iterator[str]:
        return problems_of("plateau", self._settings, self._metrics)

    def metrics(self) -> set[str]:
        return {one.metric for one in self._settings}

    def take(self, evaluation: Evaluation) -> Finding:
        stops = [plateau.take(evaluation).stop for plateau in self._plateaus]
        if not stops or None in stops:
            return Finding()
        return Finding(f"{'; '.join(filter(None, stops))} (step {evaluation.step:,})")
