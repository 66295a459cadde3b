"""What is left of a budget."""

from harness.stopping.budget import Budget, time_left_s


def test_the_limit_that_comes_first_counts() -> None:
    hours = Budget(steps=100_000, hours=0.015)
    assert time_left_s(hours, 100_000, 28, 0.3, 10.0) == 0.015 * 3600 - 10.0
    assert time_left_s(hours, 30, 28, 0.3, 10.0) == 2 * 0.3
    assert time_left_s(Budget(hours=1.0), None, 28, 0.3, 10.0) == 3590.0
    assert time_left_s(Budget(epochs=3), 120, 20, 0.5, 10.0) == 50.0


def test_nothing_is_left_of_what_is_spent_and_without_a_budget_nothing_is_known() -> None:
    assert time_left_s(Budget(hours=1.0), None, 5, 0.1, 4000.0) == 0.0
    assert time_left_s(None, None, 5, 0.1, 10.0) is None
    assert time_left_s(Budget(steps=10), 10, 12, 0.1, 10.0) == 0.0
