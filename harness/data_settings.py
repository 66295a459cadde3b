"""The `data` section of a config: splits, store and checks."""

from typing import Any

from pydantic import Field, field_validator

from harness.check_settings import ChecksConfig
from harness.components import STAGE
from harness.settings import Place, Section, Spec


class SplitConfig(Section):
    """Where the samples of a split come from and what is done to them."""

    source: Spec = Field(description="The component that yields samples: anything with __len__ and __getitem__.")
    treatments: tuple[Spec, ...] = Field((), strict=False, description="Components applied to each micro-batch, in this order.")

    @field_validator("treatments")
    @classmethod
    def _has_stages(cls, value: tuple[dict[Any, Any], ...]) -> tuple[dict[Any, Any], ...]:
        for index, spec in enumerate(value):
            if spec.get(STAGE, "online") != "online":
                raise ValueError(f"[{index}].{STAGE}: {spec[STAGE]!r}; only online can be set: what is done once or learns follows from the rest")
        return value


class TrainingSplitConfig(SplitConfig):
    """Where the samples for training come from, what is done to them, and how often each comes."""

    balance: str | None = Field(
        None,
        min_length=1,
        description="A column, e.g. label, whose values get the same share of an epoch each, rare ones by coming more often; null: each sample once.",
    )


class StoreConfig(Section):
    """Where samples are kept ready."""

    dir: Place = Field(description="A directory that runs may share: what sources and treatments give up to the first online one, by content.")


class DataConfig(Section):
    """The splits."""

    train: TrainingSplitConfig = Field(description="What is trained on.")
    val: SplitConfig | None = Field(None, description="What is evaluated at the end of each interval.")
    test: SplitConfig | None = Field(None, description="What only `fermarsi evaluate` and `predict` look at.")
    store: StoreConfig | None = Field(None, description="Keep what is done once, to be mapped into memory; null: do it anew for each micro-batch.")
    checks: ChecksConfig = Field(ChecksConfig(), description="What is looked for in the splits before the first step.")
    num_workers: int = Field(0, ge=0, description="Processes that prepare micro-batches, for each training process; never changes the result.")
