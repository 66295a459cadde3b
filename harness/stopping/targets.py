"""Targets: values that metrics must reach."""

import math
from collections.abc import Container, Iterator, Mapping
from typing import Self

from pydantic import Field, model_validator

from harness.settings import Section
from harness.stopping.judge import Finding, Judge, Need, enough, unknown_metric
from harness.stopping.verdict import SIGNS, Evaluation, MetricInfo, Metrics, Mode, show


class Target(Section):
    """The value that a metric must reach."""

    at_least: float | None = Field(None, description="Reached by this value and any higher one.")
    at_most: float | None = Field(None, description="Reached by this value and any lower one.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("at_least", "at_most")
        return self

    @property
    def bound(self) -> float:
        """The value."""
        value = self.at_most if self.at_least is None else self.at_least
        assert value is not None
        return value

    @property
    def mode(self) -> Mode:
        """Which way the value is reached."""
        return "min" if self.at_least is None else "max"


SPLITS = ("train", "val")


def expand(name: str, metrics: Container[str]) -> tuple[str, ...]:
    """The metrics that a target's name means: itself, or, without a split, the training and the
    validation metric. `metrics`: those available.
    """
    if name in metrics or name.startswith(tuple(f"{split}/" for split in SPLITS)):
        return (name,)
    return tuple(f"{split}/{name}" for split in SPLITS)


class RunningTarget:
    """One target, on one metric or on a training and a validation metric that must both reach it,
    at `hold` consecutive evaluations.
    """

    def __init__(self, metrics: tuple[str, ...], target: Target, hold: int) -> None:
        self._metrics = metrics
        self._hold = hold
        self._bound = target.bound
        self._mode = target.mode
        self._held = 0
        self._values: list[float | None] = []
        self._met: list[bool] = []

    def take(self, metrics: Mapping[str, float]) -> bool:
        """Whether the target is reached: only a value of this evaluation counts, never NaN."""
        self._values = [metrics.get(name) for name in self._metrics]
        self._met = [
            value is not None
            and (value >= self._bound if self._mode == "max" else value <= self._bound)
            for value in self._values
        ]
        self._held = self._held + 1 if all(self._met) else 0
        return self._held >= self._hold

    def sentence(self) -> str:
        """Where the target stands at the last evaluation: all metrics if it holds there, else those
        that fall short.
        """
        holds = self._held > 0
        words = [
            self._clause(name, value, met)
            for name, value, met in zip(self._metrics, self._values, self._met, strict=True)
            if met == holds
        ]
        held = (
            f", {self._held} of {self._hold} evaluations in a row"
            if holds and self._hold > 1
            else ""
        )
        return " and ".join(words) + held

    def _clause(self, name: str, value: float | None, met: bool) -> str:
        if value is None or math.isnan(value):
            return f"{name} is {'not measured' if value is None else 'undefined (NaN)'}"
        more, less = ("at least", "below") if self._mode == "max" else ("above", "at most")
        relation = more if met == (self._mode == "max") else less
        bound = show(self._bound, digits=15)
        return f"{name} {show(value, self._bound)} is {relation} {bound}"


class TargetsJudge(Judge):
    """Stops when all or any of the targets are reached."""

    reason = "targets_reached"

    def __init__(
        self, targets: Mapping[str, Target], need: Need, hold: int, metrics: Metrics
    ) -> None:
        self._settings = targets
        self._need = need
        self._metrics = metrics
        self._targets = [
            RunningTarget(expand(name, metrics), target, hold) for name, target in targets.items()
        ]

    def problems(self) -> Iterator[str]:
        for name, target in self._settings.items():
            where = f"stop.targets.{name}"
            meant = expand(name, self._metrics)
            yield from unknown_metric(where, name, self._metrics, meant)
            for metric in meant:
                if metric in self._metrics and (
                    wrong := list(target_problems(where, metric, target, self._metrics[metric]))
                ):
                    yield from wrong
                    break

    def metrics(self) -> set[str]:
        return {metric for name in self._settings for metric in expand(name, self._metrics)}

    def take(self, evaluation: Evaluation) -> Finding:
        reached = [target.take(evaluation.metrics) for target in self._targets]
        stops = enough(reached, self._need)
        sentences = [
            target.sentence()
            for target, holds in zip(self._targets, reached, strict=True)
            if holds == stops
        ]
        if stops:
            return Finding(f"{' and '.join(sentences)} at step {evaluation.step:,}")
        return Finding(outlook="; ".join(sentences))


def target_problems(where: str, metric: str, target: Target, info: MetricInfo) -> Iterator[str]:
    """What is wrong with a target, under `where`, for what its metric declares."""
    asked, other, limit, side = "at_least", "at_most", info.upper, "above"
    if target.mode == "min":
        asked, other, limit, side = "at_most", "at_least", info.lower, "below"
    bound = show(target.bound)
    if limit is not None and (target.bound - limit) * SIGNS[target.mode] > 0:
        yield (
            f"{where}.{asked}: {metric} is never {side} {show(limit)}, so not "
            f"{asked.replace('_', ' ')} {bound}. Give a value it can reach."
        )
    elif info.mode != target.mode:
        yield f"{where}.{asked}: of {metric} {info.better} is better. Write {other}: {bound}."
