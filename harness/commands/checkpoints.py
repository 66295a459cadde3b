"""`fermarsi checkpoints list|verify|prune`: the checkpoints of a run."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import components
from harness.checkpoint.commit import prune
from harness.checkpoint.pointers import pointed
from harness.checkpoint.read import CheckpointInfo, Verify, list_checkpoints
from harness.checkpoint.retention import Ranking, Retention
from harness.commands.show import Listing
from harness.config.read import read_config
from harness.errors import CheckpointError, HarnessError
from harness.rundir.lease import Lease
from harness.stopping.controller import StopController
from harness.tasks.task import Task, known_metrics

COLUMNS = ("step", "epoch", "reason", "processes", "size", "metrics", "links", "valid")


@dataclass(frozen=True)
class CheckpointRow:
    """A checkpoint as a person sees it.

    `links`: latest, best; `ranked_by`: the metric to show, None for all.
    """

    listed: CheckpointInfo
    links: tuple[str, ...]
    ranked_by: str | None

    @property
    def valid(self) -> bool:
        return self.listed.manifest is not None

    def to_json(self) -> dict[str, Any]:
        manifest = self.listed.manifest
        names = {"epoch", "samples", "reason", "world_size", "metrics", "exact"}
        known: Mapping[str, Any] = {} if manifest is None else manifest.model_dump(include=names)
        return {
            "path": str(self.listed.path),
            "step": self.listed.step,
            "valid": self.valid,
            "problems": self.listed.problems,
            "links": list(self.links),
            "size_bytes": self.listed.size_bytes,
            **known,
        }

    def cells(self) -> tuple[str, ...]:
        """By COLUMNS."""
        one = self.listed
        links = ", ".join(self.links)
        if one.manifest is None:
            return (f"{one.step:,}", *[""] * 5, links, f"no: {'; '.join(one.problems[:3])}")
        manifest = one.manifest
        metrics = ", ".join(
            f"{name} {value:.4g}"
            for name, value in manifest.metrics.items()
            if self.ranked_by in (None, name)
        )
        size = f"{one.size_bytes / 1e6:,.1f} MB"
        return (
            f"{one.step:,}",
            str(manifest.epoch),
            manifest.reason,
            str(manifest.world_size),
            size,
            metrics,
            links,
            "yes",
        )


def list_run(run: Path, verify: Verify) -> Listing:
    """The checkpoints of a run by step, valid or not. Raises CheckpointError if there are none."""
    return Listing(f"{run}/checkpoints", COLUMNS, _rows(run, verify))


def verify_run(run: Path) -> tuple[Listing, int]:
    """The same with every file hashed again, and the exit code: 2 if a checkpoint is not valid."""
    rows = _rows(run, "full")
    code = 0 if all(row.valid for row in rows) else 2
    return Listing(f"{run}/checkpoints", COLUMNS, rows), code


def _rows(run: Path, verify: Verify) -> list[CheckpointRow]:
    directory = run / "checkpoints"
    listed = list_checkpoints(directory, verify)
    if not listed:
        raise CheckpointError(
            f"{directory}: no checkpoints. Give a run directory, e.g. runs/digits."
        )
    links: dict[Path, list[str]] = {}
    for name in ("latest", "best"):
        if (checkpoint := pointed(directory, name)) is not None:
            links.setdefault(checkpoint, []).append(name)
    ranked_by = None
    with suppress(HarnessError):
        best = _ranked_by(run)
        ranked_by = None if best is None else best.metric
    return [CheckpointRow(one, tuple(links.get(one.path, ())), ranked_by) for one in listed]


def prune_run(run: Path, keep_last: int, keep_best: int) -> list[str]:
    """Delete all but the newest and the best checkpoints; returns their paths. Raises HarnessError,
    also if the run is being trained.
    """
    _rows(run, "size")
    lease = Lease(run)
    lease.take()
    try:
        names = prune(run / "checkpoints", Retention(keep_last, keep_best), _ranked_by(run))
    finally:
        lease.release()
    return [f"{run}/checkpoints/{name}" for name in names]


def _ranked_by(run: Path) -> Ranking | None:
    """The metric by which the run's config ranks its checkpoints.

    Raises CheckpointError if that cannot be told: the best one might go.
    """
    try:
        config = read_config(run / "config.yaml")
        task: Task = components.build(config.task, "task")
        named = StopController(
            config.stop, known_metrics(task, config.data.evaluated)
        ).best_metric()
    except HarnessError as error:
        raise CheckpointError(
            f"{run}: which checkpoint is best cannot be told, so none is deleted: {error}"
        ) from error
    return None if named is None else Ranking(*named)
