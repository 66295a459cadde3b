"""How long to train between two saves."""

import math

import pytest

from harness.checkpoint.save_period import Failures, best_period_s, choose_save_period


def waste(period_s: float, cost_s: float, mean_time_s: float) -> float:
    """Daly's complete model, equation 20 without restarts: time taken, of the time that is useful,
    by segments of `period_s` with a save each, where failures come at random.
    """
    segment = (period_s + cost_s) / mean_time_s
    return mean_time_s * math.expm1(segment) / period_s


@pytest.mark.parametrize(
    ("cost_s", "mean_time_s"),
    [(0.001, 60.0), (0.05, 600.0), (10.0, 3600.0), (300.0, 86400.0), (60.0, 300.0), (1.0, 1e7)],
)
def test_no_other_period_loses_less(cost_s: float, mean_time_s: float) -> None:
    young_s = math.sqrt(2 * cost_s * mean_time_s)
    grid = [young_s * 1.002**power for power in range(-1500, 1500)]
    best = min(grid, key=lambda one: waste(one, cost_s, mean_time_s))
    found = best_period_s(cost_s, mean_time_s)
    assert found == pytest.approx(best, rel=0.02)
    assert found == pytest.approx(young_s, rel=0.5)


def test_where_saving_takes_longer_than_the_machine_lives_it_is_done_once_a_life() -> None:
    assert best_period_s(50.0, 20.0) == 20.0


def test_failures_that_were_given_or_seen() -> None:
    assert Failures(100.0, 3, per_day=24.0).mean_time_s == 3600.0
    assert Failures(7000.0, 3).mean_time_s == 2000.0
    assert Failures(1000.0, 0).mean_time_s == 2000.0  # none yet


def test_the_period_comes_with_its_reason() -> None:
    often = Failures(3600.0, 9, per_day=None)
    chosen = choose_save_period(0.05, 0.1, Failures(0.0, 0, per_day=24), 0.01)
    assert chosen.seconds == best_period_s(0.05, 3600.0)
    assert chosen.reason == (
        "the optimum for a save that costs 50 ms, and a failure every 1 h "
        "(checkpoint.failures_per_day: 24)"
    )
    bound = choose_save_period(5.0, 20.0, often, 0.02)
    assert bound.seconds == 250.0
    assert bound.reason.startswith("so that saves cost 0.02 of the time (checkpoint.max_overhead)")
    assert bound.reason.endswith("a failure every 6.32 min (9 seen in 1 h)")
    slow = choose_save_period(0.01, 30.0, often, 0.01)
    assert slow.seconds == 60.0
    assert slow.reason.startswith("twice what a save takes until it is durable (30 s); the optimum")
