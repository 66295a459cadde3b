"""Who is judged to stand still, and who to be slow: on reports that are made up."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ranks.heartbeat import (
    AGREEMENT,
    BACKWARD,
    DATA,
    END,
    EVALUATION_DATA,
    FORWARD,
    LOSSES,
    METRICS,
    PHASES,
    Durations,
    Heartbeat,
)
from harness.ranks.standstill import Overseer, Pace, Report, StuckRank, behind, limit_s

START = Report(0, "host", 1, 0, 0, 7, FORWARD, waiting=False, limit_s=10.0)


def reports(*changes: dict[str, object]) -> list[Report]:
    """One a rank, each with a change to START."""
    return [
        replace(START, rank=rank, **change)  # type: ignore[arg-type]  # names of its fields
        for rank, change in enumerate(changes)
    ]


def look_for(seconds: int, ranks: Sequence[Report], silent: Sequence[int] = ()) -> list[StuckRank]:
    """What is found after so many looks, a second apart, in which nobody moves."""
    overseer = Overseer(len(ranks))
    found: list[StuckRank] = []
    for beat in range(seconds + 1):
        now = [one if one.rank in silent else replace(one, beat=beat) for one in ranks]
        found = overseer.look(list(now), 1.0)
    return found


def test_who_is_behind_is_named_after_its_limit() -> None:
    ranks = reports({"phase": BACKWARD, "waiting": True}, {}, {"phase": BACKWARD, "waiting": True})
    assert look_for(10, ranks) == []
    assert [one.report.rank for one in look_for(11, ranks)] == [1]
    slow = [replace(one, limit_s=60.0) for one in ranks]
    assert look_for(60, slow) == []
    assert [one.for_s for one in look_for(61, slow)] == [61.0]


def test_who_waits_is_not_named_while_another_does_not() -> None:
    ranks = reports({"waiting": True}, {"waiting": True}, {})
    assert [one.report.rank for one in look_for(11, ranks)] == [2]
    assert [one.report.rank for one in look_for(11, ranks[:2])] == [0, 1]


def test_an_earlier_step_is_behind_whatever_its_phase() -> None:
    ranks = reports({"step": 8, "phase": DATA}, {"step": 7, "phase": LOSSES})
    assert [one.rank for one in behind(ranks)] == [1]


def test_a_silent_one_is_judged_by_the_limit_of_those_who_wait_for_it() -> None:
    """It was last heard of in its start; the others wait in their backward passes."""
    ranks = reports(
        {"phase": BACKWARD, "waiting": True, "limit_s": 30.0},
        {"phase": "start-up", "step": None, "limit_s": None},
    )
    assert look_for(30, ranks, silent=[1]) == []
    (found,) = look_for(31, ranks, silent=[1])
    assert (found.report.rank, found.silent, found.where) == (1, True, "step 7, backward")


@pytest.mark.parametrize("change", [{"limit_s": None}, {"held": "a debugger"}])
def test_nobody_is_named_without_a_limit_or_with_a_reason(change: dict[str, object]) -> None:
    assert look_for(1000, reports({"phase": BACKWARD, "waiting": True}, change)) == []


def test_data_are_named_early_and_given_up_late() -> None:
    ranks = reports({"phase": DATA}, {"phase": BACKWARD, "waiting": True})
    assert not look_for(11, ranks)[0].is_given_up
    assert look_for(61, ranks)[0].is_given_up


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8), st.sampled_from(PHASES)), min_size=30)
)
def test_no_alarm_while_anyone_moves(moves: list[tuple[int, int, str]]) -> None:
    """However ranks move, and however seldom their reports come: within ten seconds of the last
    move of any rank nobody is named.
    """
    overseer = Overseer(4)
    now = reports({}, {}, {}, {})
    still = 0
    for second, (rank, pause, phase) in enumerate(moves):
        for _ in range(pause):
            still += 1
            found = overseer.look(list(now), 1.0)
            assert not found or still > 10
        still = 0
        one = now[rank]
        now[rank] = replace(one, count=one.count + 1, phase=phase, beat=second)
        assert overseer.look(list(now), 1.0) == []


def test_nobody_is_named_once_one_has_come_to_the_end() -> None:
    """The others have left, and their last reports are from before; rank 0 sends its records."""
    ranks = reports({"phase": END, "limit_s": None}, {"phase": AGREEMENT})
    assert look_for(1000, ranks, silent=[1]) == []


def test_a_silent_one_keeps_its_own_limit() -> None:
    ranks = reports({"limit_s": 90.0}, {"phase": BACKWARD, "waiting": True})
    assert look_for(90, ranks, silent=[0]) == []
    assert [one.report.rank for one in look_for(91, ranks, silent=[0])] == [0]


def test_records_of_rank_0_are_given_up_late() -> None:
    ranks = reports({"phase": LOSSES}, {"phase": LOSSES, "waiting": True})
    assert not look_for(11, ranks)[0].is_given_up
    assert look_for(61, ranks)[0].is_given_up
    others = reports({"phase": LOSSES, "waiting": True}, {"phase": LOSSES})
    assert look_for(11, others)[0].is_given_up


def test_who_does_not_wait_is_named_though_it_seems_to_be_ahead() -> None:
    """In the metrics of a first split, while the others wait at the data of a second."""
    ahead = {"phase": EVALUATION_DATA, "waiting": True}
    ranks = reports({"phase": METRICS}, ahead, ahead)
    assert [one.report.rank for one in look_for(11, ranks)] == [0]


def test_what_was_rare_and_long_may_come_again() -> None:
    heart = Heartbeat()
    heart.phase = FORWARD
    for seconds in [0.3] * 1000 + [40.0]:
        heart.durations[FORWARD].add(seconds)
    assert limit_s(heart) == 60.0


def test_limits_are_learned() -> None:
    heart = Heartbeat()
    heart.phase = FORWARD
    for _ in range(4):
        heart.durations[FORWARD].add(20.0)
    assert limit_s(heart) == float("inf")
    heart.durations[FORWARD].add(20.0)
    assert 60.0 <= limit_s(heart) <= 60.0 * 2**0.5
    heart.phase = "start-up"
    assert limit_s(heart) == float("inf")


@given(st.lists(st.floats(1e-7, 1e4), min_size=1, max_size=300))
def test_a_quantile_is_never_too_small_and_by_a_root_of_two_too_large(values: list[float]) -> None:
    durations = Durations()
    for one in values:
        durations.add(one)
    exact = sorted(values)[max(0, -(-99 * len(values) // 100) - 1)]
    assert exact <= durations.quantile(0.99) * (1 + 1e-12)
    assert durations.quantile(0.99) <= exact * 2**0.5 * (1 + 1e-12)


def pace(own_ms: Sequence[float], windows: int) -> list[str]:
    """What is said of ranks with so much work of their own a step, in steps of 20 ms."""
    judged = Pace()
    said = []
    for second in range(windows * 10 + 1):
        step = second * 50
        said += judged.look(
            reports(*({"step": step, "busy_s": {FORWARD: step * one / 1e3}} for one in own_ms)),
            1.0,
        )
    return said


def test_a_slow_rank_is_told_of_once() -> None:
    (said,) = pace([5.0, 5.1, 11.0, 4.9], windows=6)
    assert said.startswith(
        "rank 2 (host host, process 1) is slower than the others: 11.0 ms of its"
    )
    assert "mostly in forward (11.0 ms against 5.0)" in said
    assert said.endswith("The others wait for it for 30% of each step.")
    assert pace([5.0, 5.1, 11.0, 4.9], windows=1) == []


def test_what_is_a_little_slower_or_costs_little_is_not_told() -> None:
    assert pace([5.0, 5.1, 7.0, 4.9], windows=6) == []
    assert pace([0.5, 0.5, 2.0, 0.5], windows=6) == []
