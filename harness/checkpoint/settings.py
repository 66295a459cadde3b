"""The settings of checkpoints."""

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.settings import Section
from harness.stopping.budget import Every

ModelLayout = Literal["whole", "rows"]


class SaveEvery(Section):
    """How often checkpoints are saved: every N epochs, K steps or M minutes."""

    steps: int | None = Field(None, ge=1, description="Every N optimizer steps.")
    epochs: int | None = Field(
        None, ge=1, description="Every N epochs, on the first step that completes one."
    )
    minutes: float | None = Field(
        None, gt=0, description="Every N minutes, by the clock of the first process."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("steps", "epochs", "minutes")
        return self

    def by_step(self) -> Every | None:
        """The same as a function of the step; None where the clock decides."""
        return None if self.minutes is not None else Every(steps=self.steps, epochs=self.epochs)


class CheckpointConfig(Section):
    """When the run is saved and what is kept."""

    every: SaveEvery | Literal["auto"] | None = Field(
        None,
        description="How often checkpoints are saved; auto: from the cost of a save and how often "
        "the run fails; null: at each evaluation.",
    )
    in_memory: SaveEvery | Literal["auto"] | None = Field(
        None,
        description="How often a copy also goes into the memory of the machine, from where the "
        "others go on when a process or a machine is lost (fermarsi launch --min-processes); auto: "
        "as for every; null: never.",
    )
    max_overhead: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="With auto, the share of the training's time that saves may cost, and so "
        "may copies.",
    )
    failures_per_day: float | None = Field(
        None,
        gt=0,
        description="With auto, failures per day of training, on all machines together. "
        "null: as observed in this run.",
    )
    keep_last: int = Field(2, ge=1, description="The number of newest checkpoints kept.")
    keep_best: int = Field(1, ge=1, description="The number of best checkpoints kept.")
    keep_every: Every | None = Field(
        None,
        description="The first checkpoint of each such period is kept permanently. null: none.",
    )
    model_layout: ModelLayout = Field(
        "whole",
        description="How the weights of a sharded network (parallel) are written: whole tensors, "
        "for which the ranks send each other their rows in the background, so that from_pretrained "
        "reads the directory; or the rows that each rank holds, in half the memory.",
    )
    verify: Literal["full", "size"] = Field(
        "full",
        description=(
            "What is checked before a resume: hashes of all files (full), or sizes of those that "
            "hold tensors (size)."
        ),
    )
    max_failures: int = Field(
        3, ge=1, description="The number of consecutive failed saves that ends the run."
    )
    timeout_s: float = Field(
        1800.0, gt=0, description="Seconds after which a save counts as failed."
    )

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        fields = type(self).model_fields
        given = [
            name
            for name in ("max_overhead", "failures_per_day")
            if getattr(self, name) != fields[name].default
        ]
        if given and "auto" not in (self.every, self.in_memory):
            raise ValueError(
                f"{given[0]} has no effect without every: auto; set that too, or leave it out"
            )
        return self
