"""The `stop:` section of a config: when a training is evaluated, and what ends it. Values only; stopping.py judges by them.

What depends on the metrics of a task (does the metric exist, can it reach the value) is checked by stop_checks.py.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, field_serializer, field_validator, model_validator

Mode = Literal["max", "min"]
Need = Literal["all", "any"]

_PERCENT = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*%\s*")


def _gain(value: object) -> float | str:
    """A number (an absolute gain) or a text like "5%" (a share of the reference)."""
    if isinstance(value, str) and (share := _PERCENT.fullmatch(value)) and float(share[1]) < float("inf"):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{value!r} is neither a gain like 0.05 nor a share like 5%; neither can be negative")
    return float(value)


Gain = Annotated[float | str, PlainValidator(_gain, json_schema_input_type=float | str)]


class _Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )

    def given(self, *names: str) -> list[str]:
        """Those of the fields `names` that are set."""
        return [name for name in names if getattr(self, name) is not None]

    def _require_one(self, *names: str) -> None:
        given = self.given(*names)
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(names)} ({' and '.join(given) or 'none'} given)")


class Every(_Settings):
    """A stretch of training: every N epochs or every K steps."""

    steps: int | None = Field(None, ge=1, description="Every so many optimizer steps.")
    epochs: int | None = Field(None, ge=1, description="Every so many epochs, on the first step that completes one.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("steps", "epochs")
        return self


class Target(_Settings):
    """The value that a metric must reach."""

    at_least: float | None = Field(None, description="Reached by this value and any above.")
    at_most: float | None = Field(None, description="Reached by this value and any below.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("at_least", "at_most")
        return self


class Patience(_Settings):
    """For how long too little improvement is borne. In a config a bare number counts intervals."""

    intervals: int | None = Field(None, ge=1, description="So many intervals in a row; the same as the bare number.")
    epochs: int | None = Field(None, ge=1, description="So many epochs since the last interval that was not stale.")
    steps: int | None = Field(None, ge=1, description="So many optimizer steps since then.")
    samples: int | None = Field(None, ge=1, description="So many samples since then.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("intervals", "epochs", "steps", "samples")
        return self

    @property
    def unit(self) -> Literal["intervals", "epochs", "steps", "samples"]:
        if self.intervals is not None:
            return "intervals"
        if self.epochs is not None:
            return "epochs"
        return "steps" if self.steps is not None else "samples"

    @property
    def count(self) -> int:
        value = getattr(self, self.unit)
        assert isinstance(value, int)
        return value


class Improvement(_Settings):
    """How much a metric must get better, measured from what, and how many intervals in a row may fall short of it."""

    metric: str = Field(description="A metric with its split, e.g. val/accuracy.")
    at_least: Gain = Field(0.0, description="The gain asked for: 0.05 in the metric's own unit, or 5% of the reference; 0: any.")
    from_: Literal["best", "previous"] = Field("best", alias="from", description="The reference: the best that counted, or the interval before.")
    patience: Patience = Field(description="A number of intervals in a row, or a mapping with another unit.")
    cooldown: int = Field(0, ge=0, description="Intervals after a drop of the learning rate that are not stale.")
    mode: Mode | None = Field(None, description="Which way is better; null: what the metric declares.")

    @field_validator("patience", mode="before")
    @classmethod
    def _bare_number(cls, value: object) -> object:
        return value if isinstance(value, Mapping | Patience) else {"intervals": value}

    @field_serializer("patience")
    def _as_given(self, patience: Patience) -> Any:
        return patience.intervals if patience.intervals is not None else {patience.unit: patience.count}

    @property
    def absolute(self) -> float:
        """The gain asked for as it is; 0 if a share is asked for."""
        return self.at_least if isinstance(self.at_least, float) else 0.0

    @property
    def share(self) -> float:
        """The gain asked for as a share of the reference; 0 if an absolute gain is asked for."""
        return float(self.at_least.strip().rstrip("%")) / 100 if isinstance(self.at_least, str) else 0.0


class BestMetric(_Settings):
    """What the best checkpoint is best in."""

    metric: str = Field(description="A metric with its split, e.g. val/accuracy.")
    mode: Mode | None = Field(None, description="Which way is better; null: what the metric declares.")


class Divergence(_Settings):
    """A metric past a bound, or `ratio_to_best` times worse than its best so far."""

    metric: str = Field(description="A metric with its split, e.g. val/loss.")
    above: float | None = Field(None, description="Diverged when the metric is above this.")
    below: float | None = Field(None, description="Diverged when the metric is below this.")
    ratio_to_best: float | None = Field(None, gt=1, description="Diverged when the metric is so many times worse than its best so far.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("above", "below", "ratio_to_best")
        return self


class Spike(_Settings):
    """A training loss more than `z` robust standard deviations above the median of the `steps` steps before it."""

    z: float = Field(10.0, gt=0, description="How many robust standard deviations above the median make a spike.")
    steps: int = Field(100, ge=10, description="How many steps the median is of.")
    action: Literal["warn", "stop"] = Field("warn", description="What follows from a spike.")


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


class TrainSample(_Settings):
    """A fixed sample of the training split."""

    samples: int = Field(ge=1, description="How many samples, the same at each evaluation.")


class StopSettings(_Settings):
    """The whole `stop:` section."""

    every: Every = Field(Every(epochs=1), description="The interval: the stretch between two evaluations.")
    targets: dict[str, Target] = Field({}, description="What metrics must reach; a name without a split means train/ and val/.")
    targets_need: Need = Field("all", description="Whether all targets or any of them must be reached.")
    hold: int = Field(1, ge=1, description="Evaluations in a row at which the targets must hold.")
    improvement: tuple[Improvement, ...] = Field((), description="What counts as getting better, and how long too little is borne: one, or a list.")
    improvement_needs: Need = Field("all", description="Whether all criteria or any of them must have run out of patience.")
    best: BestMetric | None = Field(None, description="What the best checkpoint is best in; null: the first improvement's metric.")
    divergence: tuple[Divergence, ...] = Field((), description="What ends the training as diverged besides a non-finite loss: one, or a list.")
    spike: Spike | None = Field(None, description="What is done about sudden jumps of the training loss: warn, stop, or a mapping; null: nothing.")
    skipped_steps: int = Field(20, ge=1, description="With fp16, so many skipped steps in a row are divergence.")
    warmup: int = Field(0, ge=0, description="First intervals that are never stale.")
    train_metrics: Literal["interval", "full"] | TrainSample = Field(
        "interval", description="What training metrics are of: the interval's own batches, the whole training split, or a fixed sample of it."
    )
    budget: Budget | None = Field(None, description="What the training may cost over all launches; the limit met first counts.")

    @field_validator("targets", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        return {} if value is None else value

    @field_validator("improvement", "divergence", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        if value is None:
            return ()
        return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)

    @field_serializer("improvement", "divergence")
    def _as_given(self, values: tuple[Any, ...]) -> Any:
        """One alone is a mapping again, so that `stop.improvement.patience=3` reaches it."""
        return values[0] if len(values) == 1 else list(values)

    @field_validator("spike", mode="before")
    @classmethod
    def _bare_action(cls, value: object) -> object:
        return {"action": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _can_take_effect(self) -> Self:
        problems = []
        if not self.targets and not self.improvement and self.budget is None:
            problems.append("nothing ends the training: give targets, improvement or budget")
        if not self.targets and self.hold != 1:
            problems.append("hold has no effect without targets")
        if not self.targets and self.targets_need != "all":
            problems.append("targets_need has no effect without targets")
        if not self.improvement and self.warmup:
            problems.append("warmup has no effect without improvement")
        if not self.improvement and self.improvement_needs != "all":
            problems.append("improvement_needs has no effect without improvement")
        problems += [
            f"{place('improvement', index, self.improvement)}.patience: {criterion.patience.count} {unit} are no whole number of intervals of "
            f"{length} {unit}; give a multiple of {length}"
            for index, criterion in enumerate(self.improvement)
            if (unit := criterion.patience.unit) in ("epochs", "steps")
            and (length := getattr(self.every, unit)) is not None
            and criterion.patience.count % length
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def place(name: str, index: int, among: Sequence[object]) -> str:
    """How a user finds one of one or several settings."""
    return name if len(among) == 1 else f"{name}[{index}]"
