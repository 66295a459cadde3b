"""Whether a run has ended: for launch scripts, instead of a launcher's exit code."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.rundir.crashes import last_crash
from harness.rundir.lease import holder
from harness.rundir.outcome import FILE, INTERRUPTED, read_outcome


@dataclass(frozen=True)
class Status:
    """`state`: ended, interrupted, running, crashed, unknown, or missing."""

    state: str
    text: str
    exit_code: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_status(run: Path) -> Status:
    """The status of a run directory; never raises for a broken run, and waits for nothing."""
    if not (run / "config.yaml").exists() and not (run / FILE).exists():
        return Status("missing", f"{run}: no run here", 2)
    try:
        outcome = read_outcome(run)
    except HarnessError as error:
        return Status("unknown", str(error), 1)
    if outcome is None:
        return _without_outcome(run)
    if not outcome.is_finished:
        return Status("interrupted", f"{run}: {outcome.detail}", INTERRUPTED)
    return Status("ended", f"{run}: {outcome.reason}: {outcome.detail}", 0)


def _without_outcome(run: Path) -> Status:
    """A launch deletes the previous outcome: it is still running, or did not end by itself."""
    who, lives = holder(run)
    if lives:
        return Status("running", f"{run}: is going on ({who})", 1)
    if lives is None and who is not None:
        return Status(
            "unknown",
            f"{run}: is going on or crashed elsewhere ({who}); launched again it finds out, and "
            "goes on",
            1,
        )
    crash = last_crash(run)
    where = f": {crash}" if crash is not None else ""
    return Status(
        "crashed",
        f"{run}: did not end by itself{where}; launch it again to resume from its last checkpoint",
        1,
    )
