"""Overfitting and plateaus, told apart, on both sides of each boundary."""

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from scipy import stats

from harness.errors import ConfigError
from harness.stopping.controller import StopController
from harness.stopping.plateau import slope_and_error
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Evaluation, MetricInfo

INFOS = {
    **{f"{split}/loss": MetricInfo("min", 0.0) for split in ("train", "val")},
    **{f"{split}/accuracy": MetricInfo("max", 0.0, 1.0) for split in ("train", "val")},
}
NAN = math.nan
GAP = {"metric": "loss", "above": 0.25, "for": 2}
FLAT = {"metric": "val/loss", "over": 5}


def settings(**stop: Any) -> StopSettings:
    return StopSettings.model_validate(
        {"train_metrics": "full", "budget": {"steps": 10**6}, **stop}
    )


def end(stop: StopSettings, rows: Sequence[Any]) -> tuple[int | None, str | None, str]:
    """Index, reason and words of the first verdict that stops."""
    controller = StopController(stop, INFOS)
    for index, row in enumerate(rows):
        values = row if isinstance(row, dict) else {"val/loss": row}
        verdict = controller.judge(Evaluation(10 * index + 10, index + 1.0, 9, 0.0, values))
        if verdict.stops:
            return index, verdict.reason, verdict.detail
    return None, None, ""


def losses(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"train/loss": train, "val/loss": val} for train, val in pairs]


RATE = {"metric": "accuracy", "above": 0.1}


def rates(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"train/accuracy": train, "val/accuracy": val} for train, val in pairs]


@pytest.mark.parametrize(
    ("gap", "rows", "index"),
    [
        (GAP, losses((0.5, 0.75), (0.5, 0.75), (0.5, 0.75)), None),  # exactly the bound is borne
        (GAP, losses((0.5, 0.76), (0.5, 0.76)), 1),
        (GAP, losses((0.5, 0.76), (0.5, 0.75), (0.5, 0.76)), None),  # in a row
        ({**RATE, "for": 2}, rates((0.9, 0.7), (NAN, 0.7), (0.9, 0.7)), None),
        (GAP, [*losses((0.5, 0.76)), {"val/loss": 9.0}, *losses((0.5, 0.76))], 2),
        (GAP, losses((0.9, 0.1), (0.9, 0.1)), None),  # better in validation is no gap
        (RATE, rates((0.9, 0.7)), 0),
        (RATE, rates((0.7, 0.9)), None),
    ],
)
def test_a_gap_above_its_bound_for_long_enough_is_overfitting(
    gap: dict[str, Any], rows: list[dict[str, float]], index: int | None
) -> None:
    found, reason, _ = end(settings(gap=gap), rows)
    assert (found, reason) == (index, None if index is None else "overfitting")


def test_overfitting_is_told_in_numbers() -> None:
    assert end(settings(gap=GAP), losses((0.5, 0.76), (0.5, 0.8)))[2] == (
        "val/loss (0.8) is 0.3 worse than train/loss (0.5); the gap has been above 0.25 at 2 of 2 "
        "consecutive evaluations (step 20)."
    )


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([5.0, 4.0, 3.0, 2.0, 1.0, 0.5], None),
        ([1.0, 1.0, 1.0, 1.0, 1.0], 4),
        ([1.0, 1.0, 1.0, 1.0], None),  # too few values
        ([1.0, 2.0, 3.0, 4.0, 5.0], 4),
        ([9.0, 9.0, 5.0, 4.0, 3.0, 2.0], None),  # the last five alone
        ([1e308, 2e307, 3e307, 4e307, 5e307, 9e307], 4),  # no square is infinite
        ([1.5e308, 1.4e308, 1.3e308, 1.2e308, 1.1e308], None),
    ],
)
def test_a_plateau_is_a_slope_that_is_not_for_the_better(
    values: list[float], index: int | None
) -> None:
    found, reason, _ = end(settings(plateau=FLAT), values)
    assert (found, reason) == (index, None if index is None else "plateau")


def test_what_is_not_finite_is_no_point_of_a_trend() -> None:
    rows = [{"val/accuracy": value} for value in (0.5, 0.5, NAN, 0.5, 0.5, 0.5)]
    rising = [{"val/accuracy": value} for value in (0.1, 0.2, NAN, 0.3, 0.4, 0.5)]
    flat = settings(plateau={**FLAT, "metric": "val/accuracy"})
    assert end(flat, rows)[0] == 5
    assert end(flat, rising)[0] is None


def test_a_slope_is_tested_as_scipy_tests_it() -> None:
    draw = random.Random(8)
    decided = set()
    for _ in range(60):
        values = [draw.gauss(1 - 0.05 * n, 0.1) for n in range(8)]
        steps = [10.0 * n + 10 for n in range(8)]
        theirs = stats.linregress(steps, values, alternative="less")
        slope, error = slope_and_error(steps, values)
        assert (slope, error) == pytest.approx((theirs.slope, theirs.stderr))
        stops = end(settings(plateau={**FLAT, "over": 8, "confidence": 0.9}), values)[0] == 7
        assert stops == (theirs.pvalue >= 0.1)
        decided.add(stops)
    assert decided == {True, False}
    assert end(settings(plateau=FLAT), [1.0] * 5)[2] == (
        "val/loss shows no improving trend over its last 5 values at 95 % confidence: slope 0 +- 0 "
        "per step (step 50)."
    )


def test_several_plateaus_must_all_be_there() -> None:
    both = [FLAT, {"metric": "val/accuracy", "over": 4}]
    rows = [{"val/loss": 1.0, "val/accuracy": 0.1 * n} for n in range(6)]
    assert end(settings(plateau=both), rows)[0] is None
    assert end(settings(plateau=both), [{**row, "val/accuracy": 0.5} for row in rows])[0] == 4


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ({"gap": GAP, "train_metrics": "interval"}, "set train_metrics: full, or a sample"),
        ({"gap": {**GAP, "metric": "val/loss"}}, "stop.gap.metric: val/loss: a gap is between"),
        ({"gap": {**GAP, "metric": "los"}}, "there is no metric train/los"),
        ({"gap": {**GAP, "above": -0.1}}, "greater than or equal to 0"),
        ({"gap": {"metric": "accuracy", "above": 1.0}}, "no gap is above 1. Give a smaller one"),
        ({"plateau": {**FLAT, "over": 3}}, "greater than or equal to 4"),
        ({"plateau": {**FLAT, "confidence": 95}}, "less than 1"),
        ({"plateau": {**FLAT, "metric": "val/los"}}, "Did you mean val/loss?"),
    ],
)
def test_what_cannot_take_effect_is_refused(stop: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError)) as raised:
        StopController(settings(**stop), INFOS)
    assert message in str(raised.value)
