"""What `--over` takes, and what it refuses."""

import re
from pathlib import Path

import optuna
import pytest

from harness.cli import app
from harness.errors import ConfigError
from harness.search.space import Choice, Range, parse_space

CONFIG = str(Path(__file__).parent / "sweep.yaml")


def test_ranges_and_choices_are_read_as_they_are_written() -> None:
    asked = [
        "optimizer.lr=1e-4..1e-2:log",
        "a=1..4",
        "b=0..1:0.1",
        "c=16..256:log",
        "network.dims=[64],[128, 64]",
        "heads=[[1, 2], {a: [3]}],it's",
        'd="x, y",z',
        "e=../data/a.csv,../data/b.csv",
        "f=-1..1.5",
    ]
    assert parse_space(asked, []) == [
        Range("optimizer.lr", 1e-4, 1e-2, log=True),
        Range("a", 1, 4),
        Range("b", 0.0, 1.0, step=0.1),
        Range("c", 16, 256, log=True),
        Choice("network.dims", ("[64]", "[128, 64]")),
        Choice("heads", ("[[1, 2], {a: [3]}]", "it's")),
        Choice("d", ('"x, y"', "z")),
        Choice("e", ("../data/a.csv", "../data/b.csv")),
        Range("f", -1.0, 1.5),
    ]


def test_what_is_proposed_lies_in_the_range_and_is_whole_where_both_ends_are() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = parse_space(["a=1..4", "b=0..1:0.25", "c=1e-4..1e-2:log", "d=x,[1]"], [])
    seen: dict[str, set[str]] = {one.key: set() for one in space}
    for _ in range(60):
        trial = study.ask()
        for one in space:
            seen[one.key].add(one.suggest(trial))
    assert seen["a"] == {"1", "2", "3", "4"}
    assert seen["b"] == {"0.0", "0.25", "0.5", "0.75", "1.0"}
    assert all(1e-4 <= float(text) <= 1e-2 for text in seen["c"])
    assert sum(float(text) < 1e-3 for text in seen["c"]) > 15  # evenly in the logarithm
    assert seen["d"] == {"x", "[1]"}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ([], "--over: nothing to vary"),
        (["lr"], "not of the form KEY=VALUES"),
        (["lr="], "nothing to choose from"),
        (["lr=1"], "one value to choose from"),
        (["lr=2..1"], "2 to 1 is empty. Give the lower end first"),
        (["lr=1..1"], "1 to 1 is empty"),
        (["lr=0..1:log"], "0 has no logarithm"),
        (["lr=1..x"], "'x' is not a finite number"),
        (["lr=1...inf"], "is not a finite number"),
        (["lr=1..9:lin"], "'lin' behind the colon is neither log nor a step"),
        (["lr=0..1:0.3"], "the step 0.3 does not lead from 0 to 1"),
        (["lr=1..9:0"], "the step 0 does not lead"),
        (["lr=1,2,1"], "a value is there twice"),
        (["lr=1,2", "lr=3,4"], "lr is varied twice"),
        (["a=1,2", "a.b=3,4"], "a is varied twice"),
        (["run.dir=a,b"], "run.dir: cannot be varied"),
        (["stop.best.metric=a,b"], "cannot be varied"),
        (["lr=1,[2"], "--over lr=1,[2: 1,[2: ] is missing"),
        (["lr=1,'2"], "' is missing"),
    ],
)
def test_what_says_nothing_or_nonsense_is_refused(over: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_space(over, [])


def test_a_value_beside_and_a_range_among_the_overrides_are_refused() -> None:
    with pytest.raises(ConfigError, match="lr: is varied, and has a value too"):
        parse_space(["lr=1,2"], ["lr=3"])
    with pytest.raises(ConfigError, match=r"wd=0\.\.1: is a range. Put it behind an --over"):
        parse_space(["lr=1,2"], ["wd=0..1"])


def test_all_that_does_not_fit_the_config_is_said_at_once_and_before_anything_runs(
    tmp_path: Path,
) -> None:
    over = [
        "optimizer.lrr=1e-4..1e-2",
        "optimizer.weight_decay=0..1",
        "batch.size=8,12",
        "train.precision=bf16,fp17",
        "optimizer.lr=0.1,fast",
        "network.dims=[6,3],7",
        "foo.bar=1,2",
        "run.seed=3",
        "stop.improvement.metric=val/loss,val/none",
    ]
    of_the_config = [
        "stop.milestones={metric: val/accuracy, at_least: 0.5, by: {steps: 9999}}",
        "stop.forecast={target: val/f1}",
        "stop.improvement={metric: val/accuracy, patience: 3}",
        "stop.smooth.window=3",
        "log.every.steps=1..4",
    ]
    asked = ["sweep", CONFIG, *of_the_config, "--dir", str(tmp_path / "sweep")]
    with pytest.raises(ConfigError) as caught:
        app([*asked, *(word for one in over for word in ("--over", one))], standalone_mode=False)
    said = str(caught.value)
    for part in (
        "no argument of this name. Did you mean lr?",
        "size 12 is not a multiple of micro_size 8",
        "'fp17' is not allowed",
        "--over optimizer.lr: fast is a text where the config has 0.01. Give a number.",
        "--over network.dims: 7 is a number where the config has [6, 16, 3]. Give a list.",
        "foo: no such key",
        "one value to choose from",
        "there is no metric val/none",
        "stop.milestones.by: 9999 steps are beyond the budget of 24",
        "stop.targets has no target for val/f1",
        "stop.smooth: no such key",
        "log.every.steps=1..4: is a range",
    ):
        assert part in said
    assert "weight_decay" not in said
    assert said.startswith(f"{len(said.splitlines()) - 1} mistakes:")
    assert len(set(said.splitlines())) == len(said.splitlines())
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prune", "halving"], "--prune: 'halving' is not one of"),
        (["--sampler", "bayes"], "--sampler: 'bayes' is not one of tpe, random, grid"),
        (["--sampler", "grid"], "--sampler grid: optimizer.lr is a range"),
        (["--prune", "median", "--eta", "2"], "--eta: no effect without --prune hyperband or asha"),
        (
            [
                "stop.best=null",
                "stop.improvement={metric: val/loss, patience: 3}",
                *("--over", "stop.improvement.metric=val/loss,val/f1"),
            ],
            "override stop.improvement.metric=val/f1: such trials would be ranked by val/f1",
        ),
        (["--over", "stop.best.metric=val/loss,val/f1"], "stop.best.metric: cannot be varied"),
        (
            ["--prune", "hyperband", "stop.budget={epochs: 3}"],
            "number of evaluations in the budget",
        ),
        (
            [
                "--prune",
                "forecast",
                "stop={every: {steps: 4}, improvement: {metric: val/loss, patience: 3}}",
            ],
            "needs a budget to look ahead to",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], message: str, tmp_path: Path
) -> None:
    over = ["--over", "optimizer.lr=0.1..1", "--dir", str(tmp_path / "sweep")]
    with pytest.raises(ConfigError, match=re.escape(message)):
        app(["sweep", CONFIG, *over, *options], standalone_mode=False)
