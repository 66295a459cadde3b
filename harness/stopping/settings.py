"""The `stop:` section of a config: when a training is evaluated, and what ends it.

Values only. Each criterion has a file in this folder with its settings, its judge, and the possible
problems of the settings for the metrics of a task (does the metric exist, can it reach the value).
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from harness.settings import Section, item_path
from harness.stopping.best import BestMetric
from harness.stopping.budget import Budget, Every
from harness.stopping.divergence import Divergence, Spike
from harness.stopping.forecast import Forecast
from harness.stopping.improvement import Improvement
from harness.stopping.judge import Need
from harness.stopping.milestones import Milestone
from harness.stopping.overfitting import Gap
from harness.stopping.plateau import Plateau
from harness.stopping.targets import Target

_NO_ERROR = (
    "there is no standard error of metrics of an interval's own batches, while the network "
    "changes; set train_metrics, or name a val/ metric"
)


class TrainSample(Section):
    """A fixed sample of the training split."""

    samples: int = Field(
        ge=1, description="The number of samples, the same ones at each evaluation."
    )


class StopSettings(Section):
    """The whole `stop:` section."""

    every: Every = Field(Every(epochs=1), description="The interval between two evaluations.")
    targets: dict[str, Target] = Field(
        {},
        description="Values that metrics must reach; a name without a split means train/ and val/.",
    )
    targets_need: Need = Field(
        "all", description="Whether all targets or any of them must be reached."
    )
    hold: int = Field(
        1, ge=1, description="Consecutive evaluations at which the targets must hold."
    )
    improvement: tuple[Improvement, ...] = Field(
        (),
        description=(
            "What counts as improvement, and how long too little is tolerated: one criterion, or "
            "a list."
        ),
    )
    improvement_needs: Need = Field(
        "all", description="Whether all criteria or any of them must have run out of patience."
    )
    milestones: tuple[Milestone, ...] = Field(
        (),
        description=(
            "Values that metrics must have reached by some time, else the run ends as hopeless: "
            "one, or a list."
        ),
    )
    forecast: Forecast | None = Field(
        None,
        description=(
            "What follows from too small a chance that a target is reached within the budget, or "
            "that the best improves."
        ),
    )
    gap: Gap | None = Field(
        None,
        description="How much worse validation may be than training before it counts as "
        "overfitting.",
    )
    plateau: tuple[Plateau, ...] = Field(
        (),
        description=(
            "Ends the training when none of these metrics is trending better: one, or a list."
        ),
    )
    best: BestMetric | None = Field(
        None,
        description="The metric by which checkpoints are ranked; null: the first improvement's "
        "metric.",
    )
    divergence: tuple[Divergence, ...] = Field(
        (),
        description="Causes of divergence other than a non-finite loss: one, or a list.",
    )
    spike: Spike | None = Field(
        None,
        description=(
            "What to do about sudden jumps of the training loss: warn, stop, or a mapping; null: "
            "nothing."
        ),
    )
    skipped_steps: int = Field(
        20,
        ge=1,
        description="With fp16, the number of consecutive skipped steps that counts as divergence.",
    )
    warmup: int = Field(0, ge=0, description="The number of first intervals that are never stale.")
    train_metrics: Literal["interval", "full"] | TrainSample = Field(
        "interval",
        description=(
            "What training metrics are computed on: the interval's own batches, the whole "
            "training split, or a fixed sample of it."
        ),
    )
    budget: Budget | None = Field(
        None,
        description="The maximum length of the training over all launches; the first limit "
        "reached counts.",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        return {} if value is None else value

    @field_validator("improvement", "milestones", "plateau", "divergence", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        if value is None:
            return ()
        return (
            tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        )

    @field_serializer("improvement", "milestones", "plateau", "divergence")
    def _as_given(self, values: tuple[Any, ...]) -> Any:
        """One alone is a mapping again, so that `stop.improvement.patience=3` reaches it."""
        return values[0] if len(values) == 1 else list(values)

    @field_validator("spike", mode="before")
    @classmethod
    def _bare_action(cls, value: object) -> object:
        return {"action": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _can_take_effect(self) -> Self:
        problems = self.contradictions()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def contradictions(self, unknown: Collection[str] = ()) -> list[str]:
        """What of the settings has no effect beside the others, or no sense. `unknown`: fields of
        which nothing is to be said, nor of others for their sake.
        """
        problems = []
        ends = ("targets", "improvement", "plateau", "budget")
        if not any(getattr(self, name) or name in unknown for name in ends):
            problems.append("nothing ends the training: give targets, improvement or budget")
        problems += [
            f"{name} has no effect without {needed}"
            for name, needed in (
                ("hold", "targets"),
                ("targets_need", "targets"),
                ("warmup", "improvement"),
                ("improvement_needs", "improvement"),
            )
            if not (getattr(self, needed) or needed in unknown)
            and getattr(self, name) != type(self).model_fields[name].default
        ]
        if "train_metrics" not in unknown:
            problems += self._without_train_metrics()
        problems += [] if "every" in unknown else self._broken_intervals()
        return problems

    def _without_train_metrics(self) -> Iterator[str]:
        if self.gap is not None and self.train_metrics == "interval":
            yield (
                "gap: metrics of an interval's own batches, while the network changes, are not to "
                "be compared with those of validation; set train_metrics: full, or a sample"
            )
        for index, criterion in enumerate(self.improvement):
            if self._lacks_error(criterion):
                where = item_path("improvement", index, self.improvement)
                yield f"{where}.at_least: {_NO_ERROR}"
        if self.best is not None and self._lacks_error(self.best):
            yield f"best.at_least: {_NO_ERROR}"

    def _broken_intervals(self) -> Iterator[str]:
        for index, criterion in enumerate(self.improvement):
            unit, count = criterion.patience.unit, criterion.patience.count
            length = getattr(self.every, unit, None)
            if length is not None and count % length:
                where = item_path("improvement", index, self.improvement)
                yield (
                    f"{where}.patience: {count} {unit} are not a whole number of intervals of "
                    f"{length} {unit}; give a multiple of {length}"
                )

    def _lacks_error(self, one: Improvement | BestMetric) -> bool:
        of_training = one.metric.startswith("train/") and self.train_metrics == "interval"
        return bool(one.errors) and of_training
