"""A run that was cut off ends as one that never was: losses, samples, parameters, moments,
randomness, verdicts.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.history import read_history
from harness.checkpoint.read import list_checkpoints, load_trainer
from tests.elastic.runs import TIMES
from tests.pool import Launched, train_on_ranks

STORM = Path(__file__).with_name("storm.yaml")


def launch(
    directory: Path, ranks: int, *overrides: str, die_at: str = "", config: Path = STORM
) -> list[Launched]:
    return train_on_ranks(
        ranks, config, [f"run.dir={directory}", *overrides], env={"DIE_AT": die_at}
    )


def finish(directory: Path, ranks: int, *overrides: str) -> None:
    ends = launch(directory, ranks, *overrides)
    assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr


def trace(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "trace.jsonl").read_text().splitlines()]


def last_state(directory: Path) -> dict[str, Any]:
    """Hashes of the last checkpoint's tensors, and what it holds beside them, without the clock's
    part.
    """
    last = list_checkpoints(directory / "checkpoints")[-1]
    assert last.manifest is not None, last.problems
    hashes = {
        name: entry.sha256
        for name, entry in last.manifest.files.items()
        if entry.role in ("model", "optimizer", "rng")
    }
    trainer = load_trainer(last.path)
    rows = read_history(last.path)
    assert rows is not None
    return {
        "step": last.step,
        "files": hashes,
        "history": [{name: row[name] for name in row if name != "hours"} for row in rows],
        **{
            name: trainer[name]
            for name in ("stop", "optimizer", "schedule", "losses", "train_metrics")
        },
    }


def evaluations(directory: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in one.items() if name not in TIMES}
        for one in records
        if one["kind"] in ("train", "eval")
    ]


def events(directory: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [one for one in records if one["kind"] == "event"]


def assert_same(run: Path, reference: Path) -> None:
    assert trace(run) == trace(reference)
    assert last_state(run) == last_state(reference)
    assert evaluations(run) == evaluations(reference)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted run for a number of ranks, made once."""
    made: dict[int, Path] = {}

    def get(ranks: int) -> Path:
        if ranks not in made:
            made[ranks] = tmp_path_factory.mktemp("reference") / "run"
            finish(made[ranks], ranks)
            assert len(trace(made[ranks])) == 40
        return made[ranks]

    return get


@pytest.mark.parametrize(
    ("ranks", "deaths"),
    [
        (1, ["0:1"]),
        (1, ["0:17:before", "0:3", "0:9"]),
        (2, ["1:20", "0:12:before"]),
        (3, ["2:16"]),
        (4, ["3:30:before"]),
    ],
)
def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, references: Any, ranks: int, deaths: Sequence[str]
) -> None:
    for death in deaths:
        assert -9 in [one.exit_code for one in launch(tmp_path / "run", ranks, die_at=death)]
    finish(tmp_path / "run", ranks)
    assert_same(tmp_path / "run", references(ranks))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_saves_the_step_and_the_run_goes_on_from_there(
    tmp_path: Path, references: Any, ranks: int
) -> None:
    ends = launch(tmp_path / "run", ranks, die_at=f"{ranks - 1}:9:term")
    assert [one.exit_code for one in ends] == [75] * ranks
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["reason"] == "interrupted"
    assert outcome["step"] in (9, 10)
    assert outcome["checkpoint"].endswith(f"step-{outcome['step']:08}")
    finish(tmp_path / "run", ranks)
    assert_same(tmp_path / "run", references(ranks))


def test_workers_change_nothing(tmp_path: Path, references: Any) -> None:
    launch(tmp_path / "run", 2, "data.num_workers=2", die_at="0:18")
    finish(tmp_path / "run", 2, "data.num_workers=1")
    assert_same(tmp_path / "run", references(2))


def test_a_larger_budget_goes_on_from_the_end(tmp_path: Path, references: Any) -> None:
    finish(tmp_path / "run", 3, "stop.budget.steps=18", "schedule.T_max=40")
    finish(tmp_path / "run", 3)
    assert trace(tmp_path / "run") == trace(references(3))


def test_saving_at_every_step_changes_nothing(tmp_path: Path, references: Any) -> None:
    finish(tmp_path / "run", 2, "checkpoint.every.steps=1")
    assert trace(tmp_path / "run") == trace(references(2))


@pytest.mark.parametrize(
    "every", ["auto", "{minutes: 0.00001}"], ids=["auto", "less than a step each"]
)
def test_saving_by_the_clock_changes_nothing(tmp_path: Path, references: Any, every: str) -> None:
    run, asked = tmp_path / "run", [f"checkpoint.every={every}", "checkpoint.keep_last=100"]
    if every == "auto":
        asked += ["checkpoint.failures_per_day=1e6", "checkpoint.max_overhead=0.5"]
    ends = launch(run, 2, *asked, die_at="1:21")
    assert "saved every" in ends[0].stdout
    # At steps that evaluations and the budget do not ask for
    found = [one.step for one in list_checkpoints(run / "checkpoints")]
    assert any(step % 6 for step in found), found
    if every != "auto":
        # A request takes a step to all ranks, and none is made while a save is in flight
        assert found[0] == 2
        assert sum(step % 6 != 0 for step in found) >= 2, found
    finish(run, 2, *asked)
    assert trace(run) == trace(references(2))
    assert evaluations(run) == evaluations(references(2))
    chosen = [one for one in events(run) if one["event"] == "save_interval"]
    assert chosen, "not told"
    assert all(one["seconds"] > 0 and one["reason"] for one in chosen)


def test_the_number_of_ranks_may_change_and_the_samples_stay_the_same(
    tmp_path: Path, references: Any
) -> None:
    for ranks, death in [(2, "1:12"), (1, "0:9"), (4, "2:15")]:
        launch(tmp_path / "run", ranks, die_at=death)
    finish(tmp_path / "run", 2)
    assert [one["samples"] for one in trace(tmp_path / "run")] == [
        one["samples"] for one in trace(references(2))
    ]


def test_a_plateau_that_is_fed_by_the_evaluations_goes_on_where_it_was(tmp_path: Path) -> None:
    plateau = (
        "schedule={_target_: harness.schedules.Plateau, metric: val/loss, mode: min, patience: 1, "
        "at_least: 30%, factor: 0.5}"
    )
    finish(tmp_path / "whole", 2, plateau)
    # It dropped, and dropped again
    assert len({one["lr"] for one in evaluations(tmp_path / "whole") if "lr" in one}) >= 3
    launch(tmp_path / "cut", 2, plateau, die_at="1:23")
    launch(tmp_path / "cut", 2, plateau, die_at="0:9:term")
    finish(tmp_path / "cut", 2, plateau)
    assert_same(tmp_path / "cut", tmp_path / "whole")
