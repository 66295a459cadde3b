"""Which errors mean that the others go on without a process, on real ranks that end."""

import os

import pytest

from harness.errors import AbandonedError, DataError, RankError
from harness.ranks.ranks import Ranks
from harness.training.regroup import _has_lost_peers
from tests.pool import RanksFailed, on_ranks


def tell(said: BaseException | None) -> tuple[bool, bool]:
    """Rank 1 publishes an error, or none, and dies; what rank 0 makes of its end, and of the same
    with words of our own.
    """
    ranks = Ranks.join(20.0)
    if ranks.rank == 1:
        if said is not None:
            ranks.publish_failure(said)
        os._exit(7)
    try:
        while True:
            ranks.gather(0)
    except Exception as error:  # noqa: BLE001 - gloo's own
        worded = RankError("rank 0: a collective failed")
        worded.__cause__ = error
        return _has_lost_peers(error, ranks), _has_lost_peers(worded, ranks)


@pytest.mark.parametrize(
    ("said", "goes_on"),
    [
        (None, True),  # killed
        (RankError("rank 1: no sign of life of rank 2"), True),
        (DataError("a.csv: no such file"), False),  # which another process would not find either
        # It ends the launch all the same, by its exit code
        (ZeroDivisionError("a bug"), True),
    ],
)
def test_others_go_on_unless_the_lost_process_found_a_mistake(
    said: BaseException | None, goes_on: bool
) -> None:
    with pytest.raises(RanksFailed) as raised:
        on_ranks(2, tell, said, timeout_s=40.0)
    assert raised.value.results == {0: (goes_on, goes_on)}


def test_an_error_of_one_s_own_is_none_of_a_peer() -> None:
    for error in (DataError("connection reset by peer"), ValueError("gloo"), AbandonedError("x")):
        assert not _has_lost_peers(error, Ranks())
    assert not _has_lost_peers(RankError("two ranks hold other weights"), Ranks())
