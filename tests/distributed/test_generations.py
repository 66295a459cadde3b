"""Which processes train together: properties over all that may happen to them, and the cases."""

from hypothesis import given
from hypothesis import strategies as st

from harness.ranks.generations import LEAVE_S, START_S, Coordinator

NAMES = [f"0000.{number:03}.0" for number in range(6)]


@given(
    st.integers(1, 24),
    st.integers(1, 3),
    st.lists(
        st.tuples(st.sampled_from(["comes", "ready", "dies", "time"]), st.integers(0, 5)),
        max_size=60,
    ),
)
def test_a_generation_is_as_many_of_the_ready_as_fit_and_ends_only_with_a_reason(
    num_slots: int, least: int, history: list[tuple[str, int]]
) -> None:
    coordinator = Coordinator(num_slots, least)
    live: set[str] = set()
    ready: dict[str, int] = {}
    now_s = 0.0
    for what, which in history:
        name = NAMES[which]
        before = coordinator.current
        if what == "comes":
            live.add(name)
            ready.pop(name, None)
        elif what == "ready" and name in live:
            ready[name] = 0 if before is None else before.number
        elif what == "dies":
            live.discard(name)
        else:
            now_s += 20.0 * which
        broken = coordinator.is_broken(live)
        made = coordinator.look(live, ready, now_s)
        if made is None:
            continue
        number = 0 if before is None else before.number
        assert made.number == number + 1
        everyone = [*made.members, *made.spares]
        assert len(set(everyone)) == len(everyone)
        assert set(everyone) == {one for one in live if ready.get(one, -1) >= number}
        size = len(made.members)
        assert size >= least
        assert num_slots % size == 0
        assert not any(num_slots % more == 0 for more in range(size + 1, len(everyone) + 1))
        assert list(made.members) == sorted(made.members)
        if before is not None:
            assert broken or any(ready.get(one, -1) >= number for one in before.members)
            trained = set(before.members) & set(everyone)
            assert trained <= set(made.members) or len(trained) > size


def test_the_start_waits_for_those_that_still_start_and_not_for_ever() -> None:
    coordinator = Coordinator(12, 2)
    live, ready = set(NAMES[:4]), {NAMES[0]: 0}
    assert coordinator.look(live, ready, 0.0) is None
    ready |= {NAMES[1]: 0, NAMES[2]: 0}
    assert coordinator.look(live, ready, 5.0) is None
    assert coordinator.late(live, ready) == [NAMES[3]]
    made = coordinator.look(live, ready, 5.0 + START_S)
    assert made is not None
    assert made.members == tuple(NAMES[:3])


def test_after_a_loss_survivors_go_on_at_once_and_one_that_hangs_is_not_waited_for_long() -> None:
    coordinator = Coordinator(12, 1)
    ready = dict.fromkeys(NAMES[:4], 0)
    assert coordinator.look(set(NAMES[:4]), ready, 0.0) is not None
    live = {NAMES[0], NAMES[2], NAMES[3]}
    assert coordinator.is_broken(live)
    ready |= {NAMES[0]: 1, NAMES[2]: 1}
    assert coordinator.look(live, ready, 10.0) is None
    assert coordinator.late(live, ready) == [NAMES[3]]
    made = coordinator.look(live, ready, 10.0 + LEAVE_S)
    assert made is not None
    assert made.members == (NAMES[0], NAMES[2])


def test_of_five_processes_ten_slots_need_all_and_twelve_leave_one_as_a_spare() -> None:
    ready = dict.fromkeys(NAMES[:5], 0)
    for num_slots, size in ((10, 5), (12, 4), (7, 1)):
        made = Coordinator(num_slots, 1).look(set(ready), ready, 0.0)
        assert made is not None
        assert (len(made.members), len(made.spares)) == (size, 5 - size)


def test_a_spare_makes_a_generation_grow_only_if_another_number_fits() -> None:
    coordinator = Coordinator(12, 1)
    ready = dict.fromkeys(NAMES[:4], 0)
    coordinator.look(set(ready), ready, 0.0)
    five = ready | {NAMES[4]: 1}
    assert not coordinator.could_grow(set(five), five)
    six = five | {NAMES[5]: 1}
    assert coordinator.could_grow(set(six), six)
