"""Targets: values that metrics must reach."""

import math
from collections.abc import Iterator, Mapping
from typing import Self

from pydantic import Field, model_validator

from harness.settings import _Settings
from harness.stopping.verdict import MetricInfo, Metrics, show


class Target(_Settings):
    """The value that a metric must reach."""

    at_least: float | None = Field(None, description="Reached by this value and any above.")
    at_most: float | None = Field(None, description="Reached by this value and any below.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("at_least", "at_most")
        return self


class TargetJudge:
    """One target, on one metric or on a training and a validation metric that must both reach it,
    `hold` evaluations in a row.
    """

    def __init__(self, metrics: tuple[str, ...], target: Target, hold: int) -> None:
        self._metrics = metrics
        self._hold = hold
        self._at_least = target.at_least is not None
        bound = target.at_least if target.at_least is not None else target.at_most
        assert bound is not None
        self._bound = bound
        relations = ("at least", "below") if self._at_least else ("at most", "above")
        self._met_words, self._short_words = (
            f"is {relation} {show(bound, digits=15)}" for relation in relations
        )
        self._held = 0
        self._values: list[float | None] = []
        self._met: list[bool] = []

    def take(self, metrics: Mapping[str, float]) -> bool:
        """Whether the target is reached: only a value of this very evaluation counts, NaN never."""
        self._values = [metrics.get(name) for name in self._metrics]
        self._met = [
            value is not None and (value >= self._bound if self._at_least else value <= self._bound)
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
        return f"{name} {show(value, self._bound)} {self._met_words if met else self._short_words}"


SPLITS = ("train", "val")


def expand(name: str, metrics: Metrics) -> tuple[str, ...]:
    """The metrics that a target's name means: itself, or, named without a split, the training and
    the validation one.
    """
    return (
        (name,)
        if name in metrics or name.startswith(tuple(f"{split}/" for split in SPLITS))
        else tuple(f"{split}/{name}" for split in SPLITS)
    )


def _of_target(where: str, metric: str, target: Target, info: MetricInfo) -> Iterator[str]:
    if target.at_least is not None:
        if info.upper is not None and target.at_least > info.upper:
            yield (
                f"{where}.at_least: {metric} is never above {show(info.upper)}, so not at least "
                f"{show(target.at_least)}. Give a value it can reach."
            )
        elif info.mode == "min":
            yield (
                f"{where}.at_least: of {metric} less is better. Write at_most: "
                f"{show(target.at_least)}."
            )
    if target.at_most is not None:
        if info.lower is not None and target.at_most < info.lower:
            yield (
                f"{where}.at_most: {metric} is never below {show(info.lower)}, so not at most "
                f"{show(target.at_most)}. Give a value it can reach."
            )
        elif info.mode == "max":
            yield (
                f"{where}.at_most: of {metric} more is better. Write at_least: "
                f"{show(target.at_most)}."
            )
