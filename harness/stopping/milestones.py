"""Milestones: values that metrics must have reached by a given time, or the run is hopeless.

`1.2x chance` is a multiple of what a classifier gets that always names the most frequent class of
the split. Evaluations measure that beside a metric, under the name `chance_of` gives.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Self

from pydantic import Field, PlainValidator, model_validator

from harness.settings import Section, item_path
from harness.stopping.budget import Budget, Moment
from harness.stopping.judge import Finding, Judge, problems_of
from harness.stopping.targets import Target, target_problems
from harness.stopping.verdict import SIGNS, Evaluation, MetricInfo, Metrics, show

_CHANCE = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*x\s*chance\s*")


def chance_of(metric: str) -> str:
    """The name of what the most frequent class alone gets of a metric of a classifier."""
    return f"{metric}_by_chance"


def _bar(value: object) -> float | str:
    """A number, or a text like "1.2x chance"."""
    if isinstance(value, str) and (times := _CHANCE.fullmatch(value)) and float(times[1]) > 0:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is neither a value like 0.5 nor a multiple like 1.2x chance")
    return float(value)


Bar = Annotated[float | str, PlainValidator(_bar, json_schema_input_type=float | str)]


class Milestone(Section):
    """The value that a metric must have reached by some time, at any evaluation up to then."""

    metric: str = Field(description="A metric with its split, e.g. val/accuracy.")
    at_least: Bar | None = Field(
        None,
        description=(
            "Reached by this value and any above. 1.2x chance: so many times what the most "
            "frequent class of the split alone would give, for classifiers."
        ),
    )
    at_most: float | None = Field(None, description="Reached by this value and any below.")
    by: Moment = Field(
        description="By when: judged at the first interval's end at or after it; give one unit."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("at_least", "at_most")
        return self

    @property
    def times_chance(self) -> float | None:
        """How many times chance is asked for, None if a value is."""
        found = _CHANCE.fullmatch(self.at_least) if isinstance(self.at_least, str) else None
        return float(found[1]) if found else None

    def problems(self, where: str, info: MetricInfo) -> Iterator[str]:
        """What is wrong with it for what its metric declares."""
        if self.times_chance is None:
            bounds = {"at_least": self.at_least, "at_most": self.at_most}
            yield from target_problems(where, self.metric, Target.model_validate(bounds), info)
        elif not info.has_chance:
            yield (
                f"{where}.at_least: what the most frequent class alone would give of {self.metric} "
                "is not known. Give a number."
            )


class RunningMilestone:
    """One milestone: whether it was reached yet, and the best value so far."""

    def __init__(self, settings: Milestone, upper: float | None) -> None:
        """`upper`: the largest value that the metric can take."""
        self._settings = settings
        self._upper = math.inf if upper is None else upper
        self._warned = False
        self._sign = SIGNS["min" if settings.at_least is None else "max"]
        self._reached = False
        # (value, step)
        self._best: tuple[float, int] | None = None

    def take(self, evaluation: Evaluation) -> Finding:
        """Stops at or after its time, at an evaluation that measured its metric."""
        one = self._settings
        value = evaluation.metrics.get(one.metric)
        if self._reached or value is None:
            return Finding()
        if not math.isnan(value) and (
            self._best is None or (value - self._best[0]) * self._sign > 0
        ):
            self._best = value, evaluation.step
        bar = self._bar(evaluation)
        if bar is None:
            return Finding()
        # Also by a value of before, when what chance gives was not recorded yet
        self._reached = self._best is not None and (self._best[0] - bar) * self._sign >= 0
        if self._reached or not one.by.has_come(evaluation):
            return Finding()
        if bar > self._upper:
            # Also the best network would end by it
            words = (
                f"{one.metric} cannot reach {one.at_least}, {show(bar, self._upper)}: it is never "
                f"above {show(self._upper)}. The milestone is not judged; lower its at_least."
            )
            warned, self._warned = self._warned, True
            return Finding(warnings=() if warned else [words])
        return Finding(self._sentence(evaluation, bar))

    def _bar(self, evaluation: Evaluation) -> float | None:
        times = self._settings.times_chance
        if times is not None:
            chance = evaluation.metrics.get(chance_of(self._settings.metric))
            return None if chance is None else times * chance
        bar = self._settings.at_most
        return bar if isinstance(self._settings.at_least, str | None) else self._settings.at_least

    def _sentence(self, evaluation: Evaluation, bar: float) -> str:
        one, (unit, when) = self._settings, self._settings.by.limit
        amount = f"{when:,}" if isinstance(when, int) else show(when)
        side = "at least" if one.at_most is None else "at most"
        times = one.times_chance
        share = None if times is None else bar / times
        asked = f"{side} {show(bar)}" + (
            "" if share is None else f" ({show(times or 0)} times the {show(share)} of chance)"
        )
        best = "undefined (NaN)"
        if self._best is not None:
            best = f"{show(self._best[0], bar)} at best (step {self._best[1]:,})"
        return (
            f"{one.metric} is {best} where {asked} was asked by "
            f"{amount} {unit[:-1] if when == 1 else unit}"
        )


class MilestonesJudge(Judge):
    """Stops when the time of a milestone has come and its value was not reached."""

    reason = "hopeless"
    of_intervals = True

    def __init__(self, settings: Sequence[Milestone], budget: Budget | None, metrics: Metrics):
        self._settings = settings
        self._budget = budget
        self._metrics = metrics
        self._milestones = [
            RunningMilestone(one, metrics[one.metric].upper)
            for one in settings
            if one.metric in metrics
        ]

    def problems(self) -> Iterator[str]:
        yield from problems_of("milestones", self._settings, self._metrics)
        for index, one in enumerate(self._settings):
            where = f"stop.{item_path('milestones', index, self._settings)}.by"
            yield from one.by.problems(where, self._budget)

    def metrics(self) -> set[str]:
        return {one.metric for one in self._settings}

    def needs(self) -> Iterator[tuple[str, str]]:
        for index, one in enumerate(self._settings):
            unit, _ = one.by.limit
            if unit != "steps":
                where = f"stop.{item_path('milestones', index, self._settings)}"
                yield f"{where}.by.{unit}", unit

    def take(self, evaluation: Evaluation) -> Finding:
        findings = [milestone.take(evaluation) for milestone in self._milestones]
        stops = [one.stop for one in findings if one.stop is not None]
        return Finding(
            f"{'; '.join(stops)} (step {evaluation.step:,})" if stops else None,
            warnings=[warning for one in findings for warning in one.warnings],
        )
