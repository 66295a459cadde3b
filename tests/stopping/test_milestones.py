"""Milestones on both sides of each boundary, refused where they cannot take effect, replayed."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import ConfigError
from harness.metrics.interval import IntervalMetrics
from harness.ranks.ranks import Ranks
from harness.stopping.controller import StopController
from harness.stopping.history import read_history
from harness.stopping.replay import replay
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Evaluation, MetricInfo
from harness.tasks import Classification

SHARE = MetricInfo("max", 0.0, 1.0, has_chance=True)
INFOS = {
    "train/accuracy": SHARE,
    "val/accuracy": SHARE,
    "val/f1": MetricInfo("max", 0.0, 1.0),
    "val/loss": MetricInfo("min", 0.0),
}
HALF = {"metric": "val/accuracy", "at_least": 0.5, "by": {"epochs": 3}}
TWICE = {"metric": "val/accuracy", "at_least": "1.2x chance", "by": {"epochs": 2}}
BELOW = math.nextafter(0.5, 0)
NAN = math.nan


def settings(*milestones: Mapping[str, Any], **more: Any) -> StopSettings:
    listed = milestones[0] if len(milestones) == 1 else list(milestones)
    return StopSettings.model_validate({"milestones": listed, "budget": {"steps": 10**6}, **more})


def evaluation(number: int, row: Mapping[str, float], *, extra: bool = False) -> Evaluation:
    return Evaluation(100 * number, float(number), 3200 * number, 0.5 * number, row, extra=extra)


def end(stop: StopSettings, values: Sequence[Any]) -> tuple[int | None, str]:
    """Index and words of the first verdict that stops."""
    controller = StopController(stop, INFOS)
    for index, value in enumerate(values):
        row = value if isinstance(value, dict) else {"val/accuracy": value}
        verdict = controller.judge(evaluation(index + 1, row))
        if verdict.stops:
            assert verdict.reason == "hopeless"
            return index, verdict.detail
    return None, ""


def test_a_value_of_before_counts_though_chance_was_not_recorded_then() -> None:
    assert end(settings(TWICE), [0.9, by_chance(0.3, 0.5), by_chance(0.3, 0.5)])[0] is None
    assert end(settings(TWICE), [0.5, by_chance(0.3, 0.5)])[0] == 1


def by_chance(accuracy: float, chance: float) -> dict[str, float]:
    return {"val/accuracy": accuracy, "val/accuracy_by_chance": chance}


def test_a_multiple_of_chance_that_no_network_can_reach_is_told_once_and_not_judged() -> None:
    controller = StopController(settings(TWICE), INFOS)
    verdicts = [controller.judge(evaluation(n, by_chance(0.99, 0.9))) for n in range(1, 5)]
    assert not any(one.stops for one in verdicts)
    (warning,) = [warning for one in verdicts for warning in one.warnings]
    assert "val/accuracy cannot reach 1.2x chance, 1.08: it is never above 1" in warning


@pytest.mark.parametrize(
    ("milestones", "values", "index"),
    [
        ([HALF], [0.1, 0.5, 0.1, 0.1], None),  # reached before, by exactly its value
        ([HALF], [0.1, 0.2, 0.5, 0.1], None),  # at the very last
        ([HALF], [0.1, 0.2, BELOW], 2),
        ([HALF], [0.1, 0.2], None),  # its time has not come
        ([HALF], [0.1, NAN, NAN, 0.6], 2),
        ([HALF], [0.1, 0.1, {"val/loss": 1.0}, 0.1], 3),  # judged where it is measured
        ([HALF], [0.1, 0.1, {"val/loss": 1.0}, 0.5], None),
        ([{**HALF, "by": {"hours": 1.1}}], [0.1, 0.1, 0.1], 2),
        ([{**HALF, "by": {"steps": 200}}], [0.1, 0.1], 1),
        ([{**HALF, "by": {"samples": 6401}}], [0.1, 0.1, 0.1], 2),
        (
            [{"metric": "val/loss", "at_most": 0.2, "by": {"epochs": 1}}],
            [{"val/loss": 0.2}, {"val/loss": 0.9}],
            None,
        ),
        (
            [{"metric": "val/loss", "at_most": 0.2, "by": {"epochs": 1}}],
            [{"val/loss": math.nextafter(0.2, 1)}],
            0,
        ),
        ([HALF, {**HALF, "at_least": 0.9, "by": {"epochs": 4}}], [0.5, 0.8, 0.8, 0.8], 3),
        ([TWICE], [by_chance(0.1, 0.5), by_chance(0.6, 0.5)], None),
        ([TWICE], [by_chance(0.1, 0.5), by_chance(math.nextafter(0.6, 0), 0.5)], 1),
    ],
)
def test_a_milestone_is_reached_by_its_value_and_by_its_time(
    milestones: list[dict[str, Any]], values: list[Any], index: int | None
) -> None:
    assert end(settings(*milestones), values)[0] == index


def test_the_verdict_says_what_was_there_and_what_was_asked() -> None:
    assert end(settings(HALF), [0.3, 0.4, 0.2])[1] == (
        "val/accuracy is 0.4 at best (step 200) where at least 0.5 was asked by 3 epochs "
        "(step 300)."
    )
    chance = end(settings(TWICE), [by_chance(0.11, 0.1)] * 2)[1]
    assert "at least 0.12 (1.2 times the 0.1 of chance) was asked by 2 epochs" in chance


def test_an_evaluation_outside_of_the_intervals_is_not_judged_by_it() -> None:
    controller = StopController(settings(HALF), INFOS)
    assert not controller.judge(evaluation(3, {"val/accuracy": 0.1}, extra=True)).stops
    assert controller.judge(evaluation(4, {"val/accuracy": 0.1})).stops


def test_judged_again_after_a_resume_a_late_arrival_counts_and_the_present_setting_does() -> None:
    controller = StopController(settings(HALF), INFOS)
    rows = [0.1, 0.2, 0.3, 0.6]
    for number, value in enumerate(rows, 1):
        controller.judge(evaluation(number, {"val/accuracy": value}))
    for bar, stops in ((0.6, False), (0.7, True)):
        again = StopController(settings({**HALF, "at_least": bar}), INFOS)
        verdict = again.restore(controller.state(), controller.history())
        assert verdict is not None
        assert verdict.stops == stops


@pytest.mark.parametrize(
    ("milestone", "message"),
    [
        ({"at_least": "1.2 x luck"}, "neither a value like 0.5 nor a multiple like 1.2x chance"),
        ({"at_least": "0x chance"}, "neither a value"),
        ({"at_least": None}, "exactly one of at_least, at_most"),
        ({"by": {"epochs": 2, "steps": 9}}, "exactly one of epochs, steps, samples, hours"),
        ({"by": {}}, "at least one of epochs"),
        ({"at_least": 1.5}, "stop.milestones.at_least: val/accuracy is never above 1"),
        ({"at_least": None, "at_most": 0.5}, "Write at_least: 0.5"),
        ({"metric": "val/acuracy"}, "Did you mean val/accuracy?"),
        ({"metric": "val/f1", "at_least": "2x chance"}, "is not known. Give a number"),
        ({"by": {"steps": 10**6 + 1}}, "beyond the budget of"),
    ],
)
def test_what_cannot_take_effect_is_refused(milestone: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError)) as raised:
        StopController(settings({**HALF, **milestone}), INFOS)
    assert message in str(raised.value)


def test_chance_is_what_the_most_frequent_class_gives() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

    task = Classification("x", "y")
    task.fit_to(torch.zeros(1, 3))
    targets = torch.tensor([0, 1, 1, 1, 2, 2, 1])
    metrics = IntervalMetrics(task.metrics())
    metrics.update(task, torch.eye(3)[[2, 1, 0, 0, 2, 2, 1]], {"y": targets}, 0)
    found = task.chance(metrics.compute(Ranks()))
    always = torch.ones_like(targets)
    assert found["accuracy"] == accuracy_score(targets, always)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, always))
    assert found["f1"] == pytest.approx(
        f1_score(targets, always, average="macro", zero_division=0.0)
    )
    assert all(task.infos()[name].has_chance for name in found)


def test_a_recorded_run_is_replayed_with_its_chance(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    rows = [{"step": 100 * n, "epoch": n, **by_chance(0.1 * n, 0.5)} for n in range(1, 5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = replay(read_history(path), settings(TWICE))
    assert (found.stop_index, found.verdicts[-1].reason) == (1, "hopeless")
    path.write_text(path.read_text().replace("_by_chance", "_other").replace('"epoch"', '"age"'))
    with pytest.raises(ConfigError, match=r"(?s)is not known.*does not have epoch"):
        replay(read_history(path), settings(TWICE))
