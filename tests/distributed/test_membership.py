"""What a process says of its end to those of its launch."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from harness.commands.elastic_launch import _Place
from harness.console import Console
from harness.errors import LeavingError
from harness.interrupt import GROWS, PREEMPT, Interruption
from harness.ranks.gathering import Gathering
from harness.ranks.generations import Coordinator
from harness.ranks.membership import MEMBER, STORE, Membership, append_note
from harness.ranks.sockets import noted_sockets
from harness.rundir.lease import Lease
from harness.training.resume import take
from tests.pool import RanksFailed, on_ranks

NAME, OTHER = "0000.000.0", "0000.001.0"


@pytest.fixture
def gathering() -> Gathering:
    return Gathering(1, 0, "127.0.0.1", 0, Coordinator(12, 1))


def member(gathering: Gathering) -> Membership:
    return Membership({STORE: f"127.0.0.1:{gathering.port}", MEMBER: NAME})


def refuse() -> None:
    raise LeavingError("SIGTERM came")


def look(gathering: Gathering) -> None:
    gathering.coordinate(0.0)


def test_a_process_that_only_waits_leaves_without_ending_the_others(gathering: Gathering) -> None:
    spare = member(gathering)
    with pytest.raises(LeavingError):
        spare.wait(refuse)
    spare.finish(75)
    assert gathering.finals() == {}


def test_a_process_that_waits_until_all_is_over_says_nothing_of_how(gathering: Gathering) -> None:
    spare = member(gathering)
    gathering.end()
    assert spare.wait(lambda: None) is None
    spare.finish(0)
    assert gathering.finals() == {}


def test_the_end_of_one_that_trained_counts(gathering: Gathering) -> None:
    trained = member(gathering)
    gathering.tell([NAME])

    place = trained.wait(lambda: look(gathering))
    assert place is not None
    assert (place.rank, place.size, place.generation) == (0, 1, 1)
    trained.finish(75)
    assert gathering.finals() == {NAME: 75}


def test_a_store_that_is_gone_asks_for_no_growth(gathering: Gathering) -> None:
    one = member(gathering)
    one._store = dist.PrefixStore("gone", dist.HashStore())  # type: ignore[assignment] # any store
    one._store.set_timeout(timedelta(milliseconds=10))
    assert not one.is_growth_due()


def test_growth_is_taken_back_where_who_waited_is_gone(gathering: Gathering) -> None:
    one = member(gathering)
    gathering.tell([NAME])
    assert one.wait(lambda: look(gathering)) is not None
    append_note(gathering._store, "ready", f"{OTHER}:1 ")
    for live, due in (([NAME, OTHER], True), ([NAME], False), ([NAME, OTHER], True)):
        gathering.tell(live)
        look(gathering)
        assert one.is_growth_due() is due


def test_whoever_is_lost_again_and_again_is_not_started_for_ever() -> None:
    """Though it was ready each time: the others would be put together anew every few seconds."""
    place = _Place(0)
    for lasted_s, was_ready, too_many in (
        (5.0, True, False),
        (90.0, False, False),  # it took long, and was never ready
        (90.0, True, False),  # a loss as any other
        (5.0, True, False),
        (5.0, True, False),
        (5.0, True, True),
    ):
        assert place.note_loss(was_ready, place.begun_s + lasted_s) is too_many


def test_a_signal_counts_where_the_launch_leaves_to_go_on_with_more() -> None:
    with Interruption() as interruption:
        interruption.ask(GROWS)
        interruption.ask("SIGTERM came")
        assert interruption.cause == "SIGTERM came"
        interruption.ask(GROWS)
        assert interruption.cause == "SIGTERM came"


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_request_between_two_launches_of_a_process_is_meant_for_the_second(
    tmp_path: Path, goes_on: bool
) -> None:
    (tmp_path / PREEMPT).touch()
    lease = Lease(tmp_path)
    with Interruption() as interruption:
        interruption.goes_on = goes_on
        try:
            take(lease, Console(False), tmp_path, interruption)
            assert (tmp_path / PREEMPT).exists() is goes_on
            deadline = time.monotonic() + 5
            while goes_on and interruption.cause is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            lease.release()


def test_one_that_waits_for_a_lost_process_to_come_ends_to_be_started_again() -> None:
    with pytest.raises(RanksFailed) as ended:
        on_ranks(1, wait_for_one_that_is_gone)
    assert ended.value.failures[0].exit_code == 1


def wait_for_one_that_is_gone() -> None:
    gathering = Gathering(1, 0, "127.0.0.1", 0, Coordinator(12, 1))
    gathering.tell([NAME, OTHER])
    append_note(gathering._store, "ready", f"{OTHER}:0 ")
    one = member(gathering)
    assert one.wait(lambda: look(gathering)) is not None
    gathering.tell([NAME])
    gathering.coordinate(0.0)
    with one, noted_sockets():
        time.sleep(30)
