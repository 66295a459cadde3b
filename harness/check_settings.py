"""The `data.checks` section of a config: what is looked for in the splits before the first step. Values only; harness/checks/ does the looking."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Names = Annotated[tuple[str, ...], Field(strict=False)]
Range = Annotated[tuple[float, float], Field(strict=False)]
Found = Literal["error", "warn", "off"]


class ChecksConfig(BaseModel):
    """What is looked for in the splits before the first step. What is found ends the launch (error), is told (warn), or is not looked for (off)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    samples: int = Field(100_000, ge=1, description="At most so many samples of each split are looked at, evenly spread.")
    duplicates: Found = Field("error", description="Samples of two splits that have the same content.")
    conflicts: Found = Field("warn", description="Samples with the same content and different classes.")
    groups: Names = Field((), description="Columns whose values belong together, e.g. subject; those of a ByGroup rule and recordings are known.")
    shared_groups: Found = Field("error", description="A group, e.g. a subject or a recording, that is in two splits.")
    overlaps: Found = Field("error", description="Windows of two splits that share rows of a recording.")
    time: str | None = Field(
        None, min_length=1, description="The column of a sample's time, if train is before val and val before test; that of a ByTime rule is known."
    )
    time_order: Found = Field("error", description="With time: a sample that is not later than all of the split before.")
    not_finite: Found = Field("error", description="Numbers that are NaN or infinite; NaN where a treatment fills it in is fine.")
    constant: Found = Field("warn", description="Channels or columns that are the same in all of the training split.")
    ranges: dict[str, Range] = Field({}, description="The lowest and highest number that can be, by the key of a sample, e.g. {series: [-20, 20]}.")
    out_of_range: Found = Field("error", description="With ranges: numbers outside of them.")
    clipped: Found = Field("warn", description="Numbers heaped at the end of their range, as of a device that was driven too high.")
    max_clipped: float = Field(0.01, gt=0, lt=1, description="The share of a channel's numbers at the end of its range that is borne.")
    missing_classes: Found = Field("error", description="Classes that the training split lacks; one that only another split lacks is told.")
    imbalance: Found = Field("warn", description="Classes of very different sizes, and targets that are reached by always saying the same class.")
    max_imbalance: float = Field(5.0, ge=1, description="How many times as large as the smallest class the largest may be.")

    @field_validator("ranges")
    @classmethod
    def _is_a_range(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for key, (low, high) in value.items():
            if not low < high:
                raise ValueError(f"{key}: {low:g} to {high:g} holds no number; give the lowest first")
        return value

    @model_validator(mode="after")
    def _can_take_effect(self) -> Self:
        for given, check in (("groups", "shared_groups"), ("time", "time_order"), ("ranges", "out_of_range")):
            if getattr(self, given) and getattr(self, check) == "off":
                raise ValueError(f"{given} has no effect with {check}: off; leave one of them out")
        return self
