"""What docs/stopping.md recommends ends no good run of a config early: recorded runs, replayed."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.forecast import GOOD, HELD_OUT_CURVES, by_family, curves, held_by_band, stops_at
from harness.config.read import read_section
from harness.stopping.history import read_history
from harness.stopping.replay import replay
from harness.stopping.settings import StopSettings
from tests.stopping.recommended import recommended

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "benchmarks" / "curves" / "configs"
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_of_a_config_reaches_its_targets(name: str) -> None:
    target = "val/loss" if name == "shakespeare" else "val/accuracy"
    config = ROOT / "configs" / f"{name}.yaml"
    settings = read_section(config, StopSettings, recommended(target))
    last = replay(read_history(RECORDED / f"{name}.jsonl"), settings).verdicts[-1]
    assert last.reason == "targets_reached", last.detail


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


def test_bands_half_way_hold_what_becomes_of_families_that_nothing_was_chosen_by() -> None:
    """One curve in three, of all six."""
    every = curves(HELD_OUT_CURVES)[::3]
    held = [found for one in every if (found := held_by_band(one, 2)) is not None]
    assert len(held) > 100
    assert 0.85 <= np.mean(held) <= 0.95
