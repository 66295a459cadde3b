"""`fermarsi track sync RUN`: send what a run's backends lack, from metrics.jsonl.

For offline runs too: W&B's own files of launches overlap.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.config import trust
from harness.config.document import to_yaml
from harness.config.read import read_section, read_values
from harness.config.schema import RunConfig
from harness.errors import ConfigError
from harness.rundir.lease import Lease
from harness.rundir.outcome import Outcome, read_outcome
from harness.tracking.backends import open_backends
from harness.tracking.courier import Backend, RunInfo, deliver
from harness.tracking.records import METRICS, read_records
from harness.tracking.settings import TrackingConfig
from harness.wording import first_line


def sync_run(run: Path, overrides: Sequence[str] = (), allow: Sequence[str] = ()) -> list[str]:
    """Send what is missing to each backend of the run's config, which tracking.* overrides may
    change; a line for each.

    The run may be somebody else's: a tracker by dotted path has to be ours or under a prefix in
    `allow`. Raises ConfigError if there is nothing to send, nowhere to send it to, the run is being
    trained, or a backend fails.
    """
    records = list(read_records(run / METRICS))
    launches = [
        record for record in records if record["kind"] == "event" and record["event"] == "launch"
    ]
    if not launches:
        raise ConfigError(
            f"{run}: no {METRICS} of a run. Give the directory of a run, e.g. runs/digits."
        )
    config = run / "config.yaml"
    tracking = read_section(config, TrackingConfig, overrides, stored=True)
    trust.check_code(tracking.backends, "tracking.backends", allow)
    wandb = None if tracking.wandb is None else tracking.wandb.model_copy(update={"mode": "online"})
    name = read_section(config, RunConfig, stored=True).name
    values = read_values(config, overrides)
    info = RunInfo(name, launches[-1]["run_id"], run, values, to_yaml(values))
    backends = open_backends(tracking.model_copy(update={"wandb": wandb}), info, print, live=False)
    if not backends:
        raise ConfigError(
            f"{run}: its config names no tracker. Give one, e.g. tracking.wandb.project=NAME or "
            "tracking.backends=[tensorboard]."
        )
    lease = Lease(run)
    lease.take()
    try:
        outcome = read_outcome(run)
        return [
            f"{backend.name}: {_sync(backend, outcome, records):,} rows sent"
            for backend in backends
        ]
    finally:
        lease.release()


def _sync(backend: Backend, outcome: Outcome | None, records: Sequence[dict[str, object]]) -> int:
    try:
        return deliver(backend, records, lambda: outcome)
    except BaseException as error:
        with suppress(Exception):
            backend.abandon()
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ConfigError(
            f"{backend.name}: {type(error).__name__}: {first_line(error)}. Fix this and sync again."
        ) from error
