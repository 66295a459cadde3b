"""Learning rates: closed forms of steps and drops, the same after a resume."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from harness.errors import ConfigError
from harness.schedules import ByStep, Plateau, WarmupCosine


def optimizer(*rates: float) -> SGD:
    return SGD([{"params": [torch.zeros(1)], "lr": rate} for rate in rates or (0.5,)])


def rate(of: SGD) -> float:
    return float(of.param_groups[0]["lr"])


def plateau(of: SGD, patience: int = 2, **more: float | str) -> Plateau:
    # Of several types
    return Plateau(of, "val/loss", mode="min", patience=patience, **more)  # type: ignore[arg-type] # see above


def observe(schedule: Plateau, *values: float) -> None:
    for value in values:
        schedule.observe({"val/loss": value})


def test_warm_up_and_cosine_meet_their_ends() -> None:
    rates = []
    one = optimizer(0.5)
    schedule = WarmupCosine(one, total_steps=8, warmup_steps=4, floor=0.1)
    for _ in range(10):
        rates.append(rate(one))
        schedule.step()
    assert rates[:5] == [0.125, 0.25, 0.375, 0.5, 0.5]
    assert rates[6] == pytest.approx(0.5 * 0.55)
    assert rates[8:] == [0.05, 0.05]


def test_each_group_keeps_its_share() -> None:
    two = optimizer(0.5, 0.25)
    schedule = WarmupCosine(two, total_steps=10)
    for _ in range(5):
        schedule.step()
    assert schedule.get_last_lr() == [group["lr"] for group in two.param_groups]
    assert schedule.get_last_lr() == pytest.approx([0.25, 0.125])


def test_a_plateau_drops_after_as_many_stale_evaluations_as_patience() -> None:
    one = optimizer()
    schedule = plateau(one)
    observe(schedule, 1.0, 1.0)
    assert rate(one) == 0.5
    observe(schedule, 1.0)
    assert rate(one) == 0.05
    observe(schedule, 0.5, 0.6)
    assert rate(one) == 0.05
    observe(schedule, 0.6)
    assert rate(one) == 0.5 * 0.1**2


def test_a_plateau_asks_for_the_gain_that_was_set() -> None:
    for at_least, value, drops in (
        ("25%", 0.75, False),
        ("25%", math.nextafter(0.75, 1), True),
        (0.5, 0.5, False),
        (0.5, 0.51, True),
    ):
        one = optimizer()
        observe(plateau(one, patience=1, at_least=at_least), 1.0, value)
        assert (rate(one) < 0.5) == drops


def test_nan_is_no_improvement_of_a_plateau() -> None:
    one = optimizer()
    observe(plateau(one), math.nan, 1.0, math.nan, math.nan)
    assert rate(one) == 0.05


def test_a_cooldown_is_not_counted() -> None:
    one = optimizer()
    schedule = plateau(one, patience=1, cooldown=2)
    observe(schedule, 1.0, 1.0, 1.0, 1.0)
    assert rate(one) == 0.05
    observe(schedule, 1.0)
    assert rate(one) == pytest.approx(0.005)


def test_a_floor_is_never_passed_and_warm_up_comes_first() -> None:
    one = optimizer()
    schedule = plateau(one, patience=1, floor=0.25, warmup_steps=2)
    assert rate(one) == 0.25
    schedule.step()
    assert rate(one) == 0.5
    observe(schedule, 1.0, 1.0, 1.0, 1.0)
    assert rate(one) == 0.125


@given(st.lists(st.integers(0, 8).map(float), max_size=40), st.integers(1, 4))
def test_a_plateau_is_torchs_with_one_evaluation_less_of_patience(
    values: list[float], patience: int
) -> None:
    ours, theirs = optimizer(), optimizer()
    schedule = plateau(ours, patience)
    reference = ReduceLROnPlateau(
        theirs,
        mode="min",
        factor=0.1,
        patience=patience - 1,
        threshold=0.0,
        threshold_mode="abs",
        eps=0.0,
    )
    for value in values:
        observe(schedule, value)
        reference.step(value)
        assert rate(ours) == pytest.approx(rate(theirs), rel=1e-12)


BUILD: list[Callable[[SGD], ByStep]] = [
    lambda one: WarmupCosine(one, 50, 5),
    lambda one: plateau(one, warmup_steps=7, cooldown=1),
]


@given(st.sampled_from(BUILD), st.lists(st.floats(0, 1), max_size=30), st.integers(0, 30))
def test_a_resumed_schedule_has_the_same_rates(
    build: Callable[[SGD], ByStep], values: list[float], split: int
) -> None:
    whole, first, second = optimizer(), optimizer(), optimizer()
    schedules = [build(whole), build(first)]
    for index, value in enumerate(values):
        if index == split:
            schedules[1], state = build(second), schedules[1].state_dict()
            schedules[1].load_state_dict(json.loads(json.dumps(state)))
            first = second
        for schedule in schedules:
            schedule.step()
            if isinstance(schedule, Plateau):
                observe(schedule, value)
        assert rate(whole) == rate(first)


def test_a_rate_that_is_a_tensor_is_changed_in_place() -> None:
    tensor = torch.tensor(0.5, dtype=torch.float64)
    one = SGD([torch.zeros(1)], lr=tensor, foreach=True)
    observe(plateau(one, patience=1), 1.0, 1.0)
    assert isinstance(one.param_groups[0]["lr"], torch.Tensor)
    assert rate(one) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda one: WarmupCosine(one, 10, 10), "warmup_steps"),
        (lambda one: WarmupCosine(one, 10, -1), "warmup_steps"),
        (lambda one: WarmupCosine(one, 10, floor=1.5), "floor"),
        (lambda one: plateau(one, patience=0), "patience"),
        (lambda one: plateau(one, factor=1.0), "factor"),
        (lambda one: plateau(one, floor=1.0), "floor"),
        (lambda one: plateau(one, cooldown=-1), "cooldown"),
        (lambda one: plateau(one, at_least="much"), "neither a gain like 0.01 nor a share like 1%"),
        # That is the test
        (lambda one: Plateau(one, "val/loss", "down", 1), "neither max nor min"),  # type: ignore[arg-type] # see above
        (
            lambda one: plateau(one).observe({"val/f1": 1.0}),
            "there is no metric val/loss. There are val/f1",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(build: Callable[[SGD], object], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(optimizer())
    assert words in str(refused.value)
