"""Checkpoints that cannot be lost: format, layout, writing, commit, reading, retention. See docs/checkpoints.md."""

from harness.checkpoint.commit import prune, set_aside_newer
from harness.checkpoint.export import export
from harness.checkpoint.manifest import Manifest
from harness.checkpoint.read import (
    Choice,
    Listed,
    Loaded,
    choose,
    find_checkpoint,
    inspect,
    list_checkpoints,
    load,
    load_trainer,
    step_name,
    verify_checkpoint,
)
from harness.checkpoint.retention import BestRank, Retention
from harness.checkpoint.stage import Snapshot
from harness.checkpoint.state import files_beside, optimizer_tensors, restore_network, restore_optimizer
from harness.checkpoint.write import CheckpointStore, SaveReport

__all__ = [
    "BestRank",
    "CheckpointStore",
    "Choice",
    "Listed",
    "Loaded",
    "Manifest",
    "Retention",
    "SaveReport",
    "Snapshot",
    "choose",
    "export",
    "files_beside",
    "find_checkpoint",
    "inspect",
    "list_checkpoints",
    "load",
    "load_trainer",
    "optimizer_tensors",
    "prune",
    "restore_network",
    "restore_optimizer",
    "set_aside_newer",
    "step_name",
    "verify_checkpoint",
]
