"""What a sweep decides, on trials that record a known curve at once instead of training."""

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend

from harness.cli import app
from harness.commands import sweep as sweep_command
from harness.errors import ConfigError, RankError
from harness.search import sweep as sweep_module
from harness.search.asha import Rungs
from harness.search.process import Place
from tests.search.test_sweep import CONFIG, result

LENGTH = 9


def loss_of(lr: float, evaluation: int) -> float:
    """Best at 0.01, and falling."""
    return abs(math.log10(lr) + 2) + 1 / evaluation


class Recorded:
    """In place of a launch: its run is recorded at once, up to its end."""

    begun: ClassVar[list[tuple[str, Place]]] = []
    curve: ClassVar[Callable[[float], list[float]]]

    def __init__(self, config: Path, overrides: Sequence[str], log: Path, place: Place) -> None:
        settings = dict(one.split("=", 1) for one in overrides)
        run, lr = Path(json.loads(settings["run.dir"])), float(settings["optimizer.lr"])
        self.asked, self.code = False, 0
        self.begun.append((run.name, place))
        if settings.get("network.dropout") == "2.0":
            self.code = 2
            return
        run.mkdir(exist_ok=True)
        values = Recorded.curve(lr)
        if settings.get("network.dropout") == "1.0":  # diverges at once
            values = []
        records = [
            {"kind": "eval", "step": 4 * n, "epoch": n / 2, "samples": 32 * n, "elapsed_s": n}
            | {"val/loss": value, "lr": lr}
            for n, value in enumerate(values, 1)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
        best = None
        if values:
            value = min(one for one in values if one == one)
            best = {"metric": "val/loss", "value": value, "step": 36, "checkpoint": None}
        reason = "budget" if values else "diverged"
        self.code = 0 if values else 3
        outcome = {"reason": reason, "detail": "it.", "step": 36, "epoch": 4.5, "samples": 288}
        outcome |= {"world_size": 1, "launches": 1, "best": best, "checkpoint": None}
        outcome |= {"exact": True, "exact_reason": "", "time": {}}
        (run / "outcome.json").write_text(json.dumps(outcome))

    def ask_to_leave(self) -> None:
        self.asked = True

    def exit_code(self) -> int:
        return self.code

    def wait(self) -> None:
        pass

    def error(self) -> str:
        return "ConfigError: network.dropout: 2.0 is no probability."


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "Launched", Recorded)
    monkeypatch.setattr(sweep_module, "POLL_S", 0.0)
    monkeypatch.setattr(sweep_command, "_draw", lambda result: "")
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no machine fails here
    Recorded.begun = []
    Recorded.curve = lambda lr: [loss_of(lr, n) for n in range(1, LENGTH + 1)]


def sweep(directory: Path, *options: str, over: str = "optimizer.lr=1e-5..1:log") -> None:
    budget = "stop.budget.steps=36"
    asked = ["sweep", str(CONFIG), budget, "--over", over, "--dir", str(directory), "--cpu"]
    assert app([*asked, *options], standalone_mode=False) == 0


def trials(directory: Path) -> list[optuna.trial.FrozenTrial]:
    backend = JournalFileBackend(str(directory / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="sweep", storage=storage).trials


def replayed(
    directory: Path, pruner: optuna.pruners.BasePruner
) -> list[tuple[str, Mapping[int, float]]]:
    """What Optuna's own loop does with the same parameters and curves."""
    found = trials(directory)
    study = optuna.create_study(study_name="sweep", pruner=pruner)
    for one in found:
        study.enqueue_trial(one.params)

    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_float("optimizer.lr", 1e-5, 1, log=True)
        for n in range(1, LENGTH + 1):
            trial.report(loss_of(lr, n), n)
            if trial.should_prune():
                raise optuna.TrialPruned
        return loss_of(lr, LENGTH)

    study.optimize(objective, n_trials=len(found))
    return [(one.state.name, one.intermediate_values) for one in study.trials]


@pytest.mark.parametrize("prune", ["none", "median", "hyperband"])
def test_pruning_is_that_of_optunas_own_loop(prune: str, tmp_path: Path) -> None:
    sweep(tmp_path, "--trials", "12", "--prune", prune, "--sampler", "random")
    pruners: dict[str, optuna.pruners.BasePruner] = {
        "none": optuna.pruners.NopPruner(),
        "median": optuna.pruners.MedianPruner(),
        "hyperband": optuna.pruners.HyperbandPruner(1, LENGTH, 3),
    }
    mine = [(one.state.name, one.intermediate_values) for one in trials(tmp_path)]
    assert mine == replayed(tmp_path, pruners[prune])
    assert (prune == "none") == all(state == "COMPLETE" for state, _ in mine)


def test_a_median_is_one_of_five_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Optuna 2441, 2506, 2556: trials that end by themselves leave few at late evaluations, and
    promising ones were pruned by the median of one.
    """

    def curve(lr: float) -> list[float]:  # the first goes on, four end early, the last is late
        return {0.1: [1.0, 0.5, 0.4], 0.06: [2.0, 1.0, 0.5, 0.1]}.get(lr, [3.0, 2.0])

    Recorded.curve = curve
    five = "optimizer.lr=0.1,0.2,0.3,0.4,0.5"
    sweep(tmp_path, "--prune", "median", "--sampler", "grid", over=f"{five},0.06")
    assert {one["state"] for one in result(tmp_path)} == {"complete"}
    assert "--prune median ends trials once 5 are complete" in capsys.readouterr().out
    with pytest.raises(
        ConfigError, match=r"--prune median: can end no trial .* 5 trials, .* more than 5"
    ):
        sweep(tmp_path / "b", "--prune", "median", over=five)


def test_a_trial_without_a_number_is_pruned_as_the_worst(tmp_path: Path) -> None:
    """Optuna 264, 6055."""
    Recorded.curve = lambda lr: [math.nan, 0.5] if lr == 0.06 else [1.0, 0.5]
    five = "optimizer.lr=0.1,0.2,0.3,0.4,0.5"
    sweep(tmp_path, "--prune", "median", "--sampler", "grid", over=f"{five},0.06")
    states = {one["optimizer.lr"]: one["state"] for one in result(tmp_path)}
    assert states.pop(0.06) == "pruned"
    assert set(states.values()) == {"complete"}


def test_forecasts_prune_what_will_not_reach_the_best(tmp_path: Path) -> None:
    over = "optimizer.lr=0.01,1e-5,0.02"
    sweep(tmp_path, "--prune", "forecast", "--sampler", "grid", over=over)
    states = {one.params["optimizer.lr"]: one.state.name for one in trials(tmp_path)}
    assert states["0.01"] == "COMPLETE"  # nothing to compare it with
    assert states["1e-5"] == "PRUNED"


@pytest.mark.parametrize("prune", ["median", "hyperband", "asha", "forecast", "grid"])
def test_a_sweep_killed_at_any_entry_of_its_journal_ends_as_one_that_was_not(
    prune: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna 2705, 3655, 6283: what was cut off stayed "running", and its values were not tried
    again. Ray 8647, Optuna 5489: a grid began anew, or repeated itself. Ray 14667, 30861, WarpRec
    126: sampler or the scores of rungs were lost. Hydra 2647: trials were counted anew.
    """
    options = ["--trials", "7", "--prune", prune, "--sampler", "tpe"]
    over = "optimizer.lr=1e-5..1:log"
    if prune == "grid":
        options, over = ["--sampler", "grid"], "optimizer.lr=0.1,0.01,1e-3,1e-4"
    sweep(tmp_path / "whole", *options, over=over)
    lines = (tmp_path / "whole" / "study.journal").read_text().count("\n")
    append = JournalFileBackend.append_logs

    class Killed(BaseException):
        pass

    for kill_at in range(1, lines, max(1, lines // 4)):
        directory, count = tmp_path / f"{kill_at}", itertools.count(1)

        def cut_off(
            self: JournalFileBackend,
            logs: list[dict[str, Any]],
            count: Any = count,
            at: int = kill_at,
        ) -> None:
            if next(count) > at:
                with open(self._file_path, "ab") as file:
                    file.write(json.dumps(logs[0]).encode()[:9])
                raise Killed
            append(self, logs)

        with monkeypatch.context() as patch:
            patch.setattr(JournalFileBackend, "append_logs", cut_off)
            with pytest.raises(Killed):
                sweep(directory, *options, over=over)
        sweep(directory, *options, over=over)
        assert result(directory) == result(tmp_path / "whole")
        assert all(one.state.is_finished() for one in trials(directory))


def test_more_trials_go_on_and_another_sweep_in_its_directory_is_refused(tmp_path: Path) -> None:
    sweep(tmp_path, "--trials", "2", "--sampler", "random")
    sweep(tmp_path, "--trials", "4", "--sampler", "random")
    four = [one["optimizer.lr"] for one in result(tmp_path)]
    assert len(set(four)) == 4  # a sampler that is seeded anew does not repeat itself
    assert [name for name, _ in Recorded.begun] == [f"trial-{n:04}" for n in range(4)]
    with pytest.raises(ConfigError, match=r"holds a sweep with another --over\. Give what it had"):
        sweep(tmp_path, "--sampler", "random", over="optimizer.lr=1e-4..1:log")
    with pytest.raises(ConfigError, match="another --seed, another config"):
        sweep(tmp_path, "--sampler", "random", "--seed", "5", "batch.micro_size=4")


def test_choices_are_all_tried_once_and_failures_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--over", "network.dropout=0.1,1.0,2.0"]
    sweep(tmp_path, *both, "--at-once", "2", over="optimizer.lr=0.1,0.01")
    said = capsys.readouterr().out
    rows = result(tmp_path)
    assert len({(one["optimizer.lr"], one["network.dropout"]) for one in rows}) == 6
    assert [one["state"] for one in rows] == ["complete", "failed", "failed"] * 2
    assert "failed: ConfigError: network.dropout: 2.0 is no probability." in said
    assert "without a best value: it." in said
    assert len({id(place) for _, place in Recorded.begun}) == 2
    with pytest.raises(RankError, match="3 trials failed in a row, for the reasons above"):
        sweep(tmp_path / "b", "network.dropout=2.0", "--trials", "9", "--sampler", "random")


@pytest.mark.parametrize(
    ("prune", "stop", "has"),
    [
        ("hyperband", ["stop.every.steps=48"], 1),
        ("asha", ["stop.every.steps=36"], 1),
        ("median", ["stop.every=null", "stop.every={epochs: 3}", "stop.budget={epochs: 2}"], 1),
        ("forecast", ["stop.every.steps=5"], 8),
    ],
)
def test_a_pruner_that_could_end_nothing_early_is_refused(
    prune: str, stop: list[str], has: int, tmp_path: Path
) -> None:
    said = rf"--prune {prune}: can end no trial before its end: there are {has} evaluations"
    with pytest.raises(ConfigError, match=said):
        sweep(tmp_path, "--prune", prune, *stop)


def test_a_pruner_without_effect_is_told_where_it_shows_only_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = "stop.budget={samples: 288}"
    sweep(tmp_path / "a", "--prune", "asha", "--trials", "2", one)
    assert "had no effect" not in capsys.readouterr().out
    Recorded.curve = lambda lr: [loss_of(lr, 1)]
    sweep(tmp_path / "b", "--prune", "median", "--trials", "6", one)
    assert "--prune median had no effect: no trial was evaluated" in capsys.readouterr().out


def test_a_trial_that_failed_on_its_way_takes_nobodys_place_in_asha(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four trials one goes on; the best does not come back from its pause."""

    class Failing(Recorded):
        def __init__(self, config: Path, overrides: Sequence[str], log: Path, place: Place) -> None:
            super().__init__(config, overrides, log, place)
            if [run for run, _ in self.begun].count("trial-0000") == 2 and self.begun[-1][0] == (
                "trial-0000"
            ):
                self.code = 2
                (tmp_path / "trial-0000" / "metrics.jsonl").unlink()

    monkeypatch.setattr(sweep_module, "Launched", Failing)
    options = ["--prune", "asha", "--eta", "4", "--sampler", "grid"]
    sweep(tmp_path, *options, over="optimizer.lr=0.01,0.1,1e-5,1.0")
    assert [one["state"] for one in result(tmp_path)] == ["failed", "complete", "pruned", "pruned"]


@given(st.data())
def test_asha_promotes_the_best_share_of_a_rung(data: st.DataObject) -> None:
    rungs = Rungs(1, data.draw(st.integers(2, 4)))
    count = data.draw(st.integers(1, 9))
    values = [data.draw(st.floats(0, 1) | st.just(math.nan)) for _ in range(count)]
    scores = {n: {1: value} for n, value in enumerate(values)}
    until = dict.fromkeys(scores, 1)
    promoted = []
    while (one := rungs.promoted(scores, until)) is not None:
        promoted.append(one)
        until[one] = rungs.after(1)
    assert len(promoted) == count // rungs.eta
    known = [-math.inf if math.isnan(value) else value for value in values]
    left = [known[n] for n in scores if n not in promoted]
    assert not promoted or min(known[n] for n in promoted) >= max(left, default=-math.inf)
    # Where no more trials come, the best goes on
    assert (rungs.promoted(scores, until, last=True) is None) == bool(promoted)


def test_rungs_are_powers_and_the_highest_is_looked_at_first() -> None:
    assert [Rungs(1, 3).after(n) for n in (0, 1, 3, 8)] == [1, 3, 9, 9]
    scores = {0: {1: 0.5, 3: 0.6}, 1: {1: 0.4, 3: 0.5}, 2: {1: 0.3, 3: 0.1}, 3: {1: 0.9}}
    assert Rungs(1, 3).promoted(scores, {0: 3, 1: 3, 2: 3, 3: 1}) == 0
    assert Rungs(1, 3).promoted(scores, {1: 3, 2: 3, 3: 1}) == 3  # trial 0 went on: a third did
