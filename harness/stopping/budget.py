"""The budget, and the interval between two evaluations."""

from typing import Self

from pydantic import Field, model_validator

from harness.settings import _Settings
from harness.stopping.verdict import Evaluation, show


class Every(_Settings):
    """A stretch of training: every N epochs or every K steps."""

    steps: int | None = Field(None, ge=1, description="Every so many optimizer steps.")
    epochs: int | None = Field(
        None, ge=1, description="Every so many epochs, on the first step that completes one."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("steps", "epochs")
        return self


class Budget(_Settings):
    """What the training may cost over all launches; the limit met first counts."""

    epochs: int | None = Field(None, ge=1, description="Epochs over all launches.")
    steps: int | None = Field(None, ge=1, description="Optimizer steps over all launches.")
    samples: int | None = Field(None, ge=1, description="Samples over all launches.")
    hours: float | None = Field(None, gt=0, description="Hours over all launches.")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.given("epochs", "steps", "samples", "hours"):
            raise ValueError("give at least one of epochs, steps, samples, hours")
        return self


def spent_budget(budget: Budget | None, evaluation: Evaluation) -> str | None:
    """A sentence on the first limit of the budget that an evaluation meets."""
    if budget is None:
        return None
    used = {
        "epochs": evaluation.epoch,
        "steps": evaluation.step,
        "samples": evaluation.samples,
        "hours": evaluation.hours,
    }
    for unit in budget.given(*used):
        limit = getattr(budget, unit)
        if used[unit] >= limit:
            unit_of_one = unit[:-1] if limit == 1 else unit
            amount = f"{limit:,}" if isinstance(limit, int) else show(limit)
            return f"the budget of {amount} {unit_of_one} is spent at step {evaluation.step:,}"
    return None
