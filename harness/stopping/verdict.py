"""Inputs and outputs of the stop controller: plain values, exact as JSON."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from harness.stopping.pairs import Deviations

Mode = Literal["max", "min"]
SIGNS: Mapping[Mode, float] = {"max": 1.0, "min": -1.0}


@dataclass(frozen=True)
class MetricInfo:
    """What a metric declares: whether more or less of it is better, the values it can take,
    whether the task says what the most frequent class alone would give, and whether evaluations
    know its standard error.
    """

    mode: Mode
    lower: float | None = None
    upper: float | None = None
    has_chance: bool = False
    has_error: bool = False

    @property
    def better(self) -> str:
        """Whether "more" or "less" is better, for messages."""
        return "more" if self.mode == "max" else "less"


# By `split/name`
Metrics = Mapping[str, MetricInfo]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: where the training stood and the metrics by `split/name`.

    `epoch`: epochs completed with the share of the present one; `hours`: over all launches; `lr`:
    the learning rate, which a cooldown needs; `extra`: it falls on no interval's end but on the end
    of a budget or a request, and so leaves no trace in patience. A metric that is not in `metrics`
    was not measured; NaN was measured and is undefined. `deviations`: of metrics whose gains are
    compared with their errors.
    """

    step: int
    epoch: float
    samples: int
    hours: float
    metrics: Mapping[str, float]
    lr: float | None = None
    extra: bool = False
    deviations: Mapping[str, Deviations] = field(default_factory=dict)


@dataclass(frozen=True)
class LoggedSteps:
    """The training steps read at a log point, from `first_step` on, one value a step.

    `offenders`: step -> lowest rank with a non-finite loss.
    """

    first_step: int
    losses: list[float]
    grad_norms: list[float]
    skipped: list[bool]
    offenders: dict[int, int]


class CriterionVerdict(NamedTuple):
    """One improvement criterion at one evaluation.

    `gain` is positive if the metric got better; `needed` was asked for, `reference` (of
    `reference_step`) is what both are measured from; None at the first value. `stale`: intervals in
    a row that fell short; `spent` of `patience` `unit` (intervals, epochs, steps or samples) are
    used up. `raw`: the value as it was measured, where `value` is smoothed. `error`: the standard
    error of the gain, where one is asked for; `pairs`: how many samples it compares in pairs.
    """

    metric: str
    value: float | None
    reference: float | None
    reference_step: int | None
    gain: float | None
    needed: float | None
    improved: bool
    stale: int
    spent: float
    patience: int
    unit: str
    out: bool
    raw: float | None = None
    error: float | None = None
    pairs: int = 0


@dataclass(frozen=True)
class Best:
    """The best value of the metric that checkpoints are ranked by."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True)
class Verdict:
    """Whether to go on or stop, and why, in words.

    `reason`: that of the judge who stops the training, None to go on.
    `improved`: some criterion's rate was reached; `new_best`: any strict gain of the best metric.
    """

    action: Literal["go_on", "stop"]
    reason: str | None = None
    detail: str = ""
    improved: bool = False
    new_best: bool = False
    criteria: list[CriterionVerdict] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def stops(self) -> bool:
        return self.action == "stop"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; NaN and infinities as text."""
        criteria = [
            {name: _plain(value) for name, value in one._asdict().items()} for one in self.criteria
        ]
        return {**self.__dict__, "criteria": criteria, "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Verdict":
        """The inverse of `to_json`, to the last bit."""
        criteria = [
            CriterionVerdict(**{name: _number(name, item) for name, item in one.items()})
            for one in value["criteria"]
        ]
        return cls(**{**value, "criteria": criteria, "warnings": list(value["warnings"])})


def _plain(value: Any) -> Any:
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(name: str, value: Any) -> Any:
    return float(value) if isinstance(value, str) and name not in ("metric", "unit") else value


def show(value: float, apart_from: float | None = None, digits: int = 4) -> str:
    """A number for people: `digits` digits, or as many as distinguish it from `apart_from`."""
    text = _format(value, digits)
    if apart_from is None or value == apart_from:
        return text
    while digits < 17 and text == _format(apart_from, digits):
        digits += 1
        text = _format(value, digits)
    return text


def _format(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < 1e12 else text
