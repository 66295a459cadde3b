"""`fermarsi trace`: the first step at which two runs differ."""

import json
from pathlib import Path

from harness.errors import ConfigError
from harness.training.trace import read_trace


def compare(run: Path, other: Path | None) -> tuple[str, int]:
    """How the traces of two runs compare, or the last step of one; and the exit code: 0 if they
    agree in all steps that both have, and there are some, else 2. Raises ConfigError.
    """
    mine = _read(run)
    if other is None:
        return f"{run}: {len(mine)} steps traced, the last: {json.dumps(mine[max(mine)])}", 0
    theirs = _read(other)
    common = sorted(mine.keys() & theirs.keys())
    for step in common:
        differing = [name for name in mine[step] if mine[step][name] != theirs[step].get(name)]
        if differing:
            differences = "; ".join(
                f"{name}: {mine[step][name]} and {theirs[step].get(name)}" for name in differing
            )
            return f"step {step} is the first that differs: {differences}", 2
    return f"equal, bit for bit, in all {len(common)} steps that both have", 0 if common else 2


def _read(run: Path) -> dict[int, dict[str, object]]:
    path = run / "trace.jsonl"
    records = list(read_trace(path))
    if not records:
        raise ConfigError(f"{path}: no trace. Train with log.trace=true.")
    return {record["step"]: record for record in records}
