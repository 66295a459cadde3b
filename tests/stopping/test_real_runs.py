"""Real runs of a config: what cannot converge ends early, what can does not."""

import json
from pathlib import Path

import pytest

from harness.cli import app
from harness.errors import ConfigError
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


def test_what_cannot_take_effect_is_said_when_the_config_is_read_and_before_data_is(
    tmp_path: Path,
) -> None:
    mistakes = [
        "stop.milestones={metric: val/accuracy, at_least: 0.5, by: {epochs: 9999}}",
        "stop.forecast={target: val/f1}",
        "stop.improvement={metric: val/f1, at_least: 2 se, patience: 3}",
    ]
    said = (
        "3 problems:",
        "stop.milestones.by: 9999 epochs are beyond the budget of 200.",
        "stop.forecast.target: stop.targets has no target for val/f1",
        "stop.improvement.at_least: the standard error of val/f1 is not known.",
    )
    with pytest.raises(ConfigError) as refused:
        app(["config", str(DIGITS), *mistakes], standalone_mode=False)
    # Killed if it is made
    source = "data.train.source={_target_: tests.search.parts.CutOff, count: 64, by: KILL}"
    (ended,) = train_on_ranks(1, DIGITS, [f"run.dir={tmp_path / 'run'}", source, *mistakes])
    assert ended.exit_code == 2
    for words in said:
        assert words in str(refused.value)
        assert words in ended.stderr
    with pytest.raises(ConfigError, match=r"smooth: no such key. Did you mean stop.improvement"):
        app(["config", str(DIGITS), "stop.smooth.window=3"], standalone_mode=False)


@pytest.mark.parametrize(
    ("mistakes", "said"),
    [
        (  # Of a key, of a value, of a metric, of a time, of another section
            [
                "stop.improvement.patience=x",
                "stop.smooth.window=3",
                "stop.forecast={target: val/f1}",
                "stop.milestones={metric: val/accuracy, at_least: 0.5, by: {epochs: 9999}}",
                "network.dimz=3",
            ],
            [
                "stop.improvement.patience: 'x' is not allowed",
                "stop.smooth: no such key",
                "stop.targets has no target for val/f1",
                "9999 epochs are beyond the budget of 200",
                "network.dimz: harness.networks.Mlp has no argument",
            ],
        ),
        (  # One setting contradicts another; a forecast within a budget that hides a mistake
            [
                "stop.hold=2",
                "stop.targets=null",
                "stop.budget.epochs=x",
                "stop.forecast={metric: val/loss, gain: 1%}",
                "stop.best.metric=val/none",
            ],
            [
                "stop: hold has no effect without targets.",
                "stop.budget.epochs: 'x' is not allowed",
                "stop.best.metric: there is no metric val/none",
            ],
        ),
        (  # The same without a mistake of a value; a criterion of several
            [
                "stop.hold=2",
                "stop.targets=null",
                "stop.plateau=[{metric: val/none, over: 5}, {metric: val/loss, over: x}]",
                "stop.forecast={target: val/f1}",
                "stop.gap={metric: none, above: 1, for: 2}",
            ],
            [
                "stop: hold has no effect without targets.",
                "stop: gap: metrics of an interval's own batches",
                "stop.plateau[1].over: 'x' is not allowed",
                "stop.targets has no target for val/f1, but for nothing",
                "there is no metric train/none",
            ],
        ),
        (["stop=3", "run.sed=4"], ["stop: 3 is not allowed", "run.sed: no such key"]),
        (  # A target that hides a mistake may be forecast; without a task, no metric is known
            ["stop.targets={val/f1: {at_least: x}}", "stop.forecast={target: val/f1}", "task.a=1"],
            ["stop.targets.val/f1.at_least: 'x' is not allowed", "task.a: "],
        ),
    ],
)
def test_mistakes_of_all_kinds_are_told_at_once(mistakes: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        app(["config", str(DIGITS), *mistakes], standalone_mode=False)
    for words in said:
        assert words in str(refused.value)
    assert str(refused.value).startswith(f"{len(said)} mistakes:")
