"""What a run came to, to the last bit, without what depends on clocks or on how many ranks wrote
it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from harness.checkpoint.history import read_history
from harness.checkpoint.read import list_checkpoints, load_trainer
from tests.pool import Launched, train_on_ranks

CONFIGS = Path(__file__).parent
# What a record tells of the clock
TIMES = ("hours", "elapsed_s", "samples_per_s", "flop_per_s", "peak_share")


def train(config: Path, directory: Path, ranks: int, *overrides: str, **env: str) -> list[Launched]:
    settings = [f"run.dir={directory}", "run.exactness=elastic", *overrides]
    return train_on_ranks(ranks, config, settings, env=env)


def finish(config: Path, directory: Path, ranks: int, *overrides: str) -> dict[str, Any]:
    """Train to the end; what it came to."""
    ends = train(config, directory, ranks, *overrides)
    assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr
    return came_to(directory)


def came_to(directory: Path) -> dict[str, Any]:
    """Traces (losses, samples and parameters of each step), records (gradient norms, metrics,
    rates), verdicts, and the SHA-256 of each tensor of the last checkpoint.
    """
    last = list_checkpoints(directory / "checkpoints")[-1]
    assert last.manifest is not None, last.problems
    trainer = load_trainer(last.path)
    rows = read_history(last.path)
    assert rows is not None
    return {
        "step": last.step,
        "tensors": tensor_hashes(last.path),
        "history": [{name: row[name] for name in row if name not in TIMES} for row in rows],
        **{
            name: trainer[name]
            for name in ("stop", "optimizer", "schedule", "losses", "train_metrics", "ema_updates")
        },
        "trace": lines(directory / "trace.jsonl"),
        "records": [
            {name: value for name, value in one.items() if name not in TIMES}
            for one in lines(directory / "metrics.jsonl")
            if one["kind"] in ("train", "eval")
        ],
    }


def tensor_hashes(checkpoint: Path) -> dict[str, str]:
    """Of weights, buffers, moments and averages, however many ranks wrote them, and in rows."""
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for kind in ("model", "optimizer"):
        for file in sorted(checkpoint.glob(f"{kind}-*.safetensors")):
            for key, one in load_file(file).items():
                name, _, rows = key.partition("[")  # name[first:last]
                pieces.setdefault(name, {})[int(rows.partition(":")[0] or 0)] = one
    joined = {
        name: torch.cat([rows[first] for first in sorted(rows)]) if len(rows) > 1 else rows[0]
        for name, rows in pieces.items()
    }
    return {
        name: hashlib.sha256(one.contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
        for name, one in joined.items()
    }


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def outcome(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "outcome.json").read_text())
    return found
