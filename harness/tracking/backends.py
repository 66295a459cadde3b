"""The backends of a config: W&B, the user's own, and those with their data on this
machine, TensorBoard and Trackio.

These two are copies of metrics.jsonl that each launch rebuilds: that is cheap, and no step is ever
duplicated or missing.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from harness import components
from harness.components import TARGET
from harness.rundir.outcome import Outcome
from harness.tracking.courier import Backend, RunInfo
from harness.tracking.records import Row
from harness.tracking.settings import TrackingConfig, TrackioConfig
from harness.tracking.weights_and_biases import WandbRun


def open_backends(
    tracking: TrackingConfig, run: RunInfo, say: Callable[[str], None], *, live: bool = True
) -> list[Backend]:
    """The backends that are enabled; none is imported or opened yet. `live`: while training."""
    found: list[Backend] = []
    if tracking.wandb is not None and tracking.wandb.mode != "disabled":
        found.append(WandbRun(tracking.wandb, run, say, live=live))
    if tracking.uses("tensorboard"):
        found.append(TensorBoardFiles(run))
    if tracking.uses("trackio"):
        found.append(TrackioRows(run, (tracking.trackio or TrackioConfig()).project))
    for index, spec in enumerate(tracking.backends):
        if not isinstance(spec, str):
            found.append(UserBackend(spec, f"tracking.backends[{index}]", run))
    return found


class UserBackend:
    """A user's own tracker, built whenever it is opened, so that everything it raises or waits for
    happens in its own thread.
    """

    def __init__(self, spec: Mapping[str, Any], where: str, run: RunInfo) -> None:
        self.name = str(spec[TARGET])
        self._spec, self._where, self._run = spec, where, run
        self._backend: Backend | None = None

    def begin(self) -> int:
        """Build and open it. Raises ConfigError if it cannot be built."""
        self._backend = components.build(self._spec, self._where, run=self._run)
        return self._require_open().begin()

    def row(self, row: Row) -> None:
        """Forwarded, as all calls below."""
        self._require_open().row(row)

    def event(self, record: Mapping[str, Any]) -> None:
        self._require_open().event(record)

    def finish(self, outcome: Outcome | None) -> None:
        self._require_open().finish(outcome)

    def abandon(self) -> None:
        if self._backend is not None:
            self._backend.abandon()

    def _require_open(self) -> Backend:
        assert self._backend is not None, "begin comes first"
        return self._backend


class TensorBoardFiles:
    """Event files in RUN/tensorboard. The new file tells readers to drop what they have read from
    older ones (a purge at step 0).
    """

    name = "TensorBoard"

    def __init__(self, run: RunInfo) -> None:
        self._run = run

    def begin(self) -> int:
        """Start a new event file and delete those of earlier launches."""
        from torch.utils.tensorboard import SummaryWriter

        directory = self._run.directory / "tensorboard"
        before = list(directory.glob("events.out.tfevents.*"))
        self._writer: Any = SummaryWriter(str(directory), purge_step=0)
        for path in before:
            path.unlink()
        self._writer.add_text("config", f"```yaml\n{self._run.config_yaml}\n```")
        return 0

    def row(self, row: Row) -> None:
        """Scalars under the names of the metrics."""
        for name, value in row.values.items():
            self._writer.add_scalar(name, value, row.step)
        self._writer.flush()

    def event(self, record: Mapping[str, Any]) -> None:
        """Does nothing: only the outcome is kept."""

    def finish(self, outcome: Outcome | None) -> None:
        """Close the file, with the outcome as text."""
        if outcome is not None:
            self._writer.add_text(
                "outcome", f"**{outcome.reason}**: {outcome.detail}", outcome.step
            )
        self._writer.close()

    def abandon(self) -> None:
        """Does nothing: there is no connection."""


class TrackioRows:
    """Rows in Trackio's local database (TRACKIO_DIR, by default in Hugging Face's cache), for
    `trackio show`. Nothing goes over a network.

    Trackio's own `init` would look up a remote server in the environment, and cannot delete rows;
    so the database is written directly.
    """

    name = "Trackio"
    _BATCH, _BATCH_S = 100, 1.0  # a write locks and syncs the database, which other runs use too

    def __init__(self, run: RunInfo, project: str) -> None:
        self._run = run
        self._project = project
        self._waiting: list[Row] = []
        self._written_at = float("-inf")

    def begin(self) -> int:
        """Delete what earlier launches of this run wrote."""
        from trackio.sqlite_storage import SQLiteStorage

        self._storage: Any = SQLiteStorage
        self._storage.delete_run(self._project, self._run.name, run_id=self._run.run_id)
        return 0

    def row(self, row: Row) -> None:
        """Rows are written in batches."""
        self._waiting.append(row)
        if (
            len(self._waiting) >= self._BATCH
            or time.monotonic() - self._written_at >= self._BATCH_S
        ):
            self._write()

    def event(self, record: Mapping[str, Any]) -> None:
        """Does nothing."""

    def finish(self, outcome: Outcome | None) -> None:
        """Write the pending rows."""
        self._write()

    def abandon(self) -> None:
        """Does nothing: there is no connection."""

    def _write(self) -> None:
        self._storage.bulk_log(
            self._project,
            self._run.name,
            [dict(row.values) for row in self._waiting],
            steps=[row.step for row in self._waiting],
            config=dict(self._run.config),
            log_ids=[f"{self._run.run_id}-{row.step}" for row in self._waiting],
            run_id=self._run.run_id,
        )
        self._waiting = []
        self._written_at = time.monotonic()
