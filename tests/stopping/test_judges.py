"""What all criteria together have to be."""

import pytest

from harness.stopping.controller import StopController
from harness.stopping.judge import Finding, Judge
from harness.stopping.judges import judges_of, metrics_of
from harness.stopping.request import RequestJudge
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Evaluation, MetricInfo

METRICS = {"train/f1": MetricInfo("max", 0.0, 1.0), "val/f1": MetricInfo("max", 0.0, 1.0)}
EVERYTHING = StopSettings.model_validate(
    {
        "targets": {"f1": {"at_least": 0.9}},
        "improvement": {"metric": "val/f1", "patience": {"epochs": 3}, "cooldown": 2},
        "divergence": {"metric": "val/loss", "above": 9.0},
        "milestones": {"metric": "val/f1", "at_least": 0.5, "by": {"epochs": 4}},
        "best": {"metric": "val/recall"},
        "budget": {"epochs": 9, "steps": 90, "hours": 2.0},
    }
)


def judges(settings: StopSettings = EVERYTHING) -> list[Judge]:
    return judges_of(settings, METRICS, RequestJudge())


def test_the_order_of_precedence_is_that_of_the_docs() -> None:
    assert [judge.reason for judge in judges()] == [
        "diverged",
        "targets_reached",
        "stop_requested",
        "hopeless",
        "hopeless",
        "overfitting",
        "no_improvement",
        "plateau",
        "budget",
    ]


def test_criteria_that_are_not_set_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    only_budget = StopSettings.model_validate({"budget": {"steps": 9}})
    asked: list[str] = []
    for judge in judges(only_budget):
        assert not judge.metrics()
        taken = judge.take(Evaluation(1, 1.0, 1, 0.0, {"val/f1": 0.1}))
        assert (taken.stop, taken.outlook, *taken.warnings, *taken.criteria) == (None, "")

        def note(self: Judge, evaluation: Evaluation) -> Finding:
            asked.append(self.reason)
            return Finding()

        monkeypatch.setattr(type(judge), "take", note)
    StopController(only_budget, METRICS).judge(Evaluation(1, 1.0, 1, 0.0, {"val/f1": 0.1}))
    assert asked == ["diverged", "stop_requested", "budget"]


def test_each_criterion_says_which_metrics_and_which_columns_it_needs() -> None:
    assert metrics_of(EVERYTHING, METRICS) == {"train/f1", "val/f1", "val/loss", "val/recall"}
    assert [need for judge in judges() for need in judge.needs()] == [
        ("stop.milestones.by.epochs", "epochs"),
        ("stop.improvement.patience", "epochs"),
        ("stop.improvement.cooldown", "lr"),
        ("stop.budget.epochs", "epochs"),
        ("stop.budget.hours", "hours"),
    ]


def test_a_criterion_names_the_problems_of_its_own_settings() -> None:
    found = {judge.reason: list(judge.problems()) for judge in judges()}
    assert found.pop("diverged") == [
        "stop.divergence.metric: there is no metric val/loss. Did you mean val/f1? There are "
        "train/f1, val/f1."
    ]
    assert not any(found.values())
