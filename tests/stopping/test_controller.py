"""Verdicts on histories written by hand: each rule on both sides of its boundary."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from harness.checkpoint import exact_json
from harness.errors import ConfigError
from harness.stopping.controller import StopController
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Best, Evaluation, LoggedSteps, MetricInfo, Verdict

INFOS = {
    f"{split}/{name}": info
    for split in ("train", "val")
    for name, info in {
        "accuracy": MetricInfo("max", 0.0, 1.0),
        "f1": MetricInfo("max", 0.0, 1.0),
        "r2": MetricInfo("max", None, 1.0),
        "gain": MetricInfo("max"),
        "loss": MetricInfo("min", 0.0, None),
        "energy": MetricInfo("min"),
    }.items()
}
NAN, INF = math.nan, math.inf

Row = float | Mapping[str, float]


def settings(**stop: Any) -> StopSettings:
    return StopSettings.model_validate(stop)


def evaluation(number: int, row: Row, metric: str = "val/gain") -> Evaluation:
    """The number-th evaluation, from 1: an interval is 100 steps, one epoch, 3200 samples and six
    minutes. A bare number is a value of `metric`.
    """
    values = dict(row) if isinstance(row, Mapping) else {metric: row}
    lr = values.pop("lr", None)
    return Evaluation(
        step=100 * number,
        epoch=float(number),
        samples=3200 * number,
        hours=0.1 * number,
        metrics=values,
        lr=lr,
    )


def judge(stop: StopSettings, rows: Sequence[Row], metric: str = "val/gain") -> list[Verdict]:
    controller = StopController(stop, INFOS)
    return [controller.judge(evaluation(number, row, metric)) for number, row in enumerate(rows, 1)]


def improve(
    at_least: float | str = 0.0, patience: Any = 1, metric: str = "val/gain", **more: Any
) -> dict[str, Any]:
    return {"metric": metric, "at_least": at_least, "patience": patience, **more}


def of(metric: str, *values: float) -> list[Row]:
    return [{metric: value} for value in values]


def results(*pairs: tuple[float, float]) -> list[Row]:
    """Evaluations by (val/accuracy, val/loss)."""
    return [{"val/accuracy": accuracy, "val/loss": loss} for accuracy, loss in pairs]


def both(train: float, val: float) -> dict[str, float]:
    return {"train/accuracy": train, "val/accuracy": val}


GAINS = improve(metric="val/gain", patience=2)
FALLS = improve(metric="val/energy", patience=2)
ACCURATE = {"accuracy": {"at_least": 0.95}}
EITHER = {"val/accuracy": {"at_least": 0.9}, "val/loss": {"at_most": 0.2}}
PREVIOUS = {"from": "previous"}
THRICE = {"metric": "val/loss", "ratio_to_best": 3.0}
SLACK = {"steps": 10**9}  # a budget that never ends the training

# name, settings, history, index of the stop and its reason
Case = tuple[str, dict[str, Any], Sequence[Row], int | None, str | None]
CASES: list[Case] = [
    # -- targets
    (
        "a target is reached by exactly its value",
        {"targets": ACCURATE},
        [both(0.95, 0.95)],
        0,
        "targets_reached",
    ),
    (
        "nothing is rounded up to a target",
        {"targets": ACCURATE},
        [both(1.0, math.nextafter(0.95, 0))],
        None,
        None,
    ),
    (
        "at_most is reached by exactly its value",
        {"targets": {"val/loss": {"at_most": 0.2}}},
        of("val/loss", 0.2),
        0,
        "targets_reached",
    ),
    (
        "nothing is rounded down to a target",
        {"targets": {"val/loss": {"at_most": 0.2}}},
        of("val/loss", math.nextafter(0.2, 1)),
        None,
        None,
    ),
    (
        "without a split the training metric must hold too",
        {"targets": ACCURATE},
        [both(0.94, 0.96)],
        None,
        None,
    ),
    (
        "without a split the validation metric must hold too",
        {"targets": ACCURATE},
        [both(0.96, 0.94)],
        None,
        None,
    ),
    (
        "both splits must hold at the same evaluation",
        {"targets": ACCURATE},
        [both(0.96, 0.9), both(0.9, 0.96), both(0.96, 0.96)],
        2,
        "targets_reached",
    ),
    (
        "with a split the other one does not matter",
        {"targets": {"val/accuracy": {"at_least": 0.95}}},
        [both(0.1, 0.95)],
        0,
        "targets_reached",
    ),
    (
        "all targets at once",
        {"targets": EITHER},
        results((0.9, 0.3), (0.9, 0.2)),
        1,
        "targets_reached",
    ),
    (
        "all targets, but never at once",
        {"targets": EITHER},
        results((0.9, 0.3), (0.8, 0.1)),
        None,
        None,
    ),
    (
        "any target",
        {"targets": EITHER, "targets_need": "any"},
        results((0.5, 0.2)),
        0,
        "targets_reached",
    ),
    (
        "any target, but none holds",
        {"targets": EITHER, "targets_need": "any"},
        results((0.89, 0.21)),
        None,
        None,
    ),
    (
        "half of a target is none",
        {"targets": {**ACCURATE, "val/f1": {"at_least": 1.0}}, "targets_need": "any"},
        [both(0.5, 0.99)],
        None,
        None,
    ),
    (
        "hold: as often in a row as asked",
        {"targets": ACCURATE, "hold": 2},
        [both(0.96, 0.96), both(0.97, 0.95)],
        1,
        "targets_reached",
    ),
    (
        "hold: once too few",
        {"targets": ACCURATE, "hold": 3},
        [both(0.96, 0.96), both(0.97, 0.95)],
        None,
        None,
    ),
    (
        "hold: starts again after a miss",
        {"targets": ACCURATE, "hold": 2},
        [both(0.96, 0.96), both(0.94, 0.96), both(0.96, 0.96), both(1, 1)],
        3,
        "targets_reached",
    ),
    (
        "hold: of any targets one must hold, not one after the other",
        {"targets": EITHER, "targets_need": "any", "hold": 2},
        results((0.9, 0.3), (0.8, 0.1)),
        None,
        None,
    ),
    (
        "NaN reaches no target",
        {"targets": {"val/f1": {"at_least": 0.0}}},
        of("val/f1", NAN),
        None,
        None,
    ),
    (
        "NaN reaches no target from above",
        {"targets": {"val/energy": {"at_most": 9.0}}},
        of("val/energy", NAN),
        None,
        None,
    ),
    (
        "infinity reaches a target",
        {"targets": {"val/gain": {"at_least": 60.0}}},
        of("val/gain", INF),
        0,
        "targets_reached",
    ),
    (
        "a value of an earlier evaluation reaches no target",
        {"targets": ACCURATE},
        [both(0.9, 0.96), {"train/accuracy": 0.96}],
        None,
        None,
    ),
    (
        "targets count in warm-up",
        {"targets": ACCURATE, "improvement": GAINS, "warmup": 5},
        [both(0.95, 0.95)],
        0,
        "targets_reached",
    ),
    # -- improvement by an absolute gain
    ("the first value is never stale", {"improvement": improve()}, [-5.0], None, None),
    (
        "a gain of exactly what was asked counts",
        {"improvement": improve(0.125)},
        [0.5, 0.625],
        None,
        None,
    ),
    (
        "a gain just below does not",
        {"improvement": improve(0.125)},
        [0.5, math.nextafter(0.625, 0)],
        1,
        "no_improvement",
    ),
    (
        "asked for nothing, any gain counts",
        {"improvement": improve()},
        [0.5, math.nextafter(0.5, 1)],
        None,
        None,
    ),
    (
        "asked for nothing, a tie does not",
        {"improvement": improve()},
        [0.5, 0.5],
        1,
        "no_improvement",
    ),
    (
        "one stale interval short of patience",
        {"improvement": improve(patience=3)},
        [0.5, 0.4, 0.4],
        None,
        None,
    ),
    (
        "as many stale intervals as patience",
        {"improvement": improve(patience=3)},
        [0.5, 0.4, 0.4, 0.4],
        3,
        "no_improvement",
    ),
    (
        "stale intervals are counted in a row",
        {"improvement": improve(patience=3)},
        [0.5, 0.4, 0.4, 0.6, 0.4, 0.4],
        None,
        None,
    ),
    (
        "less is better in a metric to be minimised",
        {"improvement": FALLS},
        of("val/energy", 3, 2, 1, 0, -1),
        None,
        None,
    ),
    (
        "more is no better there",
        {"improvement": FALLS},
        of("val/energy", 3, 4, 5),
        2,
        "no_improvement",
    ),
    (
        "slow progress counts once it adds up",
        {"improvement": improve(0.125, 3)},
        [0.5, 0.5625, 0.59375, 0.625, 0.6875],
        None,
        None,
    ),
    (
        "slow progress that adds up too late",
        {"improvement": improve(0.125, 2)},
        [0.5, 0.5625, 0.59375, 0.625],
        2,
        "no_improvement",
    ),
    (
        "the reference is where the rate was reached",
        {"improvement": improve(0.125, 2)},
        [0.5, 0.6, 0.65, 0.7, 0.77],
        4,
        "no_improvement",
    ),
    (
        "from previous: progress below the rate never adds up",
        {"improvement": improve(0.125, 3, **PREVIOUS)},
        [0, 0.1, 0.2, 0.3],
        3,
        "no_improvement",
    ),
    (
        "from previous: a recovery counts",
        {"improvement": improve(0.125, 2, **PREVIOUS)},
        [1.0, 0.0, 0.5, 0.0, 0.5],
        None,
        None,
    ),
    (
        "from best: a recovery does not",
        {"improvement": improve(0.125, 2)},
        [1.0, 0.0, 0.5, 0.0, 0.5],
        2,
        "no_improvement",
    ),
    (
        "the example of docs/stopping.md",
        {"improvement": improve("5%", 3)},
        [0.80, 0.82, 0.85, 0.86, 0.86, 0.84],
        5,
        "no_improvement",
    ),
    # -- improvement by a share
    (
        "a share of exactly what was asked counts",
        {"improvement": improve("25%")},
        [0.5, 0.625],
        None,
        None,
    ),
    (
        "a share just below does not",
        {"improvement": improve("25%")},
        [0.5, math.nextafter(0.625, 0)],
        1,
        "no_improvement",
    ),
    (
        "0 % asks for any gain",
        {"improvement": improve("0%")},
        [0.5, math.nextafter(0.5, 1)],
        None,
        None,
    ),
    (
        "0 % is not reached by a tie",
        {"improvement": improve("0%")},
        [0.5, 0.5],
        1,
        "no_improvement",
    ),
    (
        "a share of a negative value is one of its size",
        {"improvement": improve("25%")},
        [-8.0, -6.0],
        None,
        None,
    ),
    (
        "just below a share of a negative value",
        {"improvement": improve("25%")},
        [-8.0, math.nextafter(-6.0, -7)],
        1,
        "no_improvement",
    ),
    (
        "a share of a negative value that falls",
        {"improvement": improve("25%", metric="val/energy")},
        of("val/energy", -8.0, -10.0),
        None,
        None,
    ),
    (
        "a fall to zero is all of it",
        {"improvement": improve("100%", metric="val/energy")},
        of("val/energy", 8.0, 0.0),
        None,
        None,
    ),
    ("from zero any gain counts", {"improvement": improve("50%")}, [0.0, 1e-9], None, None),
    (
        "from zero no gain is stale",
        {"improvement": improve("50%")},
        [0.0, 0.0],
        1,
        "no_improvement",
    ),
    ("across zero any gain counts", {"improvement": improve("500%")}, [-1.0, 0.5], None, None),
    (
        "across zero a loss is stale",
        {"improvement": improve("5%")},
        [1.0, -0.5],
        1,
        "no_improvement",
    ),
    (
        "a share of the previous value",
        {"improvement": improve("50%", 2, **PREVIOUS)},
        [4.0, 2.0, 3.0, 2.0, 3.0],
        None,
        None,
    ),
    # -- patience in other units
    (
        "patience in epochs",
        {"improvement": improve(patience={"epochs": 2})},
        [1.0, 1.0, 1.0],
        2,
        "no_improvement",
    ),
    (
        "patience in epochs, one short",
        {"improvement": improve(patience={"epochs": 2})},
        [1.0, 1.0],
        None,
        None,
    ),
    (
        "patience in steps, at exactly them",
        {"improvement": improve(patience={"steps": 200})},
        [1.0, 1.0, 1.0],
        2,
        "no_improvement",
    ),
    (
        "patience in steps, at the first past them",
        {"improvement": improve(patience={"steps": 201})},
        [1.0, 1.0, 1.0, 1.0],
        3,
        "no_improvement",
    ),
    (
        "patience in samples, at exactly them",
        {"improvement": improve(patience={"samples": 6400})},
        [1.0, 1.0, 1.0],
        2,
        "no_improvement",
    ),
    (
        "patience in samples, one sample short",
        {"improvement": improve(patience={"samples": 6401})},
        [1.0, 1.0, 1.0],
        None,
        None,
    ),
    (
        "patience counts from the last improvement",
        {"improvement": improve(patience={"steps": 200})},
        [1.0, 1.0, 2.0, 2.0],
        None,
        None,
    ),
    # -- several criteria
    (
        "all must run out, one has",
        {"improvement": [GAINS, FALLS]},
        [{"val/gain": 1, "val/energy": -v} for v in range(9)],
        None,
        None,
    ),
    (
        "all must run out, both have",
        {"improvement": [GAINS, FALLS]},
        [{"val/gain": 1, "val/energy": 1}] * 3,
        2,
        "no_improvement",
    ),
    (
        "all must have run out at once",
        {"improvement": [GAINS, FALLS]},
        [{"val/gain": a, "val/energy": b} for a, b in [(1, 3), (1, 2), (1, 1), (2, 1), (3, 1)]],
        None,
        None,
    ),
    (
        "any may run out",
        {"improvement": [GAINS, FALLS], "improvement_needs": "any"},
        [{"val/gain": 1, "val/energy": -v} for v in range(9)],
        2,
        "no_improvement",
    ),
    (
        "any may run out, none has",
        {"improvement": [GAINS, FALLS], "improvement_needs": "any"},
        [{"val/gain": 1, "val/energy": 1}] * 2,
        None,
        None,
    ),
    # -- values that are none
    ("NaN is stale", {"improvement": GAINS}, [1.0, NAN, NAN], 2, "no_improvement"),
    (
        "NaN is no reference",
        {"improvement": improve(patience=3)},
        [1.0, NAN, 0.5, 0.9],
        3,
        "no_improvement",
    ),
    (
        "NaN is no previous value",
        {"improvement": improve(patience=2, **PREVIOUS)},
        [1.0, NAN, 0.5],
        2,
        "no_improvement",
    ),
    (
        "the first value that is one is the reference",
        {"improvement": GAINS},
        [NAN, 1.0, 1.0],
        None,
        None,
    ),
    ("nothing but NaN is no improvement", {"improvement": GAINS}, [NAN, NAN], 1, "no_improvement"),
    (
        "what was not measured is not stale",
        {"improvement": GAINS},
        [1.0, {}, {}, {}, 1.0],
        None,
        None,
    ),
    (
        "infinity is the best there is",
        {"improvement": GAINS},
        [1.0, INF, INF, 5.0],
        3,
        "no_improvement",
    ),
    # -- warm-up and cooldown
    (
        "warm-up is never stale",
        {"improvement": GAINS, "warmup": 4},
        [9.0, 1.0, 1.0, 1.0, 1.0],
        None,
        None,
    ),
    (
        "after warm-up the count begins",
        {"improvement": GAINS, "warmup": 4},
        [9.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        5,
        "no_improvement",
    ),
    (
        "what warm-up reached is the reference",
        {"improvement": GAINS, "warmup": 1},
        [9.0, 8.0, 8.5],
        2,
        "no_improvement",
    ),
    (
        "a drop of the learning rate begins the count again",
        {"improvement": improve(patience=2, cooldown=1)},
        [{"val/gain": 1.0, "lr": lr} for lr in (1.0, 1.0, 0.1, 0.1, 0.1)],
        None,
        None,
    ),
    (
        "after the cooldown the count begins",
        {"improvement": improve(patience=2, cooldown=1)},
        [{"val/gain": 1.0, "lr": lr} for lr in (1.0, 1.0, 0.1, 0.1, 0.1, 0.1)],
        5,
        "no_improvement",
    ),
    (
        "a learning rate that falls all the time is no drop after the first",
        {"improvement": improve(patience=2, cooldown=1)},
        [{"val/gain": 1.0, "lr": 1.0 - 0.01 * number} for number in range(9)],
        4,
        "no_improvement",
    ),
    # -- divergence at evaluations
    ("a loss that is NaN", {"budget": SLACK}, of("val/loss", 1.0, NAN), 1, "diverged"),
    ("a training loss that is infinite", {"budget": SLACK}, of("train/loss", INF), 0, "diverged"),
    ("another metric that is infinite", {"budget": SLACK}, of("val/gain", INF, -INF), None, None),
    (
        "a metric at its bound",
        {"budget": SLACK, "divergence": {"metric": "val/loss", "above": 10.0}},
        of("val/loss", 10.0),
        None,
        None,
    ),
    (
        "a metric above",
        {"budget": SLACK, "divergence": {"metric": "val/loss", "above": 10.0}},
        of("val/loss", 10.5),
        0,
        "diverged",
    ),
    (
        "a metric below",
        {"budget": SLACK, "divergence": {"metric": "val/r2", "below": -1.0}},
        of("val/r2", -1.0, -1.5),
        1,
        "diverged",
    ),
    (
        "as many times the best as asked",
        {"budget": SLACK, "divergence": THRICE},
        of("val/loss", 5, 2, 6),
        None,
        None,
    ),
    (
        "more than that",
        {"budget": SLACK, "divergence": THRICE},
        of("val/loss", 5, 2, 6.5),
        2,
        "diverged",
    ),
    (
        "a share of the best where more is better",
        {"budget": SLACK, "divergence": {"metric": "val/gain", "ratio_to_best": 4.0}},
        [8.0, 2.0, 1.9],
        2,
        "diverged",
    ),
    (
        "a watched metric that is NaN",
        {"budget": SLACK, "divergence": {"metric": "val/gain", "below": -9.0}},
        [1.0, NAN],
        1,
        "diverged",
    ),
    (
        "one of two watches is enough",
        {
            "budget": SLACK,
            "divergence": [
                {"metric": "val/gain", "below": -9.0},
                {"metric": "val/loss", "above": 9.0},
            ],
        },
        [{"val/gain": 0.0, "val/loss": 9.5}],
        0,
        "diverged",
    ),
    # -- budget: an interval is 100 steps, one epoch, 3200 samples, 0.1 hours
    ("a budget of epochs", {"budget": {"epochs": 3}}, [1.0] * 5, 2, "budget"),
    (
        "a budget of steps is spent at the first evaluation past it",
        {"budget": {"steps": 201}},
        [1.0] * 5,
        2,
        "budget",
    ),
    ("a budget of steps at exactly it", {"budget": {"steps": 200}}, [1.0] * 5, 1, "budget"),
    ("a budget of samples", {"budget": {"samples": 6400}}, [1.0] * 5, 1, "budget"),
    ("a budget of hours", {"budget": {"hours": 0.25}}, [1.0] * 5, 2, "budget"),
    (
        "the tightest budget counts",
        {"budget": {"epochs": 4, "steps": 9000, "hours": 0.2}},
        [1.0] * 5,
        1,
        "budget",
    ),
    ("within the budget", {"budget": {"epochs": 6, "steps": 501}}, [1.0] * 5, None, None),
    # -- precedence at one evaluation: diverged, targets_reached, (stop_requested,) no_improvement,
    # budget
    (
        "diverged before targets",
        {"targets": ACCURATE},
        [{**both(1.0, 1.0), "val/loss": NAN}],
        0,
        "diverged",
    ),
    (
        "targets before patience",
        {"targets": {"val/gain": {"at_least": 1.0}}, "improvement": improve(0.5)},
        [0.75, 1.0],
        1,
        "targets_reached",
    ),
    (
        "targets before the budget",
        {"targets": ACCURATE, "budget": {"steps": 100}},
        [both(1.0, 1.0)],
        0,
        "targets_reached",
    ),
    (
        "patience before the budget",
        {"improvement": improve(), "budget": {"steps": 200}},
        [1.0, 1.0],
        1,
        "no_improvement",
    ),
]


def kept(controller: StopController) -> bytes:
    """What a checkpoint holds of a controller."""
    return exact_json.dumps([controller.state(), list(controller.history())])


def hand_over(first: StopController, second: StopController) -> Verdict | None:
    """As a checkpoint does it."""
    state, history = exact_json.loads(kept(first), "state")
    return second.restore(state, history)


def first_stop(verdicts: Sequence[Verdict]) -> tuple[int | None, str | None]:
    return next(
        ((index, verdict.reason) for index, verdict in enumerate(verdicts) if verdict.stops),
        (None, None),
    )


@pytest.mark.parametrize(
    ("stop", "rows", "index", "reason"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_a_history_is_judged_as_written(
    stop: dict[str, Any], rows: Sequence[Row], index: int | None, reason: str | None
) -> None:
    verdicts = judge(settings(**stop), rows)
    assert first_stop(verdicts) == (index, reason)
    for verdict in verdicts:
        assert verdict.stops == (verdict.reason is not None)
        assert verdict.detail.endswith(".")


@pytest.mark.parametrize(
    ("stop", "rows"), [case[1:3] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_history_is_judged_the_same_in_two_launches(
    stop: dict[str, Any], rows: Sequence[Row]
) -> None:
    whole = StopController(settings(**stop), INFOS)
    verdicts = [whole.judge(evaluation(number, row)) for number, row in enumerate(rows, 1)]
    for split in range(len(rows) + 1):
        first, second = (
            StopController(settings(**stop), INFOS),
            StopController(settings(**stop), INFOS),
        )
        for number, row in enumerate(rows[:split], 1):
            first.judge(evaluation(number, row))
        last = hand_over(first, second)
        # As text, in which NaN equals NaN
        assert str(last) == str(verdicts[split - 1] if split else None)
        later = [
            second.judge(evaluation(number, row))
            for number, row in enumerate(rows[split:], split + 1)
        ]
        assert str(later) == str(verdicts[split:])
        assert kept(second) == kept(whole)
        assert second.best() == whole.best()


# -- words and numbers


def test_the_sentence_for_no_improvement_has_the_numbers() -> None:
    verdicts = judge(
        settings(improvement=improve("5%", 2, "val/accuracy")), [0.95, 0.5, 0.952], "val/accuracy"
    )
    assert verdicts[0].detail == "val/accuracy 0.95 is the first value."
    assert verdicts[1].detail == (
        "val/accuracy lost 47.4 % on its best 0.95 (step 100) where 5 % was asked; 1 of 2 "
        "intervals without enough improvement."
    )
    assert verdicts[2].detail == (
        "val/accuracy gained 0.211 % on its best 0.95 (step 100) where 5 % was asked; 2 of 2 "
        "intervals without enough improvement."
    )


def test_a_reference_that_is_no_longer_the_best_is_not_called_so() -> None:
    verdicts = judge(settings(improvement=improve(0.125, 3)), [0.5, 0.5625, 0.59375])
    assert "on its best 0.5 (step 100)" in verdicts[1].detail
    assert "on its reference 0.5 (step 100)" in verdicts[2].detail


def test_other_sentences_have_the_numbers_too() -> None:
    assert judge(settings(targets=ACCURATE, hold=2), [both(0.951, 1.0)] * 2)[1].detail == (
        "train/accuracy 0.951 is at least 0.95 and val/accuracy 1 is at least 0.95, 2 of 2 "
        "evaluations in a row at step 200."
    )
    assert (
        judge(settings(targets=ACCURATE), [both(0.94, 1.0)])[0].detail
        == "train/accuracy 0.94 is below 0.95."
    )
    assert judge(
        settings(improvement=improve(0.5, 1, "val/energy")),
        [{"val/energy": 3.0}, {"val/energy": 2.75}],
    )[1].detail == (
        "val/energy fell by 0.25 from its best 3 (step 100) where 0.5 was asked; 1 of 1 intervals "
        "without enough improvement."
    )
    assert judge(settings(improvement=improve()), [1.0, 1.0])[1].detail == (
        "val/gain gained nothing on its best 1 (step 100); 1 of 1 intervals without enough "
        "improvement."
    )
    assert (
        judge(settings(budget={"epochs": 1}), [1.0])[0].detail
        == "the budget of 1 epoch is spent at step 100."
    )
    assert (
        judge(settings(budget={"hours": 0.1}), [1.0])[0].detail
        == "the budget of 0.1 hours is spent at step 100."
    )
    diverging = settings(budget=SLACK, divergence=THRICE)
    assert (
        judge(diverging, [{"val/loss": 2.0}, {"val/loss": 7.0}])[1].detail
        == "val/loss 7 is above 3 times its best 2 at step 200."
    )
    assert judge(diverging, [{"val/loss": NAN}])[0].detail == "val/loss is nan at step 100."


def test_numbers_that_differ_look_different() -> None:
    verdict = judge(settings(improvement=improve("5%")), [1.0, 1.049999])[1]
    assert "gained 4.9999 % on its best 1 (step 100) where 5 % was asked" in verdict.detail
    assert (
        "val/accuracy 0.949999 is below 0.95"
        in judge(settings(targets=ACCURATE), [both(1.0, 0.949999)])[0].detail
    )


def test_each_criterion_is_told_of() -> None:
    (verdict,) = judge(settings(improvement=improve("25%", 3)), [2.0])
    assert verdict.criteria[0]._asdict() == {
        "metric": "val/gain",
        "value": 2.0,
        "reference": None,
        "reference_step": None,
        "gain": None,
        "needed": None,
        "improved": True,
        "stale": 0,
        "spent": 0,
        "patience": 3,
        "unit": "intervals",
        "out": False,
        "raw": None,
        "error": None,
        "pairs": 0,
    }
    later = judge(
        settings(improvement=improve("25%", {"epochs": 3}, "val/energy")),
        [{"val/energy": 2.0}, {"val/energy": 1.75}],
    )[1].criteria[0]
    assert (later.value, later.reference, later.reference_step, later.gain, later.needed) == (
        1.75,
        2.0,
        100,
        0.25,
        0.5,
    )
    assert (later.improved, later.stale, later.spent, later.patience, later.unit, later.out) == (
        False,
        1,
        1,
        3,
        "epochs",
        False,
    )


@pytest.mark.parametrize("rows", [[0.0, 1e-9], [-1.0, 0.5], [1.0, -0.5]])
def test_a_share_without_meaning_warns_and_names_the_alternative(rows: list[float]) -> None:
    verdict = judge(settings(improvement=improve("5%", 9)), rows)[1]
    assert len(verdict.warnings) == 1
    assert "absolute gain" in verdict.warnings[0]
    assert verdict.criteria[0].needed == 0.0


@pytest.mark.parametrize("rows", [[0.5, 0.0], [-0.5, 0.0], [-0.5, -0.4]])
def test_a_share_with_meaning_does_not_warn(rows: list[float]) -> None:
    assert judge(settings(improvement=improve("5%", 9)), rows)[1].warnings == []


def test_nan_is_not_passed_over_in_silence() -> None:
    assert (
        "undefined (NaN) at step 200"
        in judge(settings(improvement=GAINS), [1.0, NAN])[1].warnings[0]
    )


def test_a_ratio_to_a_best_of_zero_warns() -> None:
    stop = settings(budget=SLACK, divergence={"metric": "val/energy", "ratio_to_best": 2.0})
    assert "means nothing" in judge(stop, [{"val/energy": 0.0}, {"val/energy": 5.0}])[1].warnings[0]


# -- requests


def test_a_request_stops_with_its_own_reason() -> None:
    controller = StopController(settings(budget=SLACK), INFOS)
    verdict = controller.judge(evaluation(1, 1.0), requested=True)
    assert (verdict.action, verdict.reason) == ("stop", "stop_requested")


@pytest.mark.parametrize(
    ("stop", "row", "reason"),
    [
        ({"budget": {"steps": 100}}, 1.0, "stop_requested"),
        ({"improvement": improve(patience={"samples": 1})}, NAN, "stop_requested"),
        ({"targets": {"val/gain": {"at_least": 1.0}}}, 1.0, "targets_reached"),
        ({"budget": SLACK}, {"val/loss": INF}, "diverged"),
    ],
)
def test_a_request_in_the_order_of_reasons(stop: dict[str, Any], row: Row, reason: str) -> None:
    assert (
        StopController(settings(**stop), INFOS).judge(evaluation(1, row), requested=True).reason
        == reason
    )


def test_a_request_is_not_judged_again() -> None:
    first = StopController(settings(budget=SLACK), INFOS)
    first.judge(evaluation(1, 1.0), requested=True)
    verdict = hand_over(first, StopController(settings(budget=SLACK), INFOS))
    assert verdict is not None
    assert not verdict.stops


# -- best


@pytest.mark.parametrize(
    ("metric", "values", "bests"),
    [
        ("val/gain", [1.0, 1.0, 1.5, 1.2], [True, False, True, False]),
        ("val/energy", [1.0, 1.0, 0.5, 0.7], [True, False, True, False]),
        ("val/gain", [NAN, -1.0, NAN, math.nextafter(-1.0, 0)], [False, True, False, True]),
        ("val/gain", [-INF, 0.0, INF, INF], [True, True, True, False]),
    ],
)
def test_any_strict_gain_is_a_new_best(metric: str, values: list[float], bests: list[bool]) -> None:
    verdicts = judge(settings(improvement=improve(1000.0, 99, metric)), values, metric)
    assert [verdict.new_best for verdict in verdicts] == bests


def test_best_and_patience_are_two_states() -> None:
    controller = StopController(settings(improvement=improve(0.5, 9)), INFOS)
    for number, value in enumerate([1.0, 1.25, 1.375], 1):
        verdict = controller.judge(evaluation(number, value))
    assert controller.best() == Best("val/gain", 1.375, 300)
    assert verdict.criteria[0].reference == 1.0
    assert (verdict.new_best, verdict.improved) == (True, False)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ({"improvement": [FALLS, GAINS]}, ("val/energy", "min")),
        ({"improvement": FALLS, "best": {"metric": "val/f1"}}, ("val/f1", "max")),
        (
            {"targets": {"accuracy": {"at_least": 0.5}, "val/loss": {"at_most": 0.5}}},
            ("val/accuracy", "max"),
        ),
        ({"budget": SLACK}, ("val/loss", "min")),
    ],
)
def test_what_the_best_is_best_in(stop: dict[str, Any], expected: tuple[str, str]) -> None:
    controller = StopController(settings(**stop), INFOS)
    assert controller.best_metric() == expected
    assert controller.best() is None


def test_without_a_metric_nothing_is_best() -> None:
    controller = StopController(settings(budget=SLACK), {"train/gain": MetricInfo("max")})
    assert controller.best_metric() is None
    assert not controller.judge(evaluation(1, 1.0)).new_best


# -- patience in epochs, where epochs and evaluations do not fall together


def at(step: int, size: int, num_samples: int, value: float = 1.0) -> Evaluation:
    return Evaluation(step, step * size / num_samples, step * size, 0.0, {"val/gain": value})


def test_patience_in_epochs_counts_completed_epochs_when_intervals_are_epochs() -> None:
    """Batches run on across the end of an epoch: epochs of 1000 samples end at 1020, 2010 and 3000
    samples with batches of 30.
    """
    controller = StopController(
        settings(every={"epochs": 1}, improvement=improve(patience={"epochs": 2})), INFOS
    )
    verdicts = [controller.judge(at(step, 30, 1000)) for step in (34, 67, 100)]
    assert first_stop(verdicts) == (2, "no_improvement")


def test_patience_in_epochs_is_exact_when_intervals_are_steps() -> None:
    """0.1 epochs an interval, in floats that do not add up: one epoch is ten intervals, never nine
    or eleven.
    """
    for start in range(1, 30):
        controller = StopController(
            settings(every={"steps": 1}, improvement=improve(patience={"epochs": 1})), INFOS
        )
        verdicts = [controller.judge(at(step, 100, 1000)) for step in range(start, start + 12)]
        assert first_stop(verdicts) == (10, "no_improvement")


# -- training losses at log points


def window(
    losses: Sequence[float],
    norms: Sequence[float] = (),
    skipped: Sequence[int] = (),
    first: int = 1,
    offenders: dict[int, int] | None = None,
) -> LoggedSteps:
    count = len(losses)
    return LoggedSteps(
        first,
        list(losses),
        list(norms) or [1.0] * count,
        [step in skipped for step in range(first, first + count)],
        offenders or {},
    )


def watcher(**stop: Any) -> StopController:
    return StopController(settings(budget=SLACK, **stop), INFOS)


def test_a_lost_loss_is_named_with_step_and_rank() -> None:
    verdict = watcher().watch(window([1.0, 1.0, NAN, NAN], first=15, offenders={17: 2, 18: 0}))
    assert (verdict.action, verdict.reason) == ("stop", "diverged")
    assert verdict.detail == "the training loss is nan at step 17 on rank 2."


def test_a_lost_gradient_norm_is_named_with_its_step() -> None:
    assert (
        watcher().watch(window([1.0, 1.0], [1.0, INF], first=8)).detail
        == "the gradient norm is inf at step 9."
    )


def test_finite_losses_go_on_and_an_empty_window_too() -> None:
    assert watcher().watch(window([1e30, -1e30])) == Verdict("go_on")
    assert watcher().watch(window([])) == Verdict("go_on")


def test_skipped_steps_are_divergence_only_so_many_in_a_row() -> None:
    controller = watcher(skipped_steps=3)
    losses, norms = [1.0, INF, INF, 1.0, INF, INF], [1.0, INF, INF, 1.0, INF, INF]
    assert not controller.watch(window(losses, norms, skipped=[2, 3, 5, 6])).stops
    assert not controller.watch(window([1.0], first=7)).stops
    assert not controller.watch(window([INF, INF], [INF, INF], skipped=[8, 9], first=8)).stops
    verdict = controller.watch(window([INF], [INF], skipped=[10], first=10))
    assert verdict.reason == "diverged"
    assert "3 steps in a row, up to step 10" in verdict.detail


def noisy(count: int) -> list[float]:
    """Median 1, median absolute deviation 0.25, so that a robust standard deviation is 0.37065."""
    return [0.5, 0.75, 1.0, 1.25, 1.5] * (count // 5)


def test_a_spike_is_measured_in_robust_standard_deviations() -> None:
    border = 1.0 + 4 * 1.4826 * 0.25
    for loss, spikes in ((border - 1e-6, False), (border + 1e-6, True)):
        verdict = watcher(spike={"z": 4.0, "steps": 20}).watch(window([*noisy(20), loss]))
        assert bool(verdict.warnings) == spikes
        assert not verdict.stops
    stopped = watcher(spike={"z": 4.0, "steps": 20, "action": "stop"}).watch(
        window([*noisy(20), 9.0, 1.0])
    )
    assert stopped.reason == "diverged"
    assert stopped.detail == (
        "the training loss 9 at step 21 is 21.58 robust standard deviations above the median 1 of "
        "the 20 steps before (limit: 4)."
    )


def test_spikes_are_not_judged_before_the_window_is_full_nor_downwards() -> None:
    assert watcher(spike={"z": 4.0, "steps": 20}).watch(window([*noisy(15), 99.0])).warnings == []
    assert watcher(spike={"z": 4.0, "steps": 20}).watch(window([*noisy(20), -99.0])).warnings == []
    assert (
        watcher(spike={"z": 4.0, "steps": 20}).watch(window([1.0] * 20 + [1.0009])).warnings == []
    )


def test_spikes_of_one_window_are_one_warning() -> None:
    verdict = watcher(spike={"z": 4.0, "steps": 20}).watch(window([*noisy(20), 9.0, 12.0, 8.0]))
    assert len(verdict.warnings) == 1
    assert "at step 22" in verdict.warnings[0]
    assert "3 spikes since step 1" in verdict.warnings[0]


def test_the_watch_goes_on_where_it_was() -> None:
    losses = [*noisy(20), 9.0, *noisy(10), 5.0]
    norms = [1.0] * len(losses)
    for split in range(len(losses)):
        first, second = (watcher(spike={"z": 4.0, "steps": 20, "action": "stop"}) for _ in range(2))
        first.watch(window(losses[:split], norms[:split]))
        hand_over(first, second)
        whole = watcher(spike={"z": 4.0, "steps": 20, "action": "stop"})
        whole.watch(window(losses[:split], norms[:split]))
        rest = window(losses[split:], norms[split:], first=split + 1)
        assert second.watch(rest) == whole.watch(rest)
    shorter = watcher(spike={"z": 4.0, "steps": 10})
    hand_over(first, shorter)
    assert shorter.watch(window([50.0])).warnings


# -- state


def test_the_present_settings_judge_the_recorded_history() -> None:
    patient = StopController(settings(improvement=improve(patience=9)), INFOS)
    for number, value in enumerate([1.0, 0.9, 0.8, 0.7], 1):
        patient.judge(evaluation(number, value))
    verdict = hand_over(patient, StopController(settings(improvement=improve(patience=3)), INFOS))
    assert verdict is not None
    assert verdict.reason == "no_improvement"
    again = StopController(settings(improvement=improve(patience=4)), INFOS)
    restored = hand_over(patient, again)
    assert restored is not None
    assert not restored.stops
    assert again.judge(evaluation(5, 0.6)).reason == "no_improvement"


def test_the_verdicts_that_were_given_stay_in_the_history() -> None:
    first = StopController(settings(improvement=improve(patience=1)), INFOS)
    for number, value in enumerate([1.0, 0.9], 1):
        first.judge(evaluation(number, value))
    second = StopController(settings(improvement=improve(patience=9)), INFOS)
    hand_over(first, second)
    assert kept(second) == kept(first)
    assert [row["verdict"]["reason"] for row in second.history()] == [None, "no_improvement"]


def test_a_metric_that_is_new_was_not_measured_before() -> None:
    first = StopController(settings(improvement=improve(patience=1)), INFOS)
    for number in range(1, 4):
        first.judge(evaluation(number, float(number)))
    second = StopController(settings(improvement=improve(patience=1, metric="val/f1")), INFOS)
    verdict = hand_over(first, second)
    assert verdict is not None
    assert not verdict.stops
    assert not second.judge(evaluation(4, 0.5, "val/f1")).stops


def test_an_empty_history_has_no_verdict() -> None:
    controller = StopController(settings(budget=SLACK), INFOS)
    assert controller.restore(controller.state(), controller.history()) is None


def test_the_latest_metrics_are_those_of_the_very_step() -> None:
    controller = StopController(settings(budget=SLACK), INFOS)
    assert controller.latest_metrics(100) == {}
    controller.judge(evaluation(1, 1.5))
    assert controller.latest_metrics(100) == {"val/gain": 1.5}
    assert controller.latest_metrics(101) == {}


def test_a_verdict_is_the_same_after_a_trip_through_json() -> None:
    for verdict in judge(
        settings(improvement=[improve("5%", 9), improve(0.5, {"epochs": 3})]),
        [0.1, INF, -INF, 1 / 3],
    ):
        assert (
            Verdict.from_json(json.loads(json.dumps(verdict.to_json(), allow_nan=False))) == verdict
        )
    (lost,) = judge(settings(improvement=improve()), [NAN])
    criterion = Verdict.from_json(json.loads(json.dumps(lost.to_json(), allow_nan=False))).criteria[
        0
    ]
    assert criterion.value is not None
    assert math.isnan(criterion.value)


# -- settings that do not fit the metrics


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (
            {"targets": {"acc": {"at_least": 0.9}}},
            ["no metric train/acc (acc without a split", "Did you mean accuracy?"],
        ),
        (
            {"targets": {"acuracy": {"at_least": 0.9}}},
            ["no metric train/acuracy", "Did you mean accuracy?", "val/energy"],
        ),
        (
            {"improvement": improve(metric="val/acc")},
            ["stop.improvement.metric: there is no metric val/acc", "Did you mean val/accuracy?"],
        ),
        (
            {"improvement": improve(metric="accuracy")},
            ["no metric accuracy", "Did you mean val/accuracy?"],
        ),
        ({"improvement": [GAINS, improve(metric="val/x")]}, ["stop.improvement[1].metric"]),
        ({"budget": SLACK, "best": {"metric": "f1"}}, ["stop.best.metric", "Did you mean val/f1?"]),
        (
            {"budget": SLACK, "best": {"metric": "val/f1", "mode": "min"}},
            ["stop.best.mode: min, but of val/f1 more is better"],
        ),
        (
            {"budget": SLACK, "divergence": {"metric": "loss", "above": 3.0}},
            ["stop.divergence.metric"],
        ),
        ({"targets": {"val/accuracy": {"at_least": 1.01}}}, ["never above 1", "not at least 1.01"]),
        (
            {"targets": {"accuracy": {"at_least": 95.0}}},
            ["stop.targets.accuracy.at_least: train/accuracy is never above 1"],
        ),
        ({"targets": {"val/loss": {"at_most": -0.1}}}, ["never below 0"]),
        ({"targets": {"val/accuracy": {"at_most": 0.1}}}, ["more is better", "at_least: 0.1"]),
        ({"targets": {"val/loss": {"at_least": 0.1}}}, ["less is better", "at_most: 0.1"]),
        (
            {"improvement": improve(5, metric="val/accuracy")},
            ["stop.improvement.at_least", "5%", "0.05"],
        ),
        ({"improvement": improve(1.5, metric="val/r2")}, ["bounded by 1", "1.5%", "0.015"]),
        (
            {"improvement": improve(mode="min")},
            ["stop.improvement.mode: min, but of val/gain more is better"],
        ),
        (
            {"budget": SLACK, "divergence": {"metric": "val/accuracy", "above": 0.5}},
            ["more is better"],
        ),
        ({"budget": SLACK, "divergence": {"metric": "val/loss", "below": 0.5}}, ["less is better"]),
        (
            {"budget": SLACK, "divergence": {"metric": "val/accuracy", "below": 0.0}},
            ["never below 0"],
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(stop: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        StopController(settings(**stop), INFOS)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    "stop",
    [
        {"targets": {"accuracy": {"at_least": 1.0}, "val/loss": {"at_most": 0.0}}},
        {"improvement": improve(1.0, metric="val/accuracy", mode="max")},
        {"improvement": improve("500%", metric="val/accuracy")},
        {"improvement": improve(5.0, metric="val/loss")},
        {"budget": SLACK, "divergence": {"metric": "val/accuracy", "below": 0.1}},
    ],
)
def test_settings_just_within_are_taken(stop: dict[str, Any]) -> None:
    StopController(settings(**stop), INFOS)


def test_all_mistakes_are_told_at_once() -> None:
    stop = settings(
        targets={"val/x": {"at_least": 1.0}},
        improvement=improve(5, metric="val/accuracy", mode="min"),
        best={"metric": "y"},
    )
    with pytest.raises(ConfigError, match="4 problems") as refused:
        StopController(stop, INFOS)
    assert len(str(refused.value).splitlines()) == 5


def test_a_target_on_two_splits_needs_both() -> None:
    only_train = {"train/accuracy": MetricInfo("max", 0.0, 1.0)}
    with pytest.raises(
        ConfigError,
        match=(
            r"no metric val/accuracy \(accuracy without a split means train/accuracy and "
            r"val/accuracy\)\. Write train/acc"
        ),
    ):
        StopController(settings(targets=ACCURATE), only_train)


def test_a_name_that_a_metric_has_means_that_metric() -> None:
    controller = StopController(
        settings(targets={"accuracy": {"at_least": 0.5}}), {"accuracy": MetricInfo("max")}
    )
    assert controller.judge(evaluation(1, 0.5, "accuracy")).reason == "targets_reached"


def test_a_cooldown_needs_the_learning_rate() -> None:
    with pytest.raises(ConfigError, match="cooldown"):
        judge(settings(improvement=improve(cooldown=2)), [1.0])


def test_large_numbers_are_written_in_full() -> None:
    stop = settings(improvement=improve(0.5, {"steps": 50_000}))
    controller = StopController(stop, INFOS)
    for step in (10_000, 32_345):
        verdict = controller.judge(Evaluation(step, 0.0, step, 0.0, {"val/gain": 123_456.5}))
    assert verdict.detail == (
        "val/gain gained nothing on its best 123,456 (step 10,000) where 0.5 was asked; 22,345 of "
        "50,000 steps without enough improvement."
    )


def test_an_extra_evaluation_leaves_no_trace_in_patience() -> None:
    def one() -> StopController:
        stop = settings(
            improvement={"metric": "val/gain", "at_least": 0.1, "patience": 2},
            budget={"steps": 900},
        )
        return StopController(stop, INFOS)

    def judged(controller: StopController, number: int, row: float, extra: bool = False) -> Verdict:
        return controller.judge(dataclasses.replace(evaluation(number, row), extra=extra))

    plain, cut = one(), one()
    for controller in (plain, cut):
        judged(controller, 1, 1.0)
        judged(controller, 2, 1.0)
    # As good as never judged, though it would have been the second stale one, or the new best
    assert not judged(cut, 3, 1.0, extra=True).stops
    assert judged(cut, 4, 9.0, extra=True).new_best
    refolded = one()
    hand_over(cut, refolded)
    ends = [judged(controller, 5, 1.0) for controller in (plain, cut, refolded)]
    assert [end.reason for end in ends] == ["no_improvement"] * 3
    assert ends[0].detail == ends[1].detail == ends[2].detail
    assert kept(refolded) == kept(cut)


def test_the_budget_ends_a_run_at_an_extra_evaluation() -> None:
    controller = StopController(settings(budget={"steps": 50}), INFOS)
    ending = dataclasses.replace(evaluation(1, 1.0), extra=True)
    assert controller.judge(ending).reason == "budget"
