"""From a config to a run: the only composition root."""

import hashlib
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from harness import components
from harness.agenda import Agenda
from harness.checkpoint import CheckpointStore, Loaded, Retention, choose, load, restore_network, restore_optimizer
from harness.config import Config, identity_changes, resolved_yaml
from harness.console import Console
from harness.engine import Engine
from harness.errors import ConfigError
from harness.evaluation import EvaluationPlan, fixed_sample
from harness.interrupt import Interruption
from harness.lease import Lease
from harness.ledger import Ledger
from harness.loading import Batch, Feed, Split
from harness.loop import fit
from harness.metrics import IntervalMetrics
from harness.outcome import Outcome, read_outcome
from harness.parts import Run
from harness.randomness import restore_ambient
from harness.ranks import Pulse, Ranks
from harness.sampling import Sampling
from harness.stopping import MetricInfo, StopController
from harness.tasks import Task
from harness.trace import Trace
from harness.tracking import Tracker, WandbOptions
from harness.window import LossWindow

VERSIONS = ("fermarsi", "torch", "accelerate", "safetensors", "numpy")


def train(config: Config, accelerator: Accelerator, ranks: Ranks) -> Outcome:
    """Run a training to its end, from wherever it stands. Called by every rank. Raises HarnessError."""
    ledger = Ledger()
    directory = config.run.dir
    finished = ranks.decide(lambda: finished_outcome(config))
    if finished is not None:
        outcome = Outcome.from_json(finished)
        Console(ranks.rank == 0).say(f"{directory}: this run is finished: {outcome.detail} Ask for more (stop.*) to go on.")
        return outcome
    lease = Lease(directory)
    with Interruption() as interruption:
        fence = ranks.decide(lambda: lease.take())  # rank 0 holds it
        try:
            return fit(build(config, accelerator, ranks, interruption, ledger, lease, launches=fence))
        finally:
            lease.release()


def splits(config: Config, task: Task, names: tuple[str, ...]) -> dict[str, Split]:
    """The named splits of a config's data. Raises ConfigError and DataError."""
    built = {}
    for name in names:
        split = getattr(config.data, name)
        where = f"data.{name}"
        source = components.build(split.source, f"{where}.source")
        treatments = [components.build(spec, f"{where}.treatments[{index}]") for index, spec in enumerate(split.treatments)]
        built[name] = Split(source, treatments, where, task.check)
    return built


def known_metrics(task: Task) -> dict[str, MetricInfo]:
    """What the stop settings may name: the task's metrics on the training and the validation split."""
    return {f"{split}/{name}": info for split in ("train", "val") for name, info in task.infos().items()}


def finished_outcome(config: Config) -> dict[str, Any] | None:
    """The outcome of a run that the present settings would end where it ended; None if it goes on or has not begun. Rank 0 only."""
    outcome = read_outcome(config.run.dir)
    if outcome is None or outcome.reason == "interrupted" or config.run.resume == "never":
        return None
    if outcome.reason == "stop_requested":
        return outcome.to_json() if (config.run.dir / "STOP").exists() else None
    if outcome.reason == "diverged":
        same = (config.run.dir / "config.yaml").read_text() == resolved_yaml(config)
        return outcome.to_json() if same else None
    chosen = choose(config.run.dir / "checkpoints", config.run.resume, verify="size")
    if chosen.path is None:
        return None
    task = components.build(config.task, "task")
    controller = StopController(config.stop, known_metrics(task))
    verdict = controller.restore(load(chosen.path, rank=0, num_ranks=0, device=torch.device("cpu")).trainer["stop"])
    return outcome.to_json() if verdict is not None and verdict.stops else None
