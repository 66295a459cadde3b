"""Saving while the training goes on: the loop waits for a copy, a thread of each rank does the
rest.

A save is always the same calls on a channel of its own, on every rank: together (was the copy
made?), decide (rank 0 begins), where the network is sharded exchanges of rows, together (each
writes its files), gather (what was written), decide
(rank 0 commits), decide (rank 0 tidies up). An error at any of them is every rank's error and ends
this save only.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.checkpoint.commit import begin, collect_leftovers, commit, known_from, tidy
from harness.checkpoint.files import translate_errors, write_files
from harness.checkpoint.history import HistoryFile
from harness.checkpoint.manifest import FileEntry, Manifest, join_pieces
from harness.checkpoint.mirror import Mirror
from harness.checkpoint.read import step_name
from harness.checkpoint.retention import KeptCheckpoint, Ranking, Retention
from harness.checkpoint.settings import ModelLayout
from harness.checkpoint.stage import Snapshot, Stage, StagedShare
from harness.checkpoint.versions import versions
from harness.checkpoint.worker import Worker
from harness.errors import CheckpointError, HarnessError
from harness.ranks.heartbeat import SAVE, STAGE
from harness.ranks.ranks import Ranks
from harness.wording import some


@dataclass(frozen=True)
class SaveReport:
    """How a save ended.

    `error`: why there is no new checkpoint; `warning`: there is one, and something else is not
    as it should be.

    `stall_s`: how long the loop was held; `total_s`: until it was durable. `skipped`: this very
    state was already there.
    """

    step: int
    path: Path | None = None
    error: str | None = None
    warning: str | None = None
    stall_s: float = 0.0
    total_s: float = 0.0
    size_bytes: int = 0
    skipped: bool = False
    deleted: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": None if self.path is None else str(self.path)}


@dataclass(frozen=True)
class _Job:
    """A save in flight: what the thread needs, none of which the training changes.

    `failure`: why this rank has no copy.
    """

    header: Mapping[str, Any]  # of the manifest
    history: Sequence[Any]  # of which the header says how many are of this checkpoint
    staged: StagedShare | None
    failure: Exception | None
    ranked_by: Ranking | None
    started: float
    stall_s: float

    @property
    def step(self) -> int:
        return int(self.header["step"])


class CheckpointStore:
    """The checkpoints of a run, written by all ranks.

    Construct, `save`, `wait` and `close` on every rank, in the same order.
    """

    def __init__(
        self,
        directory: Path,
        ranks: Ranks,
        retention: Retention,
        *,
        run_id: str,
        attempt: str,
        fence: Callable[[], None],
        max_failures: int,
        timeout_s: float,
        found: Path | None = None,
        model_layout: ModelLayout = "whole",
        mirror: Mirror | None = None,
    ) -> None:
        """`fence`: called on rank 0 before any change on the disk.

        `found`: where this launch goes on; `model_layout`: see settings.py; `mirror`: where
        machines do not share the directory. By every rank. Raises CheckpointError.
        """
        self._directory = directory
        self._ranks = ranks
        self._retention = retention
        self._identity = {"run_id": run_id, "attempt": attempt, "world_size": ranks.size}
        self._fence = fence
        self._max_failures = max_failures
        self._timeout_s = timeout_s
        self._mirror = mirror
        self._channel = ranks.channel(timeout_s)
        self._channel_broken = False
        self._stage = Stage(whole_model=model_layout == "whole")
        self._owner = threading.get_ident()
        # Whether what is stable is copied under the next step
        self._defers = True
        self._history = HistoryFile()
        # Hashing is what takes longest where disks are fast
        self._hasher = ThreadPoolExecutor(2, thread_name_prefix="fermarsi-hash")
        self._worker = Worker("fermarsi-save")
        self._finished: deque[SaveReport] = deque()
        # How the last save ended on this rank
        self.last_report: SaveReport | None = None
        self._failures: list[str] = []
        self._committed: Path | None = None
        # Rank 0: the valid checkpoints that need no second look
        self._known = known_from(directory, found)
        # Rank 0: the metrics of what this process committed last, by its step
        self._written: dict[int, dict[str, float]] = {}
        self._warned: list[str] = []
        ranks.decide(lambda: collect_leftovers(directory, fence))

    def save(self, snapshot: Snapshot, ranked_by: Ranking | None) -> None:
        """Begin a checkpoint.

        Called by every rank; the host waits for the copy of what is not stable, and for a save
        still in flight (`timeout_s` at most). `finish_copy` comes before the next optimizer step.

        Errors of a save are reported, not raised; only the loss of a rank is.
        """
        started = time.monotonic()
        self._ranks.heartbeat.enter(SAVE)
        busy = not self._is_idle(self._timeout_s)
        self._ranks.heartbeat.enter(STAGE)
        states = self._ranks.gather([busy, self._channel_broken])
        late = [rank for rank, state in enumerate(states) if state[0]]
        if late:
            self._fail(
                snapshot.step,
                f"rank {late[0]} is still writing the previous checkpoint after "
                f"{self._timeout_s:.0f} s. Check its disk.",
                started,
            )
            return
        # A time-out leaves a channel unusable: all ranks open another
        if any(state[1] for state in states):
            self._channel = self._ranks.channel(self._timeout_s)
            self._channel_broken = False
        staged: StagedShare | None = None
        failure: Exception | None = None
        try:
            if not self._defers:
                snapshot = replace(snapshot, stable={})
            staged = self._stage.take(snapshot, self._ranks.rank, self._ranks.size)
        except Exception as error:  # noqa: BLE001 - sent to all ranks by the thread, then reported
            failure = error
        stall_s = time.monotonic() - started
        header = self._header(snapshot)
        job = _Job(header, snapshot.history, staged, failure, ranked_by, started, stall_s)
        self._worker.start(lambda: self._run(job))

    def finish_copy(self) -> None:
        """Until the save in flight no longer needs what an optimizer step changes: before each one,
        by the thread that saves. No collective; the host waits for the copy.
        """
        self._stage.finish()

    def is_copying(self) -> bool:
        """Whether `finish_copy` is still to be called for the save that began last."""
        return self._stage.is_copying()

    def check(self, snapshot: Snapshot) -> None:
        """Whether a checkpoint can hold all of this: what `save` does, without a copy.

        No collective. Raises CheckpointError.
        """
        self._stage.check(snapshot, self._ranks.rank, self._ranks.size)

    def wait(self, limit_s: float | None = None) -> None:
        """Until no save is in flight on this rank, `limit_s` at most, by default without end.

        No collective, and from any thread; the save itself needs every rank.
        """
        self._is_idle(limit_s)

    def is_saving(self) -> bool:
        """Whether a save is in flight on this rank. No collective."""
        return self._worker.is_busy()

    def reports(self) -> list[SaveReport]:
        """The saves that ended since the last call.

        No collective: times, and now and then the ends, differ between ranks; rank 0's are true.
        """
        taken = []
        while self._finished:
            taken.append(self._finished.popleft())
        return taken

    def raise_if_failing(self) -> None:
        """Raise CheckpointError if too many saves in a row have failed on this rank.

        No collective: rank 0 decides.
        """
        if len(self._failures) >= self._max_failures:
            raise CheckpointError(
                f"{self._directory}: {len(self._failures)} saves in a row have failed "
                f"(checkpoint.max_failures: {self._max_failures}), "
                f"the last because: {self._failures[-1]}"
            )

    def last_checkpoint(self) -> Path | None:
        """The last checkpoint that this process committed, or found in place of one; None before
        the first.
        """
        return self._committed

    def close(self, limit_s: float | None = None) -> None:
        """Wait for the save in flight, `limit_s` (by default `timeout_s`) at most, and give the
        memory back. No collective.

        A rank that leaves because another has failed must not wait long: the save waits for ranks
        that wait for this one to be gone.
        """
        self._is_idle(self._timeout_s if limit_s is None else limit_s)
        self._worker.close()
        self._hasher.shutdown(wait=False)
        self._stage.close()

    # -- in the thread of a save

    def _run(self, job: _Job) -> None:
        try:
            report = self._save(job, self._channel)
        except Exception as error:  # noqa: BLE001 - see above
            # Whatever went wrong is reported, and the training goes on. Errors that all ranks share
            # leave the channel in step. Anything else may be a collective that one of them gave up.
            self._channel_broken = self._channel_broken or not isinstance(error, HarnessError)
            shown = (
                str(error)
                if isinstance(error, HarnessError)
                else f"rank {self._ranks.rank}: {type(error).__name__}: {error}"
            )
            self._fail(job.step, shown, job.started, job.stall_s)
        else:
            if report.error is None:
                self._failures = []
                self._committed = report.path
            self._finish(report)

    def _save(self, job: _Job, channel: Ranks) -> SaveReport:
        staged = channel.together(lambda: _require_staged(job))
        target = self._directory / step_name(job.step)
        temporary = channel.decide(
            lambda: begin(
                self._directory,
                job.step,
                staged.total_bytes,
                self._fence,
                written=self._is_written(job),
            )
        )
        if temporary is None:
            return SaveReport(
                job.step,
                target,
                stall_s=job.stall_s,
                total_s=time.monotonic() - job.started,
                skipped=True,
            )
        if staged.exchange is not None:
            staged.exchange.run(channel)
        records = channel.together(lambda: self._write(staged, temporary))
        changed = [] if staged.copy is None else staged.copy.find_changes()
        held_s = job.stall_s + (0.0 if staged.copy is None else staged.copy.held_s)
        mine: dict[str, Any] = {"records": records, "pieces": staged.pieces, "changed": changed}
        gathered = channel.gather(mine)
        changed = sorted({name for one in gathered for name in one["changed"]})
        if changed:
            self._defers = False
            return SaveReport(
                job.step,
                error=f"{some(changed)}: changed by the next step, before the optimizer's own "
                "part, while it was being copied. From now on copies are made before a step begins",
                stall_s=held_s,
                total_s=time.monotonic() - job.started,
            )
        if self._mirror is not None:
            self._mirror.share(channel, temporary, gathered)
        size_bytes = channel.decide(lambda: self._commit(job, staged, temporary, gathered))
        if self._mirror is not None:
            self._mirror.finish(channel, temporary, target.name)
        total_s = time.monotonic() - job.started
        tidied = channel.decide(lambda: self._tidy(job))
        return SaveReport(
            job.step, target, stall_s=held_s, total_s=total_s, size_bytes=size_bytes, **tidied
        )

    def _write(self, staged: StagedShare, temporary: str) -> list[dict[str, object]]:
        small = staged.small_files() if self._ranks.is_first() else []
        with translate_errors(
            "writing into the directory that rank 0 has made, which all ranks must share,"
        ):
            if self._mirror is not None:
                self._mirror.prepare(temporary)
            return write_files(
                self._directory / temporary, [*small, *staged.contents], self._hasher
            )

    def _commit(
        self, job: _Job, staged: StagedShare, temporary: str, gathered: Sequence[Mapping[str, Any]]
    ) -> int:
        """Rank 0 only; returns the size of the checkpoint in bytes, its manifest not counted."""
        records = [record for one in gathered for record in one["records"]]
        pieces = [one["pieces"] for one in gathered]
        with translate_errors("writing the history of evaluations"):
            records.append(
                self._history.put_into(
                    self._directory / temporary,
                    job.history,
                    job.header["num_evaluations"],
                    self._hasher,
                )
            )
        manifest = _manifest(job.header, records, pieces, staged.aliases)
        commit(self._directory, temporary, manifest, self._fence, self._hasher)
        self._history.note_commit(self._directory / step_name(job.step))
        self._written = {job.step: job.header["metrics"]}
        return sum(int(record["size_bytes"]) for record in records)

    def _tidy(self, job: _Job) -> dict[str, Any]:
        """Rank 0 only. What fails here does not undo the commit."""
        kept = KeptCheckpoint(job.step, job.header["epoch"], job.header["metrics"])
        try:
            deleted, self._known, troubles = tidy(
                self._directory, kept, self._retention, job.ranked_by, self._known, self._fence
            )
        except HarnessError as error:
            return {"deleted": [], "warning": str(error)}
        troubles += self._stage.troubles()
        news = [trouble for trouble in troubles if trouble not in self._warned]
        self._warned += news
        return {"deleted": deleted, "warning": "; ".join(news) or None}

    def _is_written(self, job: _Job) -> bool:
        """Whether this process committed this step's state already, with the metrics that
        checkpoints are ranked by. Rank 0 only.
        """
        if job.step not in self._written:
            return False
        return not job.header["metrics"] or job.header["metrics"] == self._written[job.step]

    # -- either thread

    def _is_idle(self, limit_s: float | None) -> bool:
        if threading.get_ident() == self._owner:
            self.finish_copy()
        return self._worker.wait(limit_s)

    def _fail(self, step: int, error: str, started: float, stall_s: float | None = None) -> None:
        self._failures = [*self._failures, error]
        total_s = time.monotonic() - started
        held_s = total_s if stall_s is None else stall_s
        self._finish(SaveReport(step, error=error, stall_s=held_s, total_s=total_s))

    def _finish(self, report: SaveReport) -> None:
        self.last_report = report
        self._finished.append(report)

    def _header(self, snapshot: Snapshot) -> dict[str, Any]:
        return {
            **self._identity,
            "step": snapshot.step,
            "epoch": snapshot.epoch,
            "samples": snapshot.samples,
            "reason": snapshot.reason,
            "exact": snapshot.exact,
            "exact_reason": snapshot.exact_reason,
            "metrics": dict(snapshot.metrics),
            "facts": deepcopy(dict(snapshot.facts)),
            "num_evaluations": len(snapshot.history),
        }


def _require_staged(job: _Job) -> StagedShare:
    if job.staged is None:
        assert job.failure is not None
        raise job.failure
    return job.staged


def _manifest(
    header: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    pieces: Sequence[Sequence[Mapping[str, Any]]],
    aliases: dict[str, str],
) -> Manifest:
    """The manifest of what all ranks wrote; `pieces`: by rank. Raises CheckpointError."""
    everything = [piece for held in pieces for piece in held]
    try:
        return Manifest(
            **header,
            versions=versions(),
            written_at=datetime.now(UTC).isoformat(timespec="seconds"),
            files={
                record["name"]: FileEntry(
                    size_bytes=record["size_bytes"], sha256=record["sha256"], role=record["role"]
                )
                for record in records
            },
            model=join_pieces([piece for piece in everything if piece["role"] == "model"]),
            aliases=aliases,
            optimizer=join_pieces([piece for piece in everything if piece["role"] == "optimizer"]),
            rng=[
                join_pieces([piece for piece in held if piece["role"] == "rng"]) for held in pieces
            ],
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"step {header['step']}: the manifest cannot hold {'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}."
        ) from error
