"""Faults that users of other trainers reported, and what becomes of them here."""

import math
from typing import Any

import pytest

from harness.errors import ConfigError
from harness.stopping.controller import StopController
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Evaluation, MetricInfo, Verdict

INFOS = {"val/loss": MetricInfo("min", 0.0), "val/accuracy": MetricInfo("max", 0.0, 1.0)}
LOSS_3 = {"improvement": {"metric": "val/loss", "patience": 3}}


def launched(values: list[float], cuts: list[int], stop: dict[str, Any]) -> list[Verdict]:
    """Verdicts on val/loss by step, over launches that begin after `cuts` evaluations each."""
    settings = StopSettings.model_validate({"budget": {"steps": 99}, **stop})
    controller, verdicts = StopController(settings, INFOS), []
    for n, value in enumerate(values, 1):
        if n - 1 in cuts:
            old, controller = controller, StopController(settings, INFOS)
            controller.restore(old.state(), old.history())
        verdicts.append(controller.judge(Evaluation(n, float(n), n, 0.0, {"val/loss": value})))
    return verdicts


def test_patience_and_best_outlive_any_number_of_launches() -> None:
    """Lightning 1463, 1464, 3488, 18727 and transformers 28544: the count, the best, or both began
    anew with each launch, so that a run launched often enough never stopped.
    """
    values = [1.0, 0.5, 0.7, 0.6, 0.8]
    for cuts in ([2], [3], [2, 3, 4], [1, 2, 3, 4]):
        found = launched(values, cuts, LOSS_3)
        assert found == launched(values, [], LOSS_3)
        assert [one.new_best for one in found] == [True, True, False, False, False]
        assert [one.reason for one in found] == [None] * 4 + ["no_improvement"]


def test_a_gain_ends_the_count_also_in_the_warm_up() -> None:
    """Lightning 19966, 21857: a stop decided before min_epochs stayed decided. ms-swift 5326: the
    count was not put back after a new best.
    """
    values = [1.0, 1.1, 1.2, 1.3, 0.9, 1.0, 1.1]
    late = launched(values, [], {**LOSS_3, "warmup": 4})
    assert not any(one.stops for one in late)
    found = launched([1.0, 1.1, 1.2, 0.9, 1.1, 1.2, 1.3], [], LOSS_3)
    assert [one.stops for one in found] == [False] * 6 + [True]


def test_a_baseline_not_reached_ends_at_its_time_and_keeps_a_best() -> None:
    """Keras 13860, TensorFlow 45187: with a baseline the end came while the metric still improved,
    or there were no best weights to restore.
    """
    baseline = {"metric": "val/loss", "at_most": 0.1, "by": {"steps": 5}}
    found = launched([1.0, 0.9, 0.8, 0.7, 0.6], [], {"milestones": baseline})
    assert [one.reason for one in found] == [None] * 4 + ["hopeless"]
    assert all(one.new_best for one in found)


def test_the_best_is_that_of_its_own_evaluation_and_never_nan() -> None:
    """Keras 13658, 20323: a metric that was NaN throughout left nothing to restore; the weights
    were those of the epoch after the best one. Keras 12511: none at all where a budget ended it.
    """
    found = launched([math.nan, 0.5, 0.4, 0.6], [], {"divergence": None, "budget": {"steps": 4}})
    lost, *rest = found
    assert lost.reason == "diverged"
    assert [one.new_best for one in (lost, *rest)] == [False, True, True, False]
    assert rest[-1].reason == "budget"


def test_an_evaluation_that_did_not_measure_the_metric_leaves_the_count() -> None:
    """Lightning 490, 524, 1901, 6113, 9151: epochs without a validation ended the run or crashed
    it. Lightning 17736: a metric that improved at each validation was stopped.
    """
    settings = StopSettings.model_validate({"budget": {"steps": 99}, **LOSS_3})
    controller, stops = StopController(settings, INFOS), []
    for n, value in enumerate([1.0, None, 1.1, None, None, 1.2, None, 0.9, 1.0, None, 1.0, 1.0]):
        measured = {} if value is None else {"val/loss": value}
        stops.append(controller.judge(Evaluation(n, float(n), n, 0.0, measured)).stops)
    assert stops == [False] * 11 + [True]


def test_a_rate_that_drops_where_the_metric_was_not_measured_pauses_patience_later() -> None:
    """It was forgotten."""
    settings = StopSettings.model_validate(
        {"improvement": {"metric": "val/loss", "patience": 2, "cooldown": 2}}
    )
    controller, stops = StopController(settings, INFOS), []
    for n, value in enumerate([1.0, 1.0, None, 1.0, 1.0, 1.0, 1.0, 1.0]):
        measured = {} if value is None else {"val/loss": value}
        lr = 0.1 if n < 2 else 0.01
        stops.append(controller.judge(Evaluation(n, float(n), n, 0.0, measured, lr)).stops)
    assert stops == [False] * 7 + [True]


def test_what_is_asked_by_a_time_or_from_a_time_on_says_so() -> None:
    """W&B 8158, 10261: a sweep had no way to end what is below a bound after so many steps, or
    what stands still, but only after the 200th; W&B 1975, 7156, 9615: it ended nothing, silently.
    """
    bound = {"milestones": {"metric": "val/loss", "at_most": 0.5, "by": {"steps": 3}}}
    assert [one.reason for one in launched([0.9, 0.8, 0.7], [], bound)] == [None, None, "hopeless"]
    assert not any(one.stops for one in launched([0.9, 0.5, 0.7, 0.9], [], bound))
    late = {"improvement": {"metric": "val/loss", "patience": 2}, "warmup": 4}
    stops = [one.stops for one in launched([1.0] * 6, [], late)]
    assert stops == [False] * 5 + [True]
    with pytest.raises(ConfigError, match=r"there is no metric val/test_acc_avg"):
        launched([1.0], [], {"improvement": {"metric": "val/test_acc_avg", "patience": 2}})
