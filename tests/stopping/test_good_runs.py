"""What docs/stopping.md recommends ends no good run of a config early: recorded runs, replayed."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.forecast import GOOD, by_family, curves, stops_at
from harness.config.read import read_section
from harness.stopping.history import read_history
from harness.stopping.replay import replay
from harness.stopping.settings import StopSettings

ROOT = Path(__file__).parents[2]
RECORDED = sorted((ROOT / "benchmarks" / "curves" / "configs").glob("*.jsonl"))
# Its best is 0.982 of 0.995
NEVER_THERE = ["activity"]
FORECAST = "chance_below: 5%, for: 3, from: {epochs: 5}, action: stop"


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_run_of_a_config_reaches_its_targets(path: Path) -> None:
    target = "val/loss" if path.stem == "shakespeare" else "val/accuracy"
    given = [f"stop.forecast={{target: {target}, {FORECAST}}}"]
    if target == "val/accuracy":
        given += ["stop.milestones={metric: val/accuracy, at_least: 1.2x chance, by: {epochs: 5}}"]
    settings = read_section(ROOT / "configs" / f"{path.stem}.yaml", StopSettings, given)
    history = read_history(path)
    last = replay(history, settings).verdicts[-1]
    reason = "hopeless" if path.stem in NEVER_THERE else "targets_reached"
    assert last.reason == reason, last.detail


def test_few_curves_that_reach_their_target_are_ended_before() -> None:
    """Of all families of benchmarks/curves: the 40 % that do."""
    ended, good = 0, 0
    for own in by_family(curves()).values():
        target = float(np.quantile([one.ups.max() for one in own], GOOD))
        for one in [one for one in own if one.ups.max() >= target]:
            side = {"at_least": target} if one.info.mode == "max" else {"at_most": -target}
            ask = {"target": one.metric, "from": {"epochs": 5}, "action": "stop"}
            ended += stops_at(one, targets={one.metric: side}, forecast=ask) is not None
            good += 1
    assert good > 200
    assert ended / good <= 0.05
