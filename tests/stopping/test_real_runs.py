"""Real runs of a config: what cannot converge ends early, what can does not."""

import json
from pathlib import Path

import pytest

from tests.pool import train_on_ranks
from tests.stopping.recommended import recommended

DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"
AHEAD = ["stop.targets={val/accuracy: {at_least: 0.95}}", *recommended()]


@pytest.mark.parametrize(
    ("overrides", "reason", "said", "before"),
    [
        ([], "targets_reached", "is at least 0.95", 200),
        (
            ["data.train.treatments=[{_target_: tests.distributed.parts.Shuffled}]"],
            "hopeless",
            "(1.2 times the 0.1008 of chance) was asked by 5 epochs",
            5.1,
        ),
        (
            ["optimizer.lr=1e-5", "stop.milestones=null", "stop.budget.epochs=40"],
            "hopeless",
            "chance to reach 0.95",
            20,
        ),
    ],
)
def test_a_run_ends_by_what_lies_ahead_of_it(
    overrides: list[str], reason: str, said: str, before: int, tmp_path: Path
) -> None:
    (ended,) = train_on_ranks(1, DIGITS, [f"run.dir={tmp_path}", *AHEAD, *overrides])
    assert ended.exit_code == 0, ended.stderr
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["reason"] == reason, outcome["detail"]
    assert said in outcome["detail"]
    assert outcome["epoch"] < before
