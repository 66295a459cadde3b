"""The `data` section of a config: splits, store and checks."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from harness.components import STAGE
from harness.settings import Names, Place, Section, Spec


class SplitConfig(Section):
    """Where the samples of a split come from and what is done to them."""

    source: Spec = Field(
        description="The component that yields samples: anything with __len__ and __getitem__."
    )
    treatments: tuple[Spec, ...] = Field(
        (), strict=False, description="Components applied to each micro-batch, in this order."
    )

    @field_validator("treatments")
    @classmethod
    def _has_stages(cls, value: tuple[dict[Any, Any], ...]) -> tuple[dict[Any, Any], ...]:
        for index, spec in enumerate(value):
            if spec.get(STAGE, "online") != "online":
                raise ValueError(
                    f"[{index}].{STAGE}: {spec[STAGE]!r}; only online can be set: what is done "
                    "once or learns follows from the rest"
                )
        return value


class TrainingSplitConfig(SplitConfig):
    """Where the samples for training come from, what is done to them, and how often each comes."""

    balance: str | None = Field(
        None,
        min_length=1,
        description=(
            "A column, e.g. label, whose values get the same share of an epoch each, rare ones by "
            "coming more often; null: each sample once."
        ),
    )


class StoreConfig(Section):
    """Where samples are kept ready."""

    dir: Place = Field(
        description=(
            "A directory that runs may share: what sources and treatments give up to the first "
            "online one, by content."
        )
    )


Found = Literal["error", "warn", "off"]


Range = Annotated[tuple[float, float], Field(strict=False)]


class ChecksConfig(Section):
    """What is looked for in the splits before the first step.

    What is found ends the launch (error), is told (warn), or is not looked for (off).
    """

    samples: int = Field(
        100_000,
        ge=1,
        description="At most so many samples of each split are looked at, evenly spread.",
    )
    duplicates: Found = Field(
        "error", description="Samples of two splits that have the same content."
    )
    conflicts: Found = Field(
        "warn", description="Samples with the same content and different classes."
    )
    groups: Names = Field(
        (),
        description=(
            "Columns whose values belong together, e.g. subject; those of a ByGroup rule and "
            "recordings are known."
        ),
    )
    shared_groups: Found = Field(
        "error", description="A group, e.g. a subject or a recording, that is in two splits."
    )
    overlaps: Found = Field(
        "error", description="Windows of two splits that share rows of a recording."
    )
    time: str | None = Field(
        None,
        min_length=1,
        description=(
            "The column of a sample's time, if train is before val and val before test; that of a "
            "ByTime rule is known."
        ),
    )
    time_order: Found = Field(
        "error", description="With time: a sample that is not later than all of the split before."
    )
    not_finite: Found = Field(
        "error",
        description="Numbers that are NaN or infinite; NaN where a treatment fills it in is fine.",
    )
    constant: Found = Field(
        "warn", description="Channels or columns that are the same in all of the training split."
    )
    ranges: dict[str, Range] = Field(
        {},
        description=(
            "The lowest and highest number that can be, by the key of a sample, e.g. {series: "
            "[-20, 20]}."
        ),
    )
    out_of_range: Found = Field("error", description="With ranges: numbers outside of them.")
    clipped: Found = Field(
        "warn",
        description=(
            "Numbers heaped at the end of their range, as of a device that was driven too high."
        ),
    )
    max_clipped: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="The share of a channel's numbers at the end of its range that is borne.",
    )
    missing_classes: Found = Field(
        "error",
        description=(
            "Classes that the training split lacks; one that only another split lacks is told."
        ),
    )
    imbalance: Found = Field(
        "warn",
        description=(
            "Classes of very different sizes, and targets that are reached by always saying the "
            "same class."
        ),
    )
    max_imbalance: float = Field(
        5.0, ge=1, description="How many times as large as the smallest class the largest may be."
    )

    @field_validator("ranges")
    @classmethod
    def _is_a_range(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for key, (low, high) in value.items():
            if not low < high:
                raise ValueError(
                    f"{key}: {low:g} to {high:g} holds no number; give the lowest first"
                )
        return value

    @model_validator(mode="after")
    def _can_take_effect(self) -> Self:
        for given, check in (
            ("groups", "shared_groups"),
            ("time", "time_order"),
            ("ranges", "out_of_range"),
        ):
            if getattr(self, given) and getattr(self, check) == "off":
                raise ValueError(f"{given} has no effect with {check}: off; leave one of them out")
        return self


class DataConfig(Section):
    """The splits."""

    train: TrainingSplitConfig = Field(description="What is trained on.")
    val: SplitConfig | None = Field(
        None, description="What is evaluated at the end of each interval."
    )
    test: SplitConfig | None = Field(
        None, description="What only `fermarsi evaluate` and `predict` look at."
    )
    store: StoreConfig | None = Field(
        None,
        description=(
            "Keep what is done once, to be mapped into memory; null: do it anew for each "
            "micro-batch."
        ),
    )
    checks: ChecksConfig = Field(
        ChecksConfig(), description="What is looked for in the splits before the first step."
    )
    num_workers: int = Field(
        0,
        ge=0,
        description=(
            "Processes that prepare micro-batches, for each training process; never changes the "
            "result."
        ),
    )

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The splits whose metrics a training is judged by."""
        return ("train",) if self.val is None else ("train", "val")
