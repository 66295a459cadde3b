"""The parts of a run, as `fit` finds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.agenda import Agenda
from harness.checkpoint import CheckpointStore
from harness.config import Config
from harness.engine import Engine
from harness.evaluation import EvaluationPlan
from harness.interrupt import Interruption
from harness.ledger import Ledger
from harness.loading import Feed
from harness.metrics import IntervalMetrics
from harness.ranks import Pulse, Ranks
from harness.sampling import Sampling
from harness.stopping import StopController
from harness.tasks import Task
from harness.tracking import Tracker
from harness.window import LossWindow


@dataclass
class Run:
    """The parts of a training, built by run.py; they know nothing of each other. `step`: the number of steps completed."""

    config: Config
    directory: Path
    run_id: str
    ranks: Ranks
    pulse: Pulse
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
    tracker: Tracker
    ledger: Ledger
    step: int
    launches: int
    facts: Mapping[str, Any]
    looked_for_stop: float = field(default=float("-inf"))

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
        return {"step": self.step, "epoch": self.epoch, "samples": self.samples, "elapsed_s": self.ledger.elapsed_s()}
