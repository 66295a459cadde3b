"""A run as `fit` finds it: what works together, and where it stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.checkpoint.write import CheckpointStore
from harness.config.read import resolved_yaml
from harness.config.schema import Config
from harness.data.feed import Feed
from harness.data.sampling import Sampling
from harness.interrupt import Interruption
from harness.metrics.interval import IntervalMetrics
from harness.ranks.heartbeat import DATA
from harness.ranks.pulse import Pulse
from harness.ranks.ranks import Ranks
from harness.ranks.watch import Watch
from harness.rundir.crashes import StepNote
from harness.rundir.ledger import Ledger
from harness.stopping.controller import StopController
from harness.stopping.verdict import Verdict
from harness.tasks.task import Task
from harness.tracking.tracker import Tracker
from harness.training.agenda import Agenda
from harness.training.engine import Engine
from harness.training.evaluation import EvaluationPlan
from harness.training.losses import LossWindow
from harness.training.pacing import Pace
from harness.training.speed import Speed
from harness.training.trace import Trace


@dataclass(frozen=True)
class Launch:
    """One process group's life within a run: its number, and the checkpoint that it resumed from,
    None at the beginning of a run.

    `saved`: the newest on the disk, where `checkpoint` may be a copy in memory.
    """

    run_id: str
    number: int
    checkpoint: Path | None
    saved: Path | None = None


@dataclass(frozen=True)
class Copies:
    """What is kept in memory for those that a lost process leaves; `pace`: on rank 0, where the
    clock asks for copies.
    """

    store: CheckpointStore
    pace: Pace | None


@dataclass
class Progress:
    """Where a run stands.

    `step`: the number of steps completed. `verdict`: what the stop settings say of the run as it
    was found, None if it has no evaluation yet. `evaluation_due`: the evaluation of the last step
    was not finished. `save_s`: what the last save took, None if none is known. `unsaved`: why an
    interrupted launch did not save its last step. `polled_s`: when rank 0 last looked for a file
    STOP and at the clock, by time.monotonic(). `seams`: where launches met in a way that may change
    bits, and why; kept for the rest of the run. `agreed`: whether the ranks were compared in this
    launch.
    """

    step: int
    verdict: Verdict | None = None
    evaluation_due: bool = False
    save_s: float | None = None
    unsaved: str | None = None
    polled_s: float = float("-inf")
    seams: list[str] = field(default_factory=list)
    agreed: bool = False


@dataclass(frozen=True)
class Run:
    """What a training works with, put together by build.py; they know nothing of each other.

    `facts`: what identifies the run, for manifests; `extra_files`: texts by name that lie in each
    checkpoint; `learned`: by treatments, in JSON; `pace`: on rank 0, where the clock asks for
    saves.
    """

    config: Config
    launch: Launch
    ranks: Ranks
    pulse: Pulse
    watch: Watch
    interruption: Interruption
    sampling: Sampling
    slots: range
    agenda: Agenda
    engine: Engine
    task: Task
    feed: Feed
    losses: LossWindow
    train_metrics: IntervalMetrics
    plans: Mapping[str, EvaluationPlan]
    controller: StopController
    store: CheckpointStore
    pace: Pace | None
    copies: Copies | None
    tracker: Tracker
    trace: Trace | None
    ledger: Ledger
    speed: Speed
    note: StepNote
    facts: Mapping[str, Any]
    extra_files: Mapping[str, str]
    learned: Sequence[Mapping[str, Any]]
    progress: Progress

    @cached_property
    def config_yaml(self) -> str:
        """The resolved config, for checkpoints."""
        return resolved_yaml(self.config)

    def begin_step(self) -> None:
        """Note the step that is worked on, for messages, for people, and for the launch after a
        crash.
        """
        self.ranks.heartbeat.step = self.step + 1
        self.ranks.heartbeat.enter(DATA)
        self.note.begin(self.step + 1)
        self.tracker.console.tick(self.position)

    @property
    def directory(self) -> Path:
        """Where the run leaves what it makes."""
        return self.config.run.dir

    @property
    def step(self) -> int:
        """The number of steps completed."""
        return self.progress.step

    @property
    def samples(self) -> int:
        """Samples seen, over all epochs."""
        return self.step * self.sampling.size

    @property
    def epoch(self) -> float:
        """Epochs completed, with the share of the present one."""
        return self.samples / self.sampling.num_samples

    def position(self) -> dict[str, Any]:
        """Where the run is, for a record."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "samples": self.samples,
            "elapsed_s": round(self.ledger.elapsed_s(), 3),
        }
