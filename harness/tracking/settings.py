"""The `tracking` section of a config: where records go in addition to metrics.jsonl."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from harness.components import TARGET
from harness.settings import Names, Section
from harness.wording import did_you_mean


class WandbConfig(Section):
    """A run in Weights & Biases."""

    project: str = Field(min_length=1, description="The W&B project.")
    entity: str | None = Field(
        None, min_length=1, description="The W&B user or team; null: the account's default."
    )
    mode: Literal["online", "offline", "disabled"] = Field(
        "online",
        description="offline: keep records on disk, for `fermarsi track sync RUN`; disabled: none.",
    )
    name: str | None = Field(
        None, min_length=1, description="What the run is called in W&B; null: run.name."
    )
    tags: Names = Field((), description="Tags of the W&B run.")
    group: str | None = Field(None, min_length=1, description="The W&B group the run belongs to.")
    notes: str | None = Field(None, min_length=1, description="A note kept with the W&B run.")
    alerts: bool = Field(
        True, description="W&B tells its users when the run stops, diverges or is interrupted."
    )
    checkpoints: bool = Field(
        False,
        description=(
            "Record the location of each checkpoint in the W&B run, as an artifact; nothing is "
            "uploaded."
        ),
    )


class TrackioConfig(Section):
    """A run in Trackio's database on this machine."""

    project: str = Field("fermarsi", min_length=1, description="The Trackio project.")


# Built-in backends
OWN = ("wandb", "tensorboard", "trackio")

# What a tracker must have: the methods of `harness.tracking.courier.Backend`
BACKEND_METHODS = ("begin", "row", "event", "finish", "abandon")


def _backend(value: object) -> object:
    if value in OWN or (isinstance(value, dict) and TARGET in value):
        return value
    raise ValueError(
        f"give {', '.join(OWN)}, or your own tracker: a mapping with {TARGET}: pkg.mod.Name "
        f"and its arguments.{did_you_mean(value, OWN)}"
    )


Backend = Annotated[
    Literal["wandb", "tensorboard", "trackio"] | dict[Any, Any], BeforeValidator(_backend)
]


class TrackingConfig(Section):
    """Where else records go. No backend can delay or end a training."""

    backends: tuple[Backend, ...] = Field(
        (),
        strict=False,
        description=(
            "The enabled backends: wandb, tensorboard (RUN/tensorboard), trackio, or your own "
            "tracker. A section for a backend also enables it."
        ),
    )
    wandb: WandbConfig | None = Field(
        None, description="Track the run in Weights & Biases; null: do not."
    )
    trackio: TrackioConfig | None = Field(
        None, description="Track the run in Trackio; null: only if tracking.backends names it."
    )
    timeout_s: float = Field(
        60.0,
        gt=0,
        description=(
            "Seconds that the end of a run waits for pending records to be sent; an interrupted "
            "run waits 10."
        ),
    )

    @model_validator(mode="after")
    def _knows_the_project(self) -> Self:
        if "wandb" in self.backends and self.wandb is None:
            raise ValueError(
                "backends names wandb, which needs a project: set tracking.wandb.project"
            )
        return self

    def uses(self, backend: str) -> bool:
        """Whether a backend is enabled."""
        return backend in self.backends or getattr(self, backend, None) is not None
