"""Why and where a run ended: outcome.json, and the exit code that follows from it."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.bounded import read_bytes
from harness.durable import write_json
from harness.errors import CheckpointError
from harness.wording import first_line

FILE = "outcome.json"
DIVERGED = 3
# EX_TEMPFAIL: to be resumed
INTERRUPTED = 75


@dataclass(frozen=True)
class Outcome:
    """The end of a launch.

    `reason`: that of the judge that ended it (harness/stopping/judges.py), or interrupted (the next
    launch goes on).
    """

    reason: str
    detail: str
    step: int
    epoch: float
    samples: int
    world_size: int
    launches: int
    best: Mapping[str, Any] | None
    checkpoint: str | None
    exact: bool
    exact_reason: str
    time: Mapping[str, float]

    @property
    def is_finished(self) -> bool:
        return self.reason != "interrupted"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Outcome":
        return cls(**value)


def exit_code(outcome: Outcome, *, under_agent: bool) -> int:
    """The exit code of a training process.

    An elastic agent takes any code but 0 for a crash: under one, an interruption is a 0.
    """
    if outcome.reason == "diverged":
        return DIVERGED
    return INTERRUPTED if outcome.reason == "interrupted" and not under_agent else 0


def write_outcome(directory: Path, outcome: Outcome) -> None:
    """Replace outcome.json at once and durably. Rank 0 only. Raises CheckpointError."""
    try:
        write_json(directory / FILE, outcome.to_json(), sync=True, indent=2, end="\n")
    except OSError as error:
        raise CheckpointError(
            f"{directory / FILE}: {error.strerror}, so it cannot say that {outcome.detail} Fix "
            "the disk and launch again: the checkpoints are safe."
        ) from error


def read_outcome(directory: Path) -> Outcome | None:
    """The outcome of the run's last launch that ended by itself; None if there is none. Raises
    CheckpointError if it cannot be understood.
    """
    path = directory / FILE
    if not os.path.lexists(path):
        return None
    try:
        return _validate(read_bytes(path, links=False))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be parsed: {first_line(error)}. Remove it; the state of "
            "the run is in its checkpoints."
        ) from error


@dataclass(frozen=True)
class _Best:
    metric: str
    value: float
    step: int
    checkpoint: str | None


def _validate(data: bytes) -> Outcome:
    """Raises ValueError for anything not written by a launch."""
    # Slow to import, and a launch does not read its own outcome
    from pydantic import TypeAdapter, ValidationError

    try:
        outcome = TypeAdapter(Outcome).validate_json(data, strict=True)
        if outcome.best is not None:
            TypeAdapter(_Best).validate_json(json.dumps(outcome.best), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return outcome
