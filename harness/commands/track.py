"""`fermarsi track sync RUN`: send what a run's backends lack, from metrics.jsonl.

For offline runs too: W&B's own files of launches overlap.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.config import reading as config_reading
from harness.config.mistakes import explain
from harness.config.schema import RunConfig
from harness.errors import ConfigError
from harness.rundir.lease import Lease
from harness.rundir.outcome import read_outcome
from harness.tracking.backends import open_backends
from harness.tracking.courier import Backend, RunCard, deliver
from harness.tracking.records import METRICS, read_records
from harness.tracking.settings import TrackingConfig


class _TrackingAlone(BaseModel):
    model_config = ConfigDict(extra="ignore")

    run: RunConfig
    tracking: TrackingConfig = TrackingConfig()


def sync_run(run: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Send what is missing to each backend of the run's config, which tracking.* overrides may
    change; a line for each.

    Raises ConfigError if there is nothing to send, nowhere to send it to, the run is being trained,
    or a backend fails.
    """
    wrong = [text for text in overrides if not text.strip().startswith("tracking.")]
    if wrong:
        raise ConfigError(f"override {wrong[0]}: only tracking.* has an effect here. Leave it out.")
    records = list(read_records(run / METRICS))
    launches = [
        record for record in records if record["kind"] == "event" and record["event"] == "launch"
    ]
    if not launches:
        raise ConfigError(
            f"{run}: no {METRICS} of a run here. Give a run directory, e.g. runs/digits."
        )
    config, card = _read(run, overrides, launches[-1]["run_id"])
    wandb = None if config.wandb is None else config.wandb.model_copy(update={"mode": "online"})
    backends = open_backends(config.model_copy(update={"wandb": wandb}), card, print, live=False)
    if not backends:
        raise ConfigError(
            f"{run}: its config tracks nothing. Say where to, e.g. tracking.wandb.project=NAME or "
            "tracking.backends=[tensorboard]."
        )
    lease = Lease(run)
    lease.take()
    try:
        return [
            f"{backend.name}: {_sync(backend, run, records):,} rows sent" for backend in backends
        ]
    finally:
        lease.release()


def _read(run: Path, overrides: Sequence[str], run_id: str) -> tuple[TrackingConfig, RunCard]:
    """The tracking section alone, without importing the components of the rest.

    Raises ConfigError.
    """
    reading = config_reading.read(run / "config.yaml", overrides)
    reading.interpolate()
    found = None
    try:
        found = _TrackingAlone.model_validate(reading.tree)
    except ValidationError as error:
        explain(error, reading)
    config_reading.raise_all(reading.mistakes)
    assert found is not None
    return found.tracking, RunCard(found.run.name, run_id, run, reading.tree)


def _sync(backend: Backend, run: Path, records: Sequence[dict[str, object]]) -> int:
    try:
        return deliver(backend, records, lambda: read_outcome(run))
    except BaseException as error:
        with suppress(Exception):
            backend.abandon()
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ConfigError(
            f"{backend.name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}. Mend "
            "it and sync again."
        ) from error
