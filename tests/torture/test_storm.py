"""Killed again and again at random moments, with `checkpoint.every: auto`: little is undone, saves
cost little, and the bits are those of a run that was left alone.
"""

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from harness.checkpoint.read import list_checkpoints, load_trainer
from harness.rundir.crashes import FILE, last_crash
from tests.pool import Launched, train_on_ranks
from tests.training.test_stable import saved

pytestmark = pytest.mark.torture
SMALL = Path(__file__).parents[1] / "training" / "small.yaml"
RANKS = 2
MEAN_S = 2.5
# A launch's first save costs more, and lives are short here; 1 % is for benchmarks/storm.py
OVERHEAD = 0.05


def launch(run: Path, steps: int, *overrides: str, meanwhile: Any = None) -> list[Launched]:
    asked = [
        f"run.dir={run}",
        "run.max_crashes=1000",
        "network.width=64",
        "stop.every={steps: 100000000}",
        f"stop.budget.steps={steps}",
        "log={every: {steps: 20}, trace: false}",
    ]
    return train_on_ranks(RANKS, SMALL, [*asked, *overrides], meanwhile=meanwhile)


def events(run: Path, name: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [one for one in records if one.get("event") == name]


def test_a_storm_of_kills(tmp_path: Path) -> None:
    run, drawn = tmp_path / "run", random.Random(1)
    undone: list[int] = []

    def kill(ranks: Sequence[int]) -> None:
        born = time.time()
        while not (run / FILE).exists() or (run / FILE).stat().st_mtime < born:
            time.sleep(0.01)
        time.sleep(0.3 + drawn.expovariate(1 / MEAN_S))
        os.kill(drawn.choice(ranks), signal.SIGKILL)

    auto = (
        f"checkpoint={{every: auto, failures_per_day: {86400 / MEAN_S}, max_overhead: {OVERHEAD}}}"
    )
    for _ in range(6):
        ends = launch(run, 10**8, auto, meanwhile=kill)
        assert -signal.SIGKILL in [one.exit_code for one in ends]
        crash = last_crash(run)
        assert crash is not None
        found = [one.step for one in list_checkpoints(run / "checkpoints") if one.manifest]
        undone.append(crash.step - 1 - max(found, default=0))
    steps = max(one.step for one in list_checkpoints(run / "checkpoints")) + 50
    assert [one.exit_code for one in launch(run, steps, auto)] == [0] * RANKS

    # Of the steps that were kept, up to the last save, for which the end of the run waits
    spent = load_trainer(list_checkpoints(run / "checkpoints")[-1].path)["ledger"]
    kept_s = spent["compute"] + spent["data_wait"]
    interval_s = median(one["seconds"] for one in events(run, "save_interval"))
    print(f"undone {undone} of {steps} steps in {kept_s:.1f} s, every {interval_s:.2f} s; {spent}")
    assert median(undone) * kept_s / steps <= 2 * interval_s
    assert spent["checkpoint_stall"] <= OVERHEAD * kept_s

    alone = tmp_path / "alone"
    assert [one.exit_code for one in launch(alone, steps)] == [0] * RANKS
    states = [saved(list_checkpoints(one / "checkpoints")[-1].path) for one in (run, alone)]
    assert states[0] == states[1]
