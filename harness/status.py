"""Whether a run has ended: what launch scripts ask instead of a launcher's exit code."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.outcome import INTERRUPTED, read_outcome


@dataclass(frozen=True)
class Status:
    """`state`: ended, interrupted, unknown (crashed or still going), or missing."""

    state: str
    text: str
    exit_code: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_status(run: Path) -> Status:
    """The status of a run directory; never raises for a run that is broken."""
    if not (run / "config.yaml").exists():
        return Status("missing", f"{run}: no run here", 2)
    try:
        outcome = read_outcome(run)
    except HarnessError as error:
        return Status("unknown", str(error), 1)
    if outcome is None:
        return Status("unknown", f"{run}: has not ended by itself: it is going on, or it crashed; launch it again to go on", 1)
    if not outcome.finished:
        return Status("interrupted", f"{run}: {outcome.detail}", INTERRUPTED)
    return Status("ended", f"{run}: {outcome.reason}: {outcome.detail}", 0)
