"""When what happens."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from harness.data.sampling import Sampling
from harness.stopping.budget import Budget, Every
from harness.training.agenda import Agenda, Request


def agenda(
    num_samples: int = 100,
    size: int = 30,
    evaluate: Every | None = None,
    save: Every | None = None,
    budget: Budget | None = None,
) -> Agenda:
    return Agenda(
        Sampling(num_samples, size, size, seed=0),
        Every(steps=5),
        evaluate or Every(epochs=1),
        save,
        budget,
    )


def test_an_epoch_ends_on_the_first_step_that_completes_it() -> None:
    ends = [step for step in range(1, 21) if agenda().due(step, Request.NONE).evaluate]
    assert ends == [4, 7, 10, 14, 17, 20]  # 120, 210, 300, 420, 510, 600 samples


def test_a_batch_larger_than_the_split_ends_an_epoch_at_each_step() -> None:
    assert all(
        agenda(num_samples=20, size=30).due(step, Request.NONE).evaluate for step in range(1, 9)
    )


def test_saves_follow_evaluations_unless_they_have_their_own_interval() -> None:
    assert [step for step in range(1, 11) if agenda().due(step, Request.NONE).save] == [4, 7, 10]
    assert [
        step for step in range(1, 11) if agenda(save=Every(steps=3)).due(step, Request.NONE).save
    ] == [3, 6, 9]


def test_where_the_clock_asks_for_saves_neither_steps_nor_evaluations_do() -> None:
    by_clock = replace(agenda(budget=Budget(steps=9)), saves_on_request=True)
    assert [step for step in range(1, 10) if by_clock.due(step, Request.NONE).save] == [9]
    due = by_clock.due(3, Request.SAVE)
    assert (due.save, due.read, due.evaluate, due.log) == (True, True, False, False)


stretches = st.builds(Every, steps=st.integers(1, 30)) | st.builds(Every, epochs=st.integers(1, 4))


@given(st.integers(1, 99), st.integers(1, 99), stretches, stretches, st.integers(1, 60))
def test_nothing_is_due_before_the_next_step_at_which_something_is(
    num_samples: int, size: int, evaluate: Every, save: Every, last: int
) -> None:
    asked = agenda(num_samples, size, evaluate, save, Budget(steps=last))
    falls = [
        any(asked.falls(every, step) for every in (asked.log_every, evaluate, save)) or step >= last
        for step in range(1, 70)
    ]
    for step in range(1, 40):
        assert asked.next_due(step) == step + falls[step - 1 :].index(True)
    for step in [*range(1, 70), *range(69, 0, -1)]:  # also where it is asked about the past
        due = asked.due(step, Request.NONE)
        assert (due.log or due.evaluate or due.save) == falls[step - 1]


def test_the_last_step_of_the_budget_is_evaluated_and_saved_wherever_it_falls() -> None:
    due = agenda(save=Every(steps=100), budget=Budget(steps=5)).due(5, Request.NONE)
    assert due.evaluate
    assert due.save


def test_the_tightest_budget_counts() -> None:
    assert agenda(budget=Budget(steps=50, epochs=2)).last_step() == 7
    assert agenda(budget=Budget(steps=5, epochs=2)).last_step() == 5
    assert agenda(budget=Budget(samples=61)).last_step() == 3
    assert agenda(budget=Budget(hours=1.0)).last_step() is None
    assert agenda().last_step() is None


def test_an_interruption_saves_without_evaluating() -> None:
    due = agenda().due(3, Request.INTERRUPTED)
    assert due.save
    assert due.read
    assert not due.evaluate


def test_an_evaluation_that_is_owed_is_all_that_is_done_again() -> None:
    due = agenda(save=Every(steps=3)).due(5, Request.NONE, owed=True)
    assert due.evaluate
    assert not due.log
    assert not due.read
    assert not due.save
    assert agenda(save=Every(steps=5)).due(5, Request.NONE, owed=True).save


def test_a_request_to_stop_evaluates_and_saves_at_once() -> None:
    for call in (Request.STOP_REQUESTED, Request.TIME_UP):
        due = agenda().due(3, call)
        assert due.evaluate
        assert due.save


@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 5))
def test_as_many_evaluations_as_stretches_of_epochs_were_completed(
    num_samples: int, size: int, epochs: int
) -> None:
    calendar = agenda(num_samples, size, evaluate=Every(epochs=epochs))
    steps = 50
    fallen = sum(calendar.due(step, Request.NONE).evaluate for step in range(1, steps + 1))
    completed = steps * size // num_samples // epochs
    assert fallen == completed if size <= num_samples * epochs else fallen == steps
