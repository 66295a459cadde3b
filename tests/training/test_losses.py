"""The losses between two log points."""

import json
import math
import random
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics.exact import ExactSum, exact_sum
from harness.ranks.ranks import Ranks
from harness.stopping.verdict import LoggedSteps
from harness.training.losses import LossWindow, StepLoss, mean_loss
from tests.pool import on_ranks

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
STEPS, SLOTS, ITEMS = 5, 6, 48


def fill(
    window: LossWindow,
    losses: Sequence[Sequence[float]],
    items: int = ITEMS,
    skipped: Sequence[int] = (),
) -> None:
    for step, sums in enumerate(losses):
        window.add(
            [torch.tensor(value) for value in sums],
            torch.tensor(items),
            torch.tensor(step + 0.5),
            step in skipped,
        )


def losses_of_steps() -> list[list[float]]:
    draw = random.Random(3)
    return [
        [draw.uniform(-1, 1) * 10 ** draw.randint(-6, 6) for _ in range(SLOTS)]
        for _ in range(STEPS)
    ]


def read_on_ranks(bad: dict[tuple[int, int], float]) -> tuple[LoggedSteps, float, str]:
    """Each rank brings its share of the slots; what all of them read, the interval's mean, and the
    state that a checkpoint would hold.
    """
    ranks = Ranks.join()
    share = SLOTS // ranks.size
    losses = losses_of_steps()
    for (step, slot), value in bad.items():
        losses[step][slot] = value
    window = LossWindow(ranks)
    fill(window, [sums[ranks.rank * share : (ranks.rank + 1) * share] for sums in losses])
    read = window.read(step=STEPS + 10)
    state = json.dumps(window.state())
    return read, window.take_interval(), state


# -- exact sums


@given(st.lists(FLOATS, max_size=40))
def test_a_running_sum_is_rounded_once(values: list[float]) -> None:
    running = ExactSum()
    for value in values:
        running.add(value)
    assert running.value() == float(sum(map(Fraction, values), Fraction()))


@given(st.lists(FLOATS, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_its_value_does_not_depend_on_the_order_or_on_a_pause_in_between(
    values: list[float], order: random.Random
) -> None:
    one = ExactSum()
    for value in values:
        one.add(value)
    shuffled = list(values)
    order.shuffle(shuffled)
    other = ExactSum()
    for value in shuffled:
        other = ExactSum(json.loads(json.dumps(other.partials)))  # a checkpoint between any two
        other.add(value)
    assert other.value() == one.value() == exact_sum(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_not_finite(bad: float) -> None:
    running = ExactSum()
    for value in (1.0, bad, 2.0):
        running.add(value)
    assert not math.isfinite(running.value())
    assert not math.isfinite(exact_sum([1.0, bad, 2.0]))


def test_infinities_of_both_signs_are_no_number_and_no_error() -> None:
    assert math.isnan(exact_sum([math.inf, -math.inf]))


# -- one rank


def test_each_step_is_the_mean_over_its_items_and_the_mean_of_means_is_by_items() -> None:
    window = LossWindow(Ranks())
    fill(window, [[6.0, 2.0], [1.0, 1.0]], items=4)
    read = window.read(step=12)
    assert (read.first_step, list(read.losses), list(read.grad_norms)) == (
        11,
        [2.0, 0.5],
        [0.5, 1.5],
    )
    fill(window, [[9.0]], items=1)
    window.read(step=13)
    assert mean_loss(window.take_pending()) == 19 / 9
    assert window.take_interval() == 19 / 9


def test_taking_for_the_log_leaves_the_interval_alone_and_the_reverse() -> None:
    window = LossWindow(Ranks())
    fill(window, [[4.0]], items=2)
    window.read(step=1)
    assert [one.loss_sum for one in window.take_pending()] == [4.0]
    fill(window, [[8.0]], items=2)
    window.read(step=2)
    assert window.take_interval() == 3.0
    assert [one.loss_sum for one in window.take_pending()] == [8.0]
    assert window.take_pending() == []


def test_skipped_steps_are_told() -> None:
    window = LossWindow(Ranks())
    fill(window, [[1.0], [2.0], [3.0]], skipped=[1])
    assert list(window.read(step=3).skipped) == [False, True, False]


def test_nothing_added_is_nothing_read() -> None:
    window = LossWindow(Ranks())
    read = window.read(step=7)
    assert (read.first_step, list(read.losses)) == (8, [])
    assert window.take_interval() is None
    assert math.isnan(mean_loss([]))


def test_a_batch_whose_targets_are_all_ignored_has_no_loss_and_adds_none() -> None:
    window = LossWindow(Ranks())
    fill(window, [[0.0, 0.0]], items=0)
    fill(window, [[6.0, 0.0]], items=3)
    read = window.read(step=2)
    assert math.isnan(read.losses[0])
    assert window.take_interval() == 2.0


@given(st.lists(st.lists(FLOATS, min_size=2, max_size=2), min_size=2, max_size=8), st.data())
def test_a_checkpoint_between_any_two_steps_changes_no_bit(
    losses: list[list[float]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(losses) - 1))
    whole, first, second = (LossWindow(Ranks()) for _ in range(3))
    fill(whole, losses)
    whole.read(step=len(losses))
    fill(first, losses[:cut])
    first.read(step=cut)
    second.restore(json.loads(json.dumps(first.state())))
    fill(second, losses[cut:])
    second.read(step=len(losses))
    assert [one.loss_sum for one in second.pending] == [one.loss_sum for one in whole.pending]
    assert second.take_interval() == whole.take_interval()


def test_the_state_is_plain_json() -> None:
    window = LossWindow(Ranks())
    fill(window, [[1.5, 2.5]])
    window.read(step=1)
    assert json.loads(json.dumps(window.state())) == {
        "pending": [[4.0, ITEMS, 0.5]],
        "interval": [4.0],
        "interval_items": ITEMS,
        "num_skipped": 0,
    }
    assert window.pending == [StepLoss(4.0, ITEMS, 0.5)]


# -- several ranks


@pytest.mark.parametrize("n", [2, 3])
def test_any_number_of_ranks_reads_the_same_bits(n: int) -> None:
    (alone,) = on_ranks(1, read_on_ranks, {})
    assert on_ranks(n, read_on_ranks, {}) == [alone] * n


@pytest.mark.parametrize(
    ("bad", "offenders"),
    [
        ({(1, 5): math.nan}, {12: 2}),
        ({(4, 0): math.inf, (4, 5): math.inf, (2, 3): math.nan}, {15: 0, 13: 1}),
    ],
)
def test_the_lowest_rank_with_a_loss_that_is_not_finite_is_named(
    bad: dict[tuple[int, int], float], offenders: dict[int, int]
) -> None:
    results = on_ranks(3, read_on_ranks, bad)
    for read, interval, _ in results:
        assert dict(read.offenders) == offenders
        assert [math.isfinite(loss) for loss in read.losses] == [
            11 + step not in offenders for step in range(STEPS)
        ]
        assert not math.isfinite(interval)
    assert len({state for *_, state in results}) == 1
