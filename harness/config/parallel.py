"""The section of a config that says how processes share a network."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from harness.errors import ConfigError
from harness.settings import Section
from harness.wording import some


class ParallelPrecisionConfig(Section):
    """The types that sharded parameters are gathered and their gradients are summed in."""

    params: Literal["bf16"] | None = Field(
        None,
        description=(
            "What passes compute with; the optimizer keeps the parameters as they are. null: as "
            "they are."
        ),
    )
    reduce: Literal["fp32", "bf16"] | None = Field(
        None, description="What gradients are summed in; null: as the parameters are."
    )


class ParallelConfig(Section):
    """How processes share the network."""

    kind: Literal["ddp", "fsdp", "hsdp"] = Field(
        "ddp",
        description=(
            "ddp: each process holds all of it; fsdp: each holds its rows of every parameter, "
            "gradient and moment (FSDP2); hsdp: so do the processes of a machine, and machines "
            "hold the same. Another kind may go on with the run."
        ),
    )
    shard: Literal["auto"] | Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = Field(
        "auto",
        description=(
            "The modules whose parameters are gathered together while they are used; all others "
            "are gathered for a whole pass. auto: the blocks that the network repeats; or "
            "patterns of names, e.g. [encoder.*]."
        ),
    )
    replicate: int | None = Field(
        None,
        ge=1,
        description=(
            "With hsdp, how many groups of processes hold the whole network; null: one a machine."
        ),
    )
    precision: ParallelPrecisionConfig = Field(
        ParallelPrecisionConfig(), description="Types in which processes exchange."
    )
    offload: Literal["none", "cpu"] = Field(
        "none",
        description=(
            "cpu: parameters, gradients and moments stay in the memory of the host, and the "
            "optimizer computes there (GPUs only)."
        ),
    )
    reshard_after_forward: bool = Field(
        True,
        description=(
            "Give a block's gathered parameters back after its forward pass, and gather them "
            "again for its backward pass: less memory, more traffic."
        ),
    )
    reduce_every: Literal["step", "micro_batch"] = Field(
        "step",
        description=(
            "When processes sum gradients: with a step's last micro-batch, each holding whole "
            "ones until then, or with every one, each holding its rows: less memory, more traffic, "
            "and other last bits."
        ),
    )

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.kind == "ddp":
            idle = [name for name in sorted(self.model_fields_set - {"kind"}) if self._is_set(name)]
            if idle:
                raise ValueError(
                    f"{', '.join(idle)}: no effect with kind: ddp, where each process holds the "
                    "whole network; set kind: fsdp, or remove it"
                )
        if self.kind == "fsdp" and self.replicate is not None:
            raise ValueError(
                "replicate: no effect with kind: fsdp, which shares one network among all "
                "processes; set kind: hsdp, or remove it"
            )
        return self

    def _is_set(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)


def num_replicas_of(settings: ParallelConfig, size: int, environ: Mapping[str, str]) -> int:
    """How many groups of ranks hold the whole network. Raises ConfigError."""
    if settings.kind != "hsdp":
        return 1
    if settings.replicate is None:
        # One a machine, as the launcher says
        return size // math.gcd(size, int(environ.get("LOCAL_WORLD_SIZE", size)))
    if size % settings.replicate:
        fits = [str(one) for one in range(1, size + 1) if size % one == 0]
        raise ConfigError(
            f"parallel.replicate: {size} processes do not make {settings.replicate} groups of the "
            f"same size. Set one of {some(fits)}, or launch a multiple of {settings.replicate} "
            "processes."
        )
    return settings.replicate
