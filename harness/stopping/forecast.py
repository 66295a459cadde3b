"""A forecast: the chance that a target is still reached within the budget, or the best improves."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, PlainValidator, model_validator

from harness.settings import Section
from harness.stopping.budget import Budget, Every, Moment, num_evaluations, position_of
from harness.stopping.judge import Finding, Judge, unknown_metric
from harness.stopping.rate import Rate, share_of
from harness.stopping.targets import Target, expand
from harness.stopping.verdict import SIGNS, Evaluation, MetricInfo, Metrics, Mode, show

FEWEST_POINTS = 6
# The future is looked at so many times, each for its share of the evaluations to come
_LOOKS = 16
# Beyond so many evaluations a curve is fitted at every n-th alone: the fits of 1,000 cost as many
# as 200
_EACH_UP_TO = 40
_BAND = 0.95
# Of so many curves nothing is known, neither that they reach a value nor that they don't: chosen on
# recorded ones by conformal risk control (Angelopoulos et al., 2022; docs/benchmarks.md)
_UNKNOWN = 0.01
# The smallest chance that those curves are enough to vouch for
_SMALLEST = 0.02
BUDGET_SPENT = "the budget is spent"
# Beyond it squares are infinite
_LARGEST = 1e100


def _chance(value: object) -> float:
    """A probability: 0.05, or a text like "5%"."""
    number = share_of(value) or value
    if isinstance(number, bool) or not isinstance(number, int | float):
        number = math.nan
    if not _SMALLEST <= number < 1:
        raise ValueError(
            f"{value!r} is not a chance from {_SMALLEST} to below 1, like 5% or 0.05; a forecast "
            "knows no smaller ones"
        )
    return float(number)


Chance = Annotated[float, PlainValidator(_chance, json_schema_input_type=float | str)]


class Forecast(Section):
    """What the future of a learning curve is asked for, and what follows from a small chance."""

    target: str | None = Field(
        None, description="A metric with its split that stop.targets names: is it still reached?"
    )
    metric: str | None = Field(
        None, description="Instead: a metric with its split; does its best improve by `gain`?"
    )
    gain: Rate | None = Field(
        None, description="With metric: 0.01 in the metric's own unit, or 1% of the best so far."
    )
    chance_below: Chance = Field(0.05, description="What chance is too small, e.g. 5%.")
    for_: int = Field(3, ge=1, alias="for", description="At so many forecasts in a row.")
    from_: Moment | None = Field(
        None, alias="from", description="No forecast before; give one unit. null: 6 evaluations."
    )
    action: Literal["warn", "stop"] = Field(
        "warn", description="What follows from too small a chance."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("target", "metric")
        if (self.metric is None) != (self.gain is None):
            raise ValueError("metric and gain belong together")
        if isinstance(self.gain, str) and not share_of(self.gain):
            raise ValueError(f"gain: {self.gain!r} is not a gain like 0.01 or a share like 1%")
        return self

    @property
    def name(self) -> str:
        """The metric that is forecast."""
        name = self.target or self.metric
        assert name is not None
        return name


class Point(NamedTuple):
    """An evaluation of one metric; `rate`: the learning rate, of all points or of none."""

    step: int
    value: float
    rate: float | None


@dataclass(frozen=True)
class Outlook:
    """What is known of the rest of a curve, up to the step `by`.

    `band`: where its last value lies at 95 %; `chance`: that `value` is reached by then, None if
    none is asked for; `abstains`: why there is no forecast, "" if there is one; `fan`: (step, low,
    high) at times until then.
    """

    metric: str
    by: int
    band: tuple[float, float] = (math.nan, math.nan)
    value: float | None = None
    chance: float | None = None
    abstains: str = ""
    fan: Sequence[tuple[int, float, float]] = ()
    epoch: int | None = None

    def words(self) -> str:
        """The forecast for people."""
        if self.abstains:
            return f"no forecast of {self.metric}: {self.abstains}"
        low, high = self.band
        chance = ""
        if self.chance is not None and self.value is not None:
            chance = f"; chance to reach {show(self.value)}: {100 * self.chance:.3g} %"
        ends = f"{show(low, high)} to {show(high, low)}"
        by = f"step {self.by:,}"
        if self.epoch is not None:
            by = f"epoch {self.epoch:,} ({by})"
        return f"{self.metric}, {_BAND:.0%}: {ends} by {by}{chance}"


class End(NamedTuple):
    """Where a budget is spent; `epoch`: None where another of its limits is met first."""

    step: int
    epoch: int | None = None


def end_of(budget: Budget, evaluation: Evaluation) -> End | None:
    """Where the first limit of a budget is met, at the pace so far; None if no limit can be told in
    steps yet.
    """
    position = position_of(evaluation)
    steps = {
        unit: limit if unit == "steps" else limit * float(evaluation.step) / position[unit]
        for unit, limit in budget.limits().items()
        if unit == "steps" or position[unit] > 0
    }
    first = min(steps, key=lambda unit: steps[unit], default="steps")
    if not math.isfinite(steps.get(first, math.inf)):
        return None
    return End(round(steps[first]), budget.epochs if first == "epochs" else None)


def look_ahead(
    metric: str,
    info: MetricInfo,
    points: Sequence[Point],
    end: End,
    value: float | None = None,
) -> Outlook:
    """The forecast of a metric from its evaluations so far, up to the end of the budget; `value`:
    the chance to reach it is asked for.
    """
    by, epoch = end
    if all(point.rate is None for point in points):
        points = [point._replace(rate=1.0) for point in points]
    reason = _why_not(points, by, info.mode)
    if reason:
        return Outlook(metric, by, abstains=reason)
    # Loaded where something is forecast
    import numpy as np

    from harness.stopping.curves import effective_times, extrapolate

    sign = SIGNS[info.mode]
    steps, values, rates = (
        np.array(column, dtype=np.float64) for column in zip(*points, strict=True)
    )
    interval = (steps[-1] - steps[-FEWEST_POINTS]) / (FEWEST_POINTS - 1)
    looks = max(1, min(_LOOKS, int((by - steps[-1]) / interval)))
    future = np.linspace(steps[-1], by, looks + 1)[1:]
    counts = np.full(looks, max(1.0, (by - steps[-1]) / interval / looks))
    past, ahead = effective_times(steps, rates, future)
    lower = -math.inf if info.lower is None else info.lower
    upper = math.inf if info.upper is None else info.upper
    bounds = (lower, upper) if sign > 0 else (-upper, -lower)
    found = extrapolate(past, sign * values, ahead, counts, bounds)
    bands = [
        sorted(sign * min(max(edge, bounds[0]), bounds[1]) for edge in band)
        for band in found.bands(_BAND)
    ]
    low, high = bands[-1]
    return Outlook(
        metric,
        by,
        (low, high),
        value,
        None if value is None else _UNKNOWN + (1 - 2 * _UNKNOWN) * found.chance(sign * value),
        fan=[(round(at), *band) for at, band in zip(future, bands, strict=True)],
        epoch=epoch,
    )


def _why_not(points: Sequence[Point], by: int, mode: Mode) -> str:
    """Why there is no forecast, "" if there is one."""
    if len(points) < FEWEST_POINTS:
        return f"{len(points)} of at least {FEWEST_POINTS} evaluations are there"
    if by <= points[-1].step:
        return BUDGET_SPENT
    rates = [math.nan if point.rate is None else point.rate for point in points]
    if not all(0 <= rate < _LARGEST for rate in rates):
        return "the learning rate is not known at each evaluation"
    if not any(rate for rate, point in zip(rates, points, strict=True) if point.step):
        return "the learning rate is 0"
    if not all(abs(point.value) < _LARGEST for point in points):
        return "it has values too large to be squared"
    fell = False
    for before, after in itertools.pairwise(rates):
        if fell and after > 1.01 * before:
            return "the learning rate rose again after a fall, as with warm restarts"
        fell = fell or after < before
    import numpy as np

    from harness.stopping.curves import is_monotone

    if not is_monotone(SIGNS[mode] * np.array([point.value for point in points])):
        return "it got worse for a time, by more than its noise"
    return ""


def too_few_evaluations(budget: Budget | None, every: Every) -> Iterator[str]:
    """Why a training with this budget has none to forecast by, if so."""
    there = num_evaluations(budget, every)
    # None at the last evaluation: the budget is spent
    fewest = FEWEST_POINTS + 1
    if there is not None and there < fewest:
        yield (
            f"stop.forecast: nothing can be forecast: there are {there} evaluations in "
            f"stop.budget, by stop.every, and it needs {fewest}. Evaluate more often, give a "
            "larger budget, or leave it out."
        )


class ForecastJudge(Judge):
    """Warns or stops when the chance was too small at so many forecasts in a row."""

    reason = "hopeless"
    of_intervals = True

    def __init__(
        self,
        settings: Forecast | None,
        targets: dict[str, Target],
        budget: Budget | None,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._targets = {
            metric: target for name, target in targets.items() for metric in expand(name, metrics)
        }
        self._budget = budget
        self._metrics = metrics
        self._points: list[Point] = []
        self._next = 0
        self._small = 0
        self._outlook: Outlook | None = None

    def problems(self) -> Iterator[str]:
        if self._settings is None:
            return
        if self._budget is None:
            yield (
                "stop.forecast: needs a budget, within which something is to happen. Give "
                "stop.budget."
            )
        name = self._settings.name
        where = f"stop.forecast.{'metric' if self._settings.target is None else 'target'}"
        yield from unknown_metric(where, name, self._metrics)
        if self._settings.target is not None and name not in self._targets:
            named = ", ".join(sorted(self._targets)) or "nothing"
            yield (
                f"{where}: stop.targets has no target for {name}, but for {named}. Add one, or "
                "give metric and gain."
            )
        if self._settings.from_ is not None:
            yield from self._settings.from_.problems("stop.forecast.from", self._budget)

    def metrics(self) -> set[str]:
        return set() if self._settings is None else {self._settings.name}

    def needs(self) -> Iterator[tuple[str, str]]:
        if self._settings is not None and self._settings.from_ is not None:
            unit, _ = self._settings.from_.limit
            if unit != "steps":
                yield f"stop.forecast.from.{unit}", unit

    def take(self, evaluation: Evaluation) -> Finding:
        one = self._settings
        if one is None or self._budget is None:
            return Finding()
        measured = evaluation.metrics.get(one.name)
        if measured is None or not math.isfinite(measured):
            return Finding()
        self._points.append(Point(evaluation.step, measured, evaluation.lr))
        end = end_of(self._budget, evaluation)
        if end is None or not self._is_time(evaluation):
            return Finding()
        self._next = len(self._points) + max(1, len(self._points) // _EACH_UP_TO)
        info = self._metrics[one.name]
        outlook = look_ahead(one.name, info, self._points, end, self._goal(info.mode))
        small = outlook.chance is not None and outlook.chance < one.chance_below
        self._small = self._small + 1 if small else 0
        words = outlook.words()
        if self._small < one.for_:
            return Finding(outlook=words)
        said = (
            f"{words}; below {show(100 * one.chance_below)} % at {self._small} forecasts in a row"
        )
        if one.action == "stop":
            return Finding(f"{said} (step {evaluation.step:,})")
        return Finding(outlook=said, warnings=[f"{said}."] if self._small == one.for_ else ())

    def _is_time(self, evaluation: Evaluation) -> bool:
        begin = None if self._settings is None else self._settings.from_
        has_begun = begin is None or begin.has_come(evaluation)
        return has_begun and len(self._points) >= self._next

    def _goal(self, mode: Mode) -> float:
        """The value whose chance is asked for."""
        one = self._settings
        assert one is not None
        if one.target is not None:
            return self._targets[one.target].bound
        sign = SIGNS[mode]
        best = max(sign * point.value for point in self._points) * sign
        gain = one.gain if isinstance(one.gain, float) else share_of(one.gain) * abs(best)
        return best + sign * gain
