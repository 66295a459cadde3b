"""`fermarsi checkpoints list|verify|prune`: the checkpoints of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.checkpoint.commit import prune
from harness.checkpoint.pointers import target_of
from harness.checkpoint.read import CheckpointInfo, Verify, list_checkpoints
from harness.checkpoint.retention import RANKED_BY, Ranking, Retention, ranking_of
from harness.commands.show import Listing
from harness.errors import CheckpointError
from harness.rundir.lease import Lease
from harness.wording import some

COLUMNS = ("step", "epoch", "reason", "processes", "size", "metrics", "links", "valid")


@dataclass(frozen=True)
class CheckpointRow:
    """A checkpoint as listed for people.

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
        """In the order of COLUMNS."""
        one = self.listed
        links = ", ".join(self.links)
        if one.manifest is None:
            return (
                f"{one.step:,}",
                *[""] * 5,
                links,
                f"no: {some(one.problems, 3, separator='; ')}",
            )
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
        if (checkpoint := target_of(directory, name)) is not None:
            links.setdefault(checkpoint, []).append(name)
    ranked_by = _ranking(listed)
    metric = None if ranked_by is None else ranked_by.metric
    return [CheckpointRow(one, tuple(links.get(one.path, ())), metric) for one in listed]


def prune_run(run: Path, keep_last: int, keep_best: int) -> list[str]:
    """Delete all but the newest and the best checkpoints; returns their paths. Raises HarnessError,
    also if the run is being trained.
    """
    listed = [row.listed for row in _rows(run, "size")]
    ranked_by = _ranking(listed)
    linked = target_of(run / "checkpoints", "best") is not None
    if ranked_by is None and not _says_how(listed) and (keep_best > 1 or not linked):
        raise CheckpointError(
            f"{run}: it is not known which checkpoints are best, so none is deleted: an earlier "
            "version wrote them without stating how they are ranked. Launch the run once more, or "
            "link checkpoints/best to the best one and set --keep-best 1."
        )
    lease = Lease(run)
    lease.take()
    try:
        names = prune(run / "checkpoints", Retention(keep_last, keep_best), ranked_by)
    finally:
        lease.release()
    return [f"{run}/checkpoints/{name}" for name in names]


def _ranking(listed: Sequence[CheckpointInfo]) -> Ranking | None:
    """That of the newest valid checkpoint: no component of the run's config is needed, and none
    is made.
    """
    newest = next((one.manifest for one in reversed(listed) if one.manifest is not None), None)
    return None if newest is None else ranking_of(newest.facts)


def _says_how(listed: Sequence[CheckpointInfo]) -> bool:
    return any(one.manifest is not None and RANKED_BY in one.manifest.facts for one in listed)
