"""The `stop:` section: what it takes, what it refuses, and that it is written as it is read."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.stopping.budget import Budget, Every
from harness.stopping.improvement import Improvement
from harness.stopping.patience import Patience
from harness.stopping.settings import StopSettings

GOOD: list[dict[str, Any]] = [
    {"targets": {"accuracy": {"at_least": 0.95}}},
    {
        "targets": {"accuracy": {"at_least": 1}, "val/loss": {"at_most": 0.2}},
        "targets_need": "any",
        "hold": 3,
    },
    {"improvement": {"metric": "val/accuracy", "at_least": "5%", "patience": 5}},
    {
        "improvement": {
            "metric": "val/accuracy",
            "at_least": 0.05,
            "from": "previous",
            "patience": {"epochs": 4},
            "cooldown": 2,
        },
        "warmup": 3,
    },
    {
        "improvement": [
            {"metric": "val/loss", "patience": 1},
            {"metric": "val/f1", "patience": {"samples": 9}},
        ],
        "improvement_needs": "any",
    },
    {
        "every": {"steps": 50},
        "budget": {"hours": 0.5, "steps": 90},
        "divergence": {"metric": "val/loss", "above": 10},
        "spike": "stop",
    },
    {
        "budget": {"epochs": 1},
        "divergence": [{"metric": "val/loss", "ratio_to_best": 3}],
        "spike": {"z": 6.5, "steps": 40, "action": "warn"},
    },
    {
        "budget": {"samples": 1},
        "train_metrics": {"samples": 5000},
        "best": {"metric": "val/f1", "mode": "max"},
        "skipped_steps": 9,
    },
    {
        "budget": {"samples": 1},
        "train_metrics": "full",
        "targets": None,
        "improvement": None,
        "divergence": None,
        "spike": None,
        "best": None,
    },
]


@pytest.mark.parametrize("given_settings", GOOD)
def test_what_is_written_is_read_as_the_same(given_settings: dict[str, Any]) -> None:
    settings = StopSettings.model_validate(given_settings)
    assert StopSettings.model_validate(settings.model_dump()) == settings
    assert StopSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_one_alone_is_written_as_a_mapping() -> None:
    written = StopSettings.model_validate(
        {"improvement": {"metric": "val/f1", "at_least": "5%", "patience": 5}}
    ).model_dump()
    assert written["improvement"] == {
        "metric": "val/f1",
        "at_least": "5%",
        "from": "best",
        "smooth": None,
        "patience": 5,
        "cooldown": 0,
        "mode": None,
    }
    in_epochs = Improvement(metric="val/f1", patience=Patience(epochs=5)).model_dump()
    assert in_epochs["patience"] == {"epochs": 5}


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "nothing ends the training"),
    ({"divergence": {"metric": "val/loss", "above": 1.0}}, "nothing ends the training"),
    ({"budget": {}}, "give at least one of epochs, steps, samples, hours"),
    ({"budget": {"epochs": 0}}, "budget.epochs"),
    ({"budget": {"hours": 0}}, "budget.hours"),
    ({"budget": {"hours": float("nan")}}, "budget.hours"),
    ({"budget": {"steps": 1.5}}, "budget.steps"),
    ({"budget": {"steps": True}}, "budget.steps"),
    ({"every": {}, "budget": {"steps": 1}}, "exactly one of steps, epochs (none given)"),
    ({"every": {"steps": 1, "epochs": 1}, "budget": {"steps": 1}}, "(steps and epochs given)"),
    ({"every": {"steps": 0}, "budget": {"steps": 1}}, "every.steps"),
    ({"targets": {"accuracy": {}}}, "exactly one of at_least, at_most"),
    (
        {"targets": {"accuracy": {"at_least": 0.1, "at_most": 0.2}}},
        "exactly one of at_least, at_most",
    ),
    ({"targets": {"accuracy": {"at_least": float("nan")}}}, "at_least"),
    ({"targets": {"accuracy": {"at_least": float("inf")}}}, "at_least"),
    ({"targets": {"accuracy": {"at_least": "95%"}}}, "at_least"),
    ({"targets": {"accuracy": 0.95}}, "targets.accuracy"),
    ({"targets": {"accuracy": {"at_least": 0.9}}, "hold": 0}, "hold"),
    ({"budget": {"steps": 1}, "hold": 2}, "hold has no effect without targets"),
    ({"budget": {"steps": 1}, "targets_need": "any"}, "targets_need has no effect"),
    ({"budget": {"steps": 1}, "warmup": 1}, "warmup has no effect"),
    ({"budget": {"steps": 1}, "improvement_needs": "any"}, "improvement_needs has no effect"),
    ({"improvement": {"metric": "val/f1"}}, "patience"),
    ({"improvement": {"patience": 1}}, "metric"),
    ({"improvement": {"metric": "val/f1", "patience": -1}}, "patience"),
    ({"improvement": {"metric": "val/f1", "patience": 0}}, "patience"),
    ({"improvement": {"metric": "val/f1", "patience": 1.5}}, "patience"),
    (
        {"improvement": {"metric": "val/f1", "patience": {"epochs": 1, "steps": 5}}},
        "exactly one of intervals, epochs, steps, samples",
    ),
    (
        {"improvement": {"metric": "val/f1", "patience": {}}},
        "exactly one of intervals, epochs, steps, samples",
    ),
    (
        {"improvement": {"metric": "val/f1", "patience": 1, "at_least": -0.1}},
        "none can be negative",
    ),
    (
        {"improvement": {"metric": "val/f1", "patience": 1, "at_least": "-5%"}},
        "neither a gain like 0.05 nor a share like 5%",
    ),
    (
        {"improvement": {"metric": "val/f1", "patience": 1, "at_least": "0.05"}},
        "neither a gain like 0.05 nor a share like 5%",
    ),
    (
        {"improvement": {"metric": "val/f1", "patience": 1, "at_least": float("inf")}},
        "neither a gain",
    ),
    ({"improvement": {"metric": "val/f1", "patience": 1, "at_least": True}}, "neither a gain"),
    ({"improvement": {"metric": "val/f1", "patience": 1, "from": "last"}}, "from"),
    ({"improvement": {"metric": "val/f1", "patience": 1, "mode": "higher"}}, "mode"),
    ({"improvement": {"metric": "val/f1", "patience": 1, "patiance": 1}}, "patiance"),
    (
        {"improvement": {"metric": "val/f1", "patience": {"epochs": 3}}, "every": {"epochs": 2}},
        "3 epochs are not a whole number of intervals of 2 epochs",
    ),
    (
        {"improvement": {"metric": "val/f1", "patience": {"steps": 25}}, "every": {"steps": 10}},
        "improvement.patience: 25 steps",
    ),
    (
        {"divergence": {"metric": "val/loss"}, "budget": {"steps": 1}},
        "exactly one of above, below, ratio_to_best",
    ),
    (
        {"divergence": {"metric": "val/loss", "ratio_to_best": 1.0}, "budget": {"steps": 1}},
        "ratio_to_best",
    ),
    ({"spike": "ignore", "budget": {"steps": 1}}, "spike.action"),
    ({"spike": {"steps": 9}, "budget": {"steps": 1}}, "spike.steps"),
    ({"train_metrics": {"samples": 0}, "budget": {"steps": 1}}, "train_metrics"),
    ({"train_metrics": "epoch", "budget": {"steps": 1}}, "train_metrics"),
    ({"bugdet": {"steps": 1}, "budget": {"steps": 1}}, "bugdet"),
]


@pytest.mark.parametrize(("given_settings", "words"), BAD)
def test_what_makes_no_sense_is_refused(given_settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        StopSettings.model_validate(given_settings)
    assert words in str(refused.value)


def test_all_that_has_no_effect_is_told_at_once() -> None:
    with pytest.raises(ValidationError, match=r"nothing ends.*hold has.*warmup has"):
        StopSettings.model_validate({"hold": 2, "warmup": 2})


def test_a_patience_that_is_a_multiple_is_taken() -> None:
    StopSettings.model_validate(
        {"every": {"epochs": 2}, "improvement": {"metric": "val/f1", "patience": {"epochs": 4}}}
    )
    StopSettings.model_validate(
        {"every": {"epochs": 2}, "improvement": {"metric": "val/f1", "patience": {"steps": 25}}}
    )


@pytest.mark.parametrize(
    ("at_least", "absolute", "share"),
    [
        ("5%", 0.0, 0.05),
        (" 0.5 % ", 0.0, 0.005),
        ("100%", 0.0, 1.0),
        (".5%", 0.0, 0.005),
        (0.05, 0.05, 0.0),
        (5, 5.0, 0.0),
        (0, 0.0, 0.0),
        ("0%", 0.0, 0.0),
    ],
)
def test_a_gain_is_absolute_or_a_share(
    at_least: float | str, absolute: float, share: float
) -> None:
    improvement = Improvement.model_validate(
        {"metric": "val/f1", "patience": 1, "at_least": at_least}
    )
    assert (improvement.absolute, improvement.share) == (absolute, share)


@given(st.sampled_from(["intervals", "epochs", "steps", "samples"]), st.integers(1, 10**12))
def test_patience_keeps_its_unit_and_number(unit: str, count: int) -> None:
    patience = Patience.model_validate({unit: count})
    assert (patience.unit, patience.count) == (unit, count)


def test_the_parts_that_others_use() -> None:
    assert Every(steps=5).epochs is None
    assert Budget(epochs=2, hours=1.5).non_null("epochs", "steps", "samples", "hours") == [
        "epochs",
        "hours",
    ]
    assert StopSettings(budget=Budget(steps=1)).every == Every(epochs=1)
