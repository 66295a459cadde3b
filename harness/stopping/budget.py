"""The budget, and the interval between two evaluations."""

import math
from collections.abc import Iterator
from typing import Self

from pydantic import Field, model_validator

from harness.settings import Section
from harness.stopping.judge import Finding, Judge
from harness.stopping.verdict import Evaluation, show


class Every(Section):
    """How often: every N epochs or every K steps."""

    steps: int | None = Field(None, ge=1, description="Every N optimizer steps.")
    epochs: int | None = Field(
        None, ge=1, description="Every N epochs, on the first step that completes one."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("steps", "epochs")
        return self


class Budget(Section):
    """The maximum length of the training over all launches; the first limit reached counts."""

    epochs: int | None = Field(None, ge=1, description="Epochs over all launches.")
    steps: int | None = Field(None, ge=1, description="Optimizer steps over all launches.")
    samples: int | None = Field(None, ge=1, description="Samples over all launches.")
    hours: float | None = Field(None, gt=0, description="Hours over all launches.")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.limits():
            raise ValueError("give at least one of epochs, steps, samples, hours")
        return self

    def limits(self) -> dict[str, float]:
        """The limits that are set, by their unit."""
        return {
            unit: getattr(self, unit)
            for unit in self.non_null("epochs", "steps", "samples", "hours")
        }


def num_evaluations(budget: Budget | None, every: Every) -> int | None:
    """How many evaluations a budget has, the last of which may follow a shorter interval; None
    where they are counted in different units.
    """
    unit = "steps" if every.epochs is None else "epochs"
    limit = None if budget is None else getattr(budget, unit)
    return None if limit is None else math.ceil(limit / getattr(every, unit))


class Moment(Budget):
    """A time of the training, in one unit."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("epochs", "steps", "samples", "hours")
        return self

    @property
    def limit(self) -> tuple[str, float]:
        """(unit, how many)."""
        return next(iter(self.limits().items()))

    def has_come(self, evaluation: Evaluation) -> bool:
        """Whether an evaluation is at this time or after it."""
        unit, when = self.limit
        return position_of(evaluation)[unit] >= when

    def problems(self, where: str, budget: Budget | None) -> Iterator[str]:
        """The problem of a time that is later than the budget, in its unit."""
        unit, when = self.limit
        limit = math.inf if budget is None else budget.limits().get(unit, math.inf)
        if when > limit:
            yield (
                f"{where}: {show(when)} {unit} are beyond the budget of {show(limit)}. Give an "
                "earlier time."
            )


def time_left_s(
    budget: Budget | None, last_step: int | None, step: int, per_step_s: float, elapsed_s: float
) -> float | None:
    """An upper bound on the remaining budget in seconds: until the step at which it is spent, at
    `per_step_s`, or until its hours, whichever comes first; None without a limit. elapsed_s: of all
    launches, which the hours count.
    """
    limits = []
    if last_step is not None:
        limits.append(max(0, last_step - step) * per_step_s)
    if budget is not None and budget.hours is not None:
        limits.append(max(0.0, budget.hours * 3600 - elapsed_s))
    return min(limits, default=None)


def position_of(evaluation: Evaluation) -> dict[str, float]:
    """What an evaluation's training has cost so far, by the units of a budget."""
    return {
        "epochs": evaluation.epoch,
        "steps": evaluation.step,
        "samples": evaluation.samples,
        "hours": evaluation.hours,
    }


class BudgetJudge(Judge):
    """Stops at the first limit that an evaluation reaches."""

    reason = "budget"
    of_metrics = False

    def __init__(self, budget: Budget | None) -> None:
        self._limits = {} if budget is None else budget.limits()

    def needs(self) -> Iterator[tuple[str, str]]:
        for unit in self._limits:
            if unit != "steps":
                yield f"stop.budget.{unit}", unit

    def take(self, evaluation: Evaluation) -> Finding:
        used = position_of(evaluation)
        for unit, limit in self._limits.items():
            if used[unit] >= limit:
                amount = f"{limit:,}" if isinstance(limit, int) else show(limit)
                what = f"{amount} {unit[:-1] if limit == 1 else unit}"
                return Finding(f"the budget of {what} is spent at step {evaluation.step:,}")
        return Finding()
