"""What a trained network says: metrics and predictions from a checkpoint, without the training around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from harness import components
from harness.checkpoint import choose, load, restore_network
from harness.config import Config, read_config
from harness.errors import CheckpointError, ConfigError
from harness.evaluation import EvaluationPlan, Result, evaluate, evaluating
from harness.loading import Split, evaluation_batches
from harness.ranks import Ranks
from harness.tasks import Task


@dataclass(frozen=True)
class Trained:
    """A network as a checkpoint left it, with the config and the task it was trained by."""

    path: Path
    config: Config
    network: nn.Module
    task: Task
    device: torch.device


def find_checkpoint(path: Path) -> Path:
    """A checkpoint directory itself, or of a run's checkpoints the best one, else the newest. Raises CheckpointError."""
    if (path / "manifest.json").exists():
        return path
    best = path / "checkpoints" / "best"
    if best.exists():
        return best.resolve()
    chosen = choose(path / "checkpoints", "auto", verify="full")
    if chosen.path is None:
        raise CheckpointError(f"{path}: neither a checkpoint nor a run with one. Give a run directory or one of its checkpoints/step-*.")
    return chosen.path


def load_trained(path: Path, allow: Sequence[str] = ()) -> Trained:
    """Build the network of a run or checkpoint and put its weights in. A checkpoint is data: what its config may name is limited (`allow` adds prefixes)."""
    found = find_checkpoint(path)
    config = read_config(found / "config.yaml")
    for where in ("network", "task", "data"):
        components.allowed(getattr(config, where), where, allow)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = components.build(config.network, "network").to(device)
    return Trained(found, config, network, components.build(config.task, "task"), device)
