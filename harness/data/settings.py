"""The `data` section of a config: splits, store and checks."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from harness.components import STAGE
from harness.settings import Names, Section, Spec, UserPath

SPLITS = ("train", "val", "test")


class SplitConfig(Section):
    """The source of a split's samples and their treatments."""

    source: Spec = Field(
        description=(
            "The component that yields samples: anything with __len__ and __getitem__, or a stream "
            "with __iter__."
        )
    )
    samples: int | None = Field(
        None,
        ge=1,
        description=(
            "Of a stream, a source without a length: how many samples count as an epoch, or are "
            "evaluated."
        ),
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
                    f"[{index}].{STAGE}: {spec[STAGE]!r}; only online can be set: the other "
                    "stages follow from the treatments"
                )
        return value


class TrainingSplitConfig(SplitConfig):
    """The source of the training samples, their treatments, and how often each is drawn."""

    balance: str | None = Field(
        None,
        min_length=1,
        description=(
            "A column, e.g. label, whose values each get the same share of an epoch, rare ones by "
            "repetition; null: each sample once."
        ),
    )


class StoreConfig(Section):
    """The store of prepared samples."""

    dir: UserPath = Field(
        description=(
            "A directory, which runs may share, for the output of sources and of the treatments "
            "before the first online one, by content."
        )
    )
    samples: bool = Field(
        True,
        description=(
            "Whether samples are kept. Without them it has only what is read of tables and lists "
            "of files, for data that should not be there twice."
        ),
    )


Found = Literal["error", "warn", "off"]


Range = Annotated[tuple[float, float], Field(strict=False)]


class ChecksConfig(Section):
    """Checks of the splits before the first step.

    A finding ends the launch (error) or is reported (warn); off turns a check off.
    """

    samples: int = Field(
        100_000,
        ge=1,
        description="The maximum number of samples checked per split, evenly spread.",
    )
    duplicates: Found = Field(
        "error", description="Samples of two splits that have the same content."
    )
    near_duplicates: Found = Field(
        "warn",
        description=(
            "`fermarsi data check` only: samples of two splits that are nearly the same, by "
            "perceptual hashes of images and sound, or rounded numbers and texts."
        ),
    )
    drift: Found = Field(
        "warn",
        description=(
            "`fermarsi data check` only: features that are distributed differently in two splits."
        ),
    )
    max_drift: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="The accepted difference between the shares of two splits.",
    )
    conflicts: Found = Field(
        "warn", description="Samples with the same content and different classes."
    )
    groups: Names = Field(
        (),
        description=(
            "Columns that define groups, e.g. subject; those of ByGroup rules and recordings are "
            "added."
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
            "The column of a sample's time, if train is before val and val before test; by default "
            "that of a ByTime rule."
        ),
    )
    time_order: Found = Field(
        "error",
        description="With time: a sample that is not later than all samples of the split before.",
    )
    not_finite: Found = Field(
        "error",
        description="Numbers that are NaN or infinite; NaN that a treatment fills in is allowed.",
    )
    constant: Found = Field(
        "warn", description="Channels or columns that are constant in the training split."
    )
    ranges: dict[str, Range] = Field(
        {},
        description=(
            "The lowest and highest possible number, by the key in samples, e.g. {series: "
            "[-20, 20]}."
        ),
    )
    out_of_range: Found = Field("error", description="With ranges: numbers outside them.")
    clipped: Found = Field(
        "warn",
        description=(
            "Numbers that pile up at the end of their range: an overdriven device, capped ages."
        ),
    )
    unused_parts: Found = Field(
        "warn",
        description=(
            "Samples that a rule keeps by default for a part, e.g. test, that no split reads."
        ),
    )
    max_clipped: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="The accepted share of a channel's numbers at the end of its range.",
    )
    missing_classes: Found = Field(
        "error",
        description=(
            "Classes that the training split lacks; one that only another split lacks is a warning."
        ),
    )
    imbalance: Found = Field(
        "warn",
        description=(
            "Classes of very different sizes, and targets that predicting one class for every "
            "sample would reach."
        ),
    )
    max_imbalance: float = Field(
        5.0, ge=1, description="The accepted ratio of the largest to the smallest class."
    )

    @field_validator("ranges")
    @classmethod
    def _is_a_range(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for key, (low, high) in value.items():
            if not low < high:
                raise ValueError(f"{key}: {low:g} to {high:g} is empty; give the lower end first")
        return value

    @model_validator(mode="after")
    def _can_take_effect(self) -> Self:
        for given, check in (
            ("groups", "shared_groups"),
            ("time", "time_order"),
            ("ranges", "out_of_range"),
        ):
            if getattr(self, given) and getattr(self, check) == "off":
                raise ValueError(f"{given} has no effect with {check}: off; remove one of them")
        return self


class DataConfig(Section):
    """The splits."""

    train: TrainingSplitConfig = Field(description="The training split.")
    val: SplitConfig | None = Field(
        None, description="The split that is evaluated at the end of each interval."
    )
    test: SplitConfig | None = Field(
        None, description="The split for `fermarsi evaluate` and `predict` only."
    )
    store: StoreConfig | None = Field(
        None,
        description=(
            "Store the output of one-time treatments, memory-mapped; null: compute it for each "
            "micro-batch."
        ),
    )
    checks: ChecksConfig = Field(
        ChecksConfig(), description="Checks of the splits before the first step."
    )
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description=(
            "Worker processes per training process that prepare micro-batches; does not affect "
            "results. auto: none where a micro-batch takes less than 3 ms or the cores are busy "
            "computing, else one per spare core, 8 at most."
        ),
    )

    @property
    def few_workers(self) -> int:
        """The same where nothing was measured: none unless they are asked for."""
        return 0 if self.num_workers == "auto" else self.num_workers

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that the config has."""
        return tuple(name for name in SPLITS if getattr(self, name) is not None)

    @property
    def evaluated_splits(self) -> tuple[str, ...]:
        """The splits that are evaluated during training."""
        return ("train",) if self.val is None else ("train", "val")
