"""The `tracking` section of a config: where records go beside metrics.jsonl."""

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
            "Keep with the W&B run where each checkpoint is, as an artifact; nothing of it is "
            "uploaded."
        ),
    )


class TrackioConfig(Section):
    """A run in Trackio's database on this machine."""

    project: str = Field("fermarsi", min_length=1, description="The Trackio project.")


# Backends of the harness's own
OWN = ("wandb", "tensorboard", "trackio")

# What a tracker has to have: the methods of `harness.tracking.courier.Backend`
BACKEND_METHODS = ("begin", "row", "event", "finish", "abandon")


def _backend(value: object) -> object:
    if value in OWN or (isinstance(value, dict) and TARGET in value):
        return value
    raise ValueError(
        f"give {', '.join(OWN)}, or a tracker of your own: a mapping with {TARGET}: pkg.mod.Name "
        f"and its arguments.{did_you_mean(value, OWN)}"
    )


Backend = Annotated[
    Literal["wandb", "tensorboard", "trackio"] | dict[Any, Any], BeforeValidator(_backend)
]


class TrackingConfig(Section):
    """Where else records go. None of it can delay a training or end it."""

    backends: tuple[Backend, ...] = Field(
        (),
        strict=False,
        description=(
            "What is on: wandb, tensorboard (RUN/tensorboard), trackio, or a tracker of your own. "
            "A section given turns it on by itself."
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
            "Seconds that the end of a run waits for what is left to be sent; an interrupted one "
            "waits 10."
        ),
    )

    @model_validator(mode="after")
    def _knows_the_project(self) -> Self:
        if "wandb" in self.backends and self.wandb is None:
            raise ValueError(
                "backends names wandb, which needs a project: give tracking.wandb.project"
            )
        return self

    def uses(self, backend: str) -> bool:
        """Whether records go there."""
        return backend in self.backends or getattr(self, backend, None) is not None
