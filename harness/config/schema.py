"""What a config may hold, section by section.

Values only: no torch here, and no default that depends on the machine.

docs/config.md is made from this file by docs/config_reference.py.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from harness.checkpoint.settings import CheckpointConfig
from harness.config.parallel import ParallelConfig
from harness.config.parts import PartConfig
from harness.data.settings import DataConfig
from harness.settings import Section, Spec, UserPath
from harness.stopping.budget import Every
from harness.stopping.settings import StopSettings
from harness.tracking.settings import TrackingConfig
from harness.wording import did_you_mean

_RESUME = ("auto", "must", "never", "best", "latest")


_STEP_NAME = re.compile(r"step-\d+")


class RunConfig(Section):
    """The run as a whole."""

    name: str = Field(
        min_length=1,
        description="The run's name; by default the config file's name without its extension.",
    )
    dir: UserPath = Field(
        description=(
            "The directory for everything the run writes, relative to the working directory; by "
            "default runs/<run.name>."
        )
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description=(
            "The seed of all randomness: initial weights, order of samples, augmentation, dropout."
        ),
    )
    resume: str | int = Field(
        "auto",
        description=(
            "auto: continue from the newest valid checkpoint, or start; must: continue or fail; "
            "never: start, and fail if there are checkpoints; a step, best, latest, or the path "
            "of a checkpoint (with a /): continue from that one."
        ),
    )
    overwrite: bool = Field(
        False,
        description=(
            "With resume: never, move the contents of the run directory aside instead of failing."
        ),
    )
    exactness: Literal["none", "resume", "elastic"] = Field(
        "resume",
        description=(
            "resume: an interrupted run ends with the same bits as an uninterrupted one on the "
            "same number of processes; elastic: on any numbers of processes, changed at will; "
            "none: allow faster kernels whose results vary between runs."
        ),
    )
    paranoid: bool = Field(
        False, description="Every process judges each evaluation, and the verdicts are compared."
    )
    compare_every: Every | None = Field(
        None,
        description="How often the processes compare their state (parameters, buffers, moments). "
        "null: after a launch's first step and at each save.",
    )
    accept: tuple[Literal["code"], ...] = Field(
        (),
        strict=False,
        description="What may have changed since the checkpoint was written: code (of your own "
        "components). The change is reported and recorded, and the run is no longer "
        "exact.",
    )
    init_from: UserPath | None = Field(
        None,
        description=(
            "A run, checkpoint or safetensors file with the initial weights of a new run."
        ),
    )
    init_prefix: dict[str, str] = Field(
        {},
        description=(
            "With init_from: prefixes of weight names there and here, e.g. {encoder.: backbone.}; "
            "by default all weights under their own names."
        ),
    )
    timeout_s: float = Field(
        1800.0,
        gt=0,
        description="Seconds that a process waits for the others before it gives up.",
    )
    watch: Literal["leave", "warn", "off"] = Field(
        "leave",
        description="What to do when one process keeps all others waiting much longer than usual "
        "in this launch: leave: report it with its stack and end the launch (a single "
        "process is only reported); warn: only report it; off: do not watch.",
    )
    max_crashes: int = Field(
        3,
        ge=1,
        description=(
            "Consecutive crashes in the same step after which the next launch refuses to repeat it."
        ),
    )

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if "/" in value or value in (".", ".."):
            raise ValueError("a name must not contain /; set run.dir to choose the directory")
        return value

    @field_validator("resume")
    @classmethod
    def _is_a_way_to_resume(cls, value: str | int) -> str | int:
        if isinstance(value, int):
            if isinstance(value, bool) or value < 0:
                raise ValueError("a step is a whole number, at least 0")
            return value
        if "/" in value:
            return str(Path(value).expanduser())
        if value not in _RESUME and not _STEP_NAME.fullmatch(value):
            raise ValueError(
                f"use {', '.join(_RESUME)}, a step, or the path of a checkpoint (with a "
                f"/).{did_you_mean(value, _RESUME)}"
            )
        return value

    @field_validator("overwrite", "init_from", "init_prefix")
    @classmethod
    def _has_an_effect(cls, value: object, info: ValidationInfo) -> object:
        resume = info.data.get("resume", "never")
        if info.field_name == "overwrite" and value and resume != "never":
            raise ValueError(
                f"no effect with run.resume: {resume}; set run.resume: never, or remove it"
            )
        if info.field_name == "init_from" and value is not None and resume not in ("auto", "never"):
            raise ValueError(
                f"no effect with run.resume: {resume}, which never starts a new run; leave one of "
                "them out"
            )
        if info.field_name == "init_prefix" and value and info.data.get("init_from") is None:
            raise ValueError("no effect without run.init_from; set that too, or remove it")
        return value


class BatchConfig(Section):
    """The number of samples in an optimizer step and in a forward pass."""

    size: int = Field(ge=1, description="Samples per optimizer step, over all processes.")
    micro_size: int = Field(
        ge=1,
        description=(
            "Samples per forward pass. size / micro_size must be a whole number and a multiple of "
            "the number of processes."
        ),
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.size % self.micro_size:
            fits = [one for one in range(1, self.size + 1) if self.size % one == 0]
            nearest = sorted(sorted(fits, key=lambda one: abs(one - self.micro_size))[:2])
            below = self.size // self.micro_size * self.micro_size
            sizes = [size for size in (below, below + self.micro_size) if size]
            raise ValueError(
                f"size {self.size} is not a multiple of micro_size {self.micro_size}; "
                f"nearest that fit: size {' or '.join(map(str, sizes))}, or micro_size "
                f"{' or '.join(map(str, nearest))}"
            )
        return self


class EmaConfig(Section):
    """An exponential moving average of the weights over the steps."""

    decay: float = Field(
        0.999, gt=0, lt=1, description="The share of the average that a step leaves as it is."
    )
    ramp: bool = Field(
        True,
        description=(
            "Let the decay rise with the number n of updates, as min(decay, (1 + n) / (10 + n)), "
            "so that the first weights do not count for 1 / (1 - decay) steps."
        ),
    )
    evaluate: bool = Field(
        True,
        description=(
            "Evaluate the averaged weights, and keep them as the model of each checkpoint. false: "
            "only keep them beside the trained ones."
        ),
    )


class TrainConfig(Section):
    """How a step is computed."""

    precision: Literal["no", "bf16", "fp16"] = Field(
        "no",
        description="Mixed precision: no (float32), bf16, or fp16 with a loss scaler (CUDA only).",
    )
    clip_grad_norm: float | None = Field(
        None,
        gt=0,
        description=(
            "The maximum gradient norm; larger gradients are scaled down to it. null: no limit."
        ),
    )
    find_unused_parameters: bool = Field(
        False,
        description=(
            "With several processes, whether each step detects the parameters it did not use. "
            "Needed if a forward pass uses some of them only sometimes; costs a traversal of the "
            "graph and, on a GPU, a host wait per step."
        ),
    )
    compile: bool = Field(
        False,
        description=(
            "Compile the network with torch.compile before the first step, each shape of its input "
            "separately (64 at most). It identifies a run: the bits differ from those without."
        ),
    )
    matmul_precision: Literal["highest", "high", "medium"] | None = Field(
        None,
        description=(
            "Precision of float32 matrix products (torch.set_float32_matmul_precision): highest "
            "(float32), high (TF32 where the GPU has it), medium (bfloat16). null: highest; with "
            "run.exactness: none, high."
        ),
    )
    channels_last: bool = Field(
        False,
        description=(
            "Keep the weights of convolutions, and images with them, with their channels last in "
            "memory, which is faster on GPUs."
        ),
    )
    recompute: Literal["auto"] | Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (),
        description=(
            "Modules that run again in the backward pass instead of keeping their activations, "
            "which takes less memory, more time, and changes no bit: auto (the blocks that the "
            "network repeats), or patterns of their names, e.g. [encoder.*]."
        ),
    )
    ema: EmaConfig | None = Field(
        None,
        description=(
            "Average the trained weights over the steps. Buffers, such as BatchNorm's statistics, "
            "stay the network's own. It identifies a run."
        ),
    )

    @model_validator(mode="after")
    def _recomputes_once(self) -> Self:
        if self.compile and self.recompute:
            raise ValueError(
                "recompute does not go with compile: the compiler chooses by itself what the "
                "backward pass computes again. Leave one of them out"
            )
        return self


class EvaluationConfig(Section):
    """How splits are evaluated."""

    micro_size: int | None = Field(
        None,
        ge=1,
        description="Samples per forward pass in an evaluation; null: batch.micro_size.",
    )


class InterruptConfig(Section):
    """What is known about the scheduler that interrupts the run."""

    grace_s: float | None = Field(
        None,
        gt=0,
        description=(
            "Seconds from a signal to the kill. If a save would not fit, the last checkpoint is "
            "kept instead. null: what torch's agent grants (PET_SHUTDOWN_TIMEOUT, or 30), or "
            "unknown without an agent."
        ),
    )


class LogConfig(Section):
    """What is recorded between evaluations."""

    every: Every = Field(
        Every(steps=20),
        description="How often losses are read and recorded.",
    )
    show: tuple[str, ...] = Field(
        (),
        strict=False,
        description=(
            "Metrics that come first in the table of evaluations on the console, before those of "
            "the stop settings; all are recorded anyway."
        ),
    )
    trace: bool = Field(
        False,
        description=(
            "Write each step's loss and digests of samples and parameters to trace.jsonl, for "
            "comparing runs; slow."
        ),
    )


class Config(Section):
    """Everything that describes a run."""

    run: RunConfig = Field(description="The run as a whole.")
    data: DataConfig = Field(description="The splits.")
    network: Spec = Field(description="The component to be trained, a torch.nn.Module.")
    parts: dict[str, PartConfig] = Field(
        {},
        description=(
            "Parts of the network by path, e.g. encoder: frozen, with their own rates, from "
            "earlier runs."
        ),
    )
    task: Spec = Field(
        description="The component that computes losses, predictions and metrics from a batch."
    )
    batch: BatchConfig = Field(
        description="The number of samples in an optimizer step and in a forward pass."
    )
    optimizer: Spec = Field(description="A torch optimizer; the harness passes `params`.")
    schedule: Spec | None = Field(
        None,
        description=(
            "A learning-rate schedule, stepped once per optimizer step; the harness passes "
            "`optimizer`."
        ),
    )
    train: TrainConfig = Field(TrainConfig(), description="How a step is computed.")
    parallel: ParallelConfig = Field(
        ParallelConfig(), description="How processes share the network."
    )
    stop: StopSettings = Field(description="When the run is evaluated and what ends it.")
    checkpoint: CheckpointConfig = Field(
        CheckpointConfig(), description="When the run is saved and what is kept."
    )
    evaluation: EvaluationConfig = Field(
        EvaluationConfig(), description="How splits are evaluated."
    )
    interrupt: InterruptConfig = Field(
        InterruptConfig(), description="What is known about the scheduler that interrupts the run."
    )
    log: LogConfig = Field(LogConfig(), description="What is recorded between evaluations.")
    tracking: TrackingConfig = Field(TrackingConfig(), description="Where else records go.")

    @field_validator("parallel")
    @classmethod
    def _can_be_shared(cls, value: ParallelConfig, info: ValidationInfo) -> ParallelConfig:
        train = info.data.get("train")
        if value.kind == "ddp":
            return value
        if train is not None and train.precision == "fp16":
            raise ValueError(
                f"kind {value.kind} does not go with train.precision: fp16, whose loss scaler "
                "would see each process's own gradients; use bf16, or kind: ddp"
            )
        if train is not None and train.channels_last:
            raise ValueError(
                f"kind {value.kind} does not go with train.channels_last: such weights have no "
                "rows to share; leave one of them out"
            )
        run = info.data.get("run")
        if value.reduce_every != "step" and run is not None and run.exactness == "elastic":
            raise ValueError(
                f"reduce_every: {value.reduce_every} does not go with run.exactness: elastic, "
                "which adds up the whole gradients of each slot; leave one of them out"
            )
        return value

    @field_validator("checkpoint")
    @classmethod
    def _has_rows(cls, value: CheckpointConfig, info: ValidationInfo) -> CheckpointConfig:
        parallel = info.data.get("parallel")
        if value.model_layout == "rows" and parallel is not None and parallel.kind == "ddp":
            raise ValueError(
                "model_layout: rows has no effect with parallel.kind: ddp, where each process "
                "holds whole weights; leave it out, or set parallel.kind: fsdp"
            )
        return value

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return self.model_dump(mode="json", by_alias=True)

    def specs(self) -> list[Any]:
        """The components of a training, with nested ones inside."""
        splits = [self.data.train, self.data.val, self.data.test]
        data = [[split.source, *split.treatments] for split in splits if split is not None]
        return [self.network, self.task, self.optimizer, self.schedule, *data]

    @field_validator("parts")
    @classmethod
    def _begins_a_run(
        cls, value: dict[str, PartConfig], info: ValidationInfo
    ) -> dict[str, PartConfig]:
        resume = info.data["run"].resume if "run" in info.data else "auto"
        begun = [path for path, part in value.items() if part.init_from is not None]
        if begun and resume not in ("auto", "never"):
            raise ValueError(
                f"{begun[0]}.init_from: no effect with run.resume: {resume}, which never starts a "
                "new run; leave one of them out"
            )
        return value
