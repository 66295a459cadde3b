"""What ranks agree on, on real gloo ranks."""

import itertools
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from harness.errors import CheckpointError, ConfigError, DataError, HarnessError, RankError
from harness.ranks.board import Board, report_of
from harness.ranks.meeting import is_lost_peer, leave
from harness.ranks.messages import FRAME_BYTES
from harness.ranks.pulse import Pulse
from harness.ranks.ranks import Ranks
from harness.ranks.slowly import slowly
from harness.ranks.watch import Watch
from harness.training.launch import SURVIVORS_S
from tests.pool import RanksFailed, on_ranks

SIZES = pytest.mark.parametrize("n", [1, 2, 3])
SHORT_S = 5.0


# -- what runs on the ranks


def decide_on_a_value(length: int) -> Any:
    return Ranks.join().decide(
        lambda: {"asked": os.getpid(), "text": "x" * length, "number": 0.1, "nothing": None}
    )


def decide_on_something_that_is_not_json() -> None:
    Ranks.join().decide(lambda: {"path": object()})


@dataclass
class Size:
    batch: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, int]) -> "Size":
        return cls(**value)


def decide_on_an_instance(slow: bool) -> list[Any]:
    """An instance, none, and what an error raises, then the next: the ranks are still in step."""
    ranks = Ranks.join()

    def decide(decision: Callable[[], Size | None]) -> Size | None:
        if slow:
            return slowly(ranks, decision, Size, heard_s=0.05)
        return ranks.decide(decision, Size)

    def fail() -> Size:
        raise ConfigError("batch.size: 0 is too small")

    raised = caught(lambda: decide(fail))
    return [
        decide(lambda: Size(8 + ranks.rank)),
        decide(lambda: None),
        (type(raised), str(raised)),
        decide(lambda: Size(2)),
    ]


def decide_after_a_failure(error: Exception) -> list[Any]:
    """What a failed decision raises, then what the next decision gives: the ranks are still in
    step.
    """
    ranks = Ranks.join()

    def fail() -> None:
        raise error

    raised = caught(lambda: ranks.decide(fail))
    return [
        type(raised),
        str(raised),
        getattr(raised, "origin_rank", None),
        ranks.decide(lambda: "next"),
    ]


def work_that_fails_on(failing: list[int]) -> list[Any]:
    ranks = Ranks.join()

    def work() -> int:
        if ranks.rank in failing:
            raise DataError(f"unreadable on rank {ranks.rank}")
        return ranks.rank * 10

    raised = caught(lambda: ranks.together(work))
    return [
        type(raised),
        str(raised),
        getattr(raised, "origin_rank", None),
        ranks.together(lambda: ranks.rank * 10),
    ]


def work_with_a_bug_on(rank: int) -> tuple[str, str]:
    ranks = Ranks.join()

    def work() -> None:
        if ranks.rank == rank:
            raise KeyError("a bug")

    raised = caught(lambda: ranks.together(work))
    return type(raised).__name__, str(raised)


def gather_values(length: int) -> list[Any]:
    ranks = Ranks.join()
    return ranks.gather([ranks.rank, "y" * (length * ranks.rank)])


def gather_unequal_rows(counts: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    ranks = Ranks.join()
    start = sum(counts[: ranks.rank])
    rows = torch.arange(start * 2, (start + counts[ranks.rank]) * 2).view(-1, 2).to(dtype)
    return ranks.gather_rows(rows.t().contiguous().t())  # not contiguous


def sum_over_ranks() -> list[float]:
    ranks = Ranks.join()
    return ranks.start_sum(torch.tensor([1.0, float(ranks.rank)]))().tolist()


def broadcast_buffers() -> list[Any]:
    ranks = Ranks.join()
    mine = [
        torch.full((2, 3), ranks.rank + 0.5),
        torch.tensor(ranks.rank + 7),  # like num_batches_tracked
        torch.tensor([ranks.rank == 0]),
        torch.full((3, 2), float(ranks.rank)).t(),
        torch.zeros(0),
    ]
    ranks.broadcast_in_place(mine)
    return [tensor.tolist() for tensor in mine]


def beat(levels: list[list[int]]) -> list[int]:
    ranks = Ranks.join()
    pulse = Pulse(ranks, within_s=0.0)
    agreed = []
    for step in levels:
        agreed.append(pulse.beat(step[ranks.rank]))
        ranks.gather(agreed)  # other messages between two beats do not mix with them
    return [*agreed, pulse.read(), pulse.read()]


def beat_by_time(raised: list[int], step_s: float = 0.01, calls: int = 600) -> list[Any]:
    """(calls that returned a level, calls that sent a message); rank 1's steps last `step_s`, and
    the last hundred of them 1 s, the others' a tenth. `raised`: the call at which each rank has a
    level.
    """
    ranks = Ranks.join()
    now = [0.0]
    pulse = Pulse(ranks, clock=lambda: now[0])
    returned, sent = [], []
    for call in range(calls):
        now[0] += (step_s if call < calls - 100 else 1.0) * (1.0 if ranks.rank == 1 else 0.1)
        before = pulse._work
        if level := pulse.beat(ranks.rank + 1 if call == raised[ranks.rank] else 0):
            returned.append([call, level])
        if pulse._work is not None and pulse._work is not before:
            sent.append(call)
    pulse.read()
    return [returned, sent]


def two_channels_at_once() -> list[Any]:
    ranks = Ranks.join()
    other = ranks.channel()
    work = other.start_maximum(torch.tensor([ranks.rank]))
    values = ranks.gather(ranks.rank)
    if work is not None:
        work.wait()
    return [values, other.decide(lambda: "other"), ranks.decide(lambda: "first")]


def tell_failures(failing: list[int]) -> list[Any]:
    ranks = Ranks.join()
    before = ranks.published_failure()
    ranks.wait_for_all()
    if ranks.rank in failing:
        ranks.publish_failure(CheckpointError(f"rank {ranks.rank} found no room"))
    ranks.wait_for_all()
    after = ranks.published_failure()
    return [
        before,
        type(after).__name__,
        str(after),
        after.origin_rank if after is not None else None,
    ]


def lose_rank_0(act: str) -> list[Any]:
    """What the survivors meet when rank 0 dies: the error of `act`, whether it is told apart, the
    seconds it took, and that they can leave.
    """
    ranks = Ranks.join(SHORT_S)
    pulse = Pulse(ranks, within_s=0.0)
    pulse.beat(0)
    ranks.wait_for_all()
    if ranks.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    acts: dict[str, Callable[[], Any]] = {
        "decide": lambda: ranks.decide(lambda: None),
        "gather": lambda: ranks.gather(1),
        "sum": lambda: ranks.start_sum(torch.ones(1))(),
        "beat": lambda: [pulse.beat(0) for _ in range(3)],
    }
    start = time.monotonic()
    # As in a launch: who notices late is not missed by who noticed at once
    with tempfile.TemporaryDirectory() as stacks, Watch(ranks, "warn", Path(stacks)):
        error = caught(acts[act])
        ranks.publish_failure(RankError("lost rank 0"))
        ranks.published_failure()
        soon = time.monotonic() - start < SHORT_S + 3
        missing = ranks.missing(SURVIVORS_S)
    leave()
    return [is_lost_peer(error), soon, missing]


def lose_rank_2_unnoticed_by_rank_1() -> list[int]:
    """What rank 0 misses; rank 1, whose collective waits for rank 0 alone, only reports."""
    ranks = Ranks.join(SHORT_S)
    if ranks.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if ranks.rank == 1:
        board = Board()
        for beat in range(int(4 * SURVIVORS_S)):
            board.put(report_of(1), f"beat {beat}")
            time.sleep(0.25)
        return [2]
    return ranks.missing(SURVIVORS_S)


def wait_for_a_rank_that_sleeps() -> bool | None:
    ranks = Ranks.join(timeout_s=0.5)
    if ranks.rank == 0:
        time.sleep(2.0)
        return None
    return is_lost_peer(caught(lambda: ranks.decide(lambda: None)))


def leave_before_the_others() -> float:
    ranks = Ranks.join()
    if ranks.rank == 0:
        time.sleep(1.0)
    start = time.monotonic()
    leave()
    return time.monotonic() - start


def caught(act: Callable[[], Any]) -> BaseException:
    try:
        value = act()
    except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
        return error
    raise AssertionError(f"nothing was raised; got {value!r}")


def same_on_all(results: list[Any]) -> Any:
    assert all(result == results[0] for result in results), results
    return results[0]


# -- decisions


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_every_rank_gets_an_instance_of_the_class_that_rank_0_decided(n: int, slow: bool) -> None:
    error = (ConfigError, "batch.size: 0 is too small")
    assert on_ranks(n, decide_on_an_instance, slow) == [[Size(8), None, error, Size(2)]] * n


@SIZES
@pytest.mark.parametrize("length", [0, FRAME_BYTES - 100, FRAME_BYTES, 5 * FRAME_BYTES])
def test_every_rank_gets_what_rank_0_decided_whatever_its_length(n: int, length: int) -> None:
    value = same_on_all(on_ranks(n, decide_on_a_value, length))
    assert value["text"] == "x" * length
    assert value["number"] == 0.1


def test_the_length_of_a_message_may_fall_anywhere_around_the_frame() -> None:
    for length in range(FRAME_BYTES - 90, FRAME_BYTES - 40):
        assert on_ranks(2, gather_values, length)[0][1] == [1, "y" * length]


@pytest.mark.parametrize("n", [2, 3])
def test_an_error_of_rank_0_is_raised_on_every_rank_as_it_was(n: int) -> None:
    assert same_on_all(
        on_ranks(n, decide_after_a_failure, ConfigError("batch.size: 0 is too small"))
    ) == [
        ConfigError,
        "batch.size: 0 is too small",
        0,
        "next",
    ]


def test_a_bug_on_rank_0_reaches_the_others_with_its_traceback() -> None:
    first, second = on_ranks(2, decide_after_a_failure, ZeroDivisionError("oh"))
    assert first[:2] == [ZeroDivisionError, "oh"]
    assert second[0] is RankError
    assert second[1].startswith("rank 0 failed:\nTraceback")
    assert second[1].endswith("ZeroDivisionError: oh")
    assert first[3] == second[3] == "next"


def test_a_decision_that_is_not_json_fails_on_every_rank() -> None:
    with pytest.raises(RanksFailed) as raised:
        on_ranks(3, decide_on_something_that_is_not_json)
    assert isinstance(raised.value.error(0), TypeError)
    assert all(isinstance(raised.value.error(rank), RankError) for rank in (1, 2))


# -- work done by all


@pytest.mark.parametrize(
    ("failing", "origin"), [([0], 0), ([1], 1), ([2], 2), ([1, 2], 1), ([0, 1, 2], 0)]
)
def test_if_one_fails_all_raise_the_error_of_the_lowest(failing: list[int], origin: int) -> None:
    results = on_ranks(3, work_that_fails_on, failing)
    assert [result[:3] for result in results] == [
        [DataError, f"unreadable on rank {origin}", origin]
    ] * 3
    assert [result[3] for result in results] == [0, 10, 20]


def test_a_bug_on_one_rank_stays_what_it_is_there_and_is_told_to_the_others() -> None:
    first, second = on_ranks(2, work_with_a_bug_on, 1)
    assert second == ("KeyError", "'a bug'")
    assert first[0] == "RankError"
    assert "KeyError: 'a bug'" in first[1]


def test_alone_an_error_passes_as_it_is() -> None:
    def fail() -> None:
        raise DataError("no such file")

    for act in (Ranks().decide, Ranks().together):
        with pytest.raises(DataError, match="no such file"):
            act(fail)


# -- values and tensors


@SIZES
@pytest.mark.parametrize("length", [1, 3 * FRAME_BYTES])
def test_values_are_gathered_in_the_order_of_ranks(n: int, length: int) -> None:
    assert same_on_all(on_ranks(n, gather_values, length)) == [
        [rank, "y" * (length * rank)] for rank in range(n)
    ]


@pytest.mark.parametrize("counts", [[2], [1, 4], [0, 3, 1], [0, 0], [5, 0]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bfloat16, torch.bool])
def test_rows_may_be_unequal_or_missing(counts: list[int], dtype: torch.dtype) -> None:
    whole = torch.arange(sum(counts) * 2).view(-1, 2).to(dtype)
    for parts in on_ranks(len(counts), gather_unequal_rows, counts, dtype):
        assert [len(part) for part in parts] == counts
        assert torch.equal(torch.cat(parts), whole)
        assert all(part.dtype == dtype for part in parts)


@SIZES
def test_a_sum_over_ranks(n: int) -> None:
    assert same_on_all(on_ranks(n, sum_over_ranks)) == [n, n * (n - 1) / 2]


@SIZES
def test_buffers_of_several_dtypes_and_layouts_become_rank_0s(n: int) -> None:
    assert same_on_all(on_ranks(n, broadcast_buffers)) == [
        [[0.5] * 3] * 2,
        7,
        [True],
        [[0.0] * 3] * 2,
        [],
    ]


# -- the pulse


@pytest.mark.parametrize("n", [2, 3])
def test_the_highest_level_of_a_beat_comes_back_one_beat_later_on_every_rank(n: int) -> None:
    levels = [[0] * n, [0] * (n - 1) + [3], [1] + [0] * (n - 1), [0] * n]
    assert same_on_all(on_ranks(n, beat, levels)) == [0, 0, 3, 1, 0, 0]


def test_fast_steps_share_a_message_and_none_waits_for_longer_than_it_may() -> None:
    raised = [8, 401, 550]
    returned, sent = same_on_all(on_ranks(3, beat_by_time, raised))
    assert [level for _, level in returned] == [1, 2, 3]
    late = [call - at for (call, _), at in zip(returned, raised, strict=True)]
    # At once while little is known, and where a call takes longer than a quarter of a second
    assert max(late) <= 4
    assert late[::2] == [1, 1]
    gaps = [after - call for call, after in itertools.pairwise(sent)]
    assert gaps[:15] == [1] * 15
    assert gaps[60:80] == [4] * 20
    assert gaps[-50:] == [1] * 50


def test_very_fast_steps_share_a_message_by_sixteen() -> None:
    """A message costs as much as such a step (2 processes, 1.8 ms a step: 0.5 ms)."""
    raised = [8, 2350, 2490]
    returned, sent = same_on_all(on_ranks(3, beat_by_time, raised, 0.001, 2500))
    late = [call - at for (call, _), at in zip(returned, raised, strict=True)]
    assert [level for _, level in returned] == [1, 2, 3]
    assert late[0] == late[2] == 1
    assert late[1] <= 16
    gaps = [after - call for call, after in itertools.pairwise(sent)]
    assert 16 in gaps
    assert max(gaps) == 16
    assert gaps[:15] == [1] * 15
    assert gaps[-50:] == [1] * 50


def test_alone_a_level_comes_back_at_once() -> None:
    assert on_ranks(1, beat, [[0], [3], [0]]) == [[0, 3, 0, 0, 0]]


@SIZES
def test_channels_do_not_mix(n: int) -> None:
    assert same_on_all(on_ranks(n, two_channels_at_once)) == [list(range(n)), "other", "first"]


# -- failures


@pytest.mark.parametrize("failing", [[0], [1]])
def test_a_published_failure_is_read_by_every_rank(failing: list[int]) -> None:
    told = f"rank {failing[0]} found no room"
    assert same_on_all(on_ranks(2, tell_failures, failing)) == [
        None,
        "CheckpointError",
        told,
        failing[0],
    ]


def test_the_first_failure_published_stays() -> None:
    name, message, origin = same_on_all(on_ranks(3, tell_failures, [0, 1, 2]))[1:]
    assert name == "CheckpointError"
    assert message == f"rank {origin} found no room"


def test_without_a_failure_there_is_none_to_read() -> None:
    assert same_on_all(on_ranks(2, tell_failures, [])) == [None, "NoneType", "None", None]
    assert Ranks().published_failure() is None


@pytest.mark.parametrize("act", ["decide", "gather", "sum", "beat"])
def test_the_peers_of_a_rank_that_died_raise_soon_and_can_leave(act: str) -> None:
    with pytest.raises(RanksFailed) as raised:
        on_ranks(3, lose_rank_0, act, timeout_s=40.0)
    assert list(raised.value.failures) == [0]
    assert raised.value.results == {1: [True, True, [0]], 2: [True, True, [0]]}


def test_a_rank_that_has_not_noticed_yet_is_not_missed() -> None:
    with pytest.raises(RanksFailed) as raised:
        on_ranks(3, lose_rank_2_unnoticed_by_rank_1, timeout_s=40.0)
    assert raised.value.results == {0: [2], 1: [2]}


def test_they_do_too_when_the_store_died_with_it() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Rank 0 keeps the store, as without an agent
    env = {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port)}
    with pytest.raises(RanksFailed) as raised:
        on_ranks(2, lose_rank_0, "gather", env=env, timeout_s=40.0)
    assert raised.value.results == {1: [True, True, []]}


def test_a_rank_that_keeps_the_others_waiting_is_given_up_after_the_time_limit() -> None:
    assert on_ranks(2, wait_for_a_rank_that_sleeps) == [None, True]


def test_leaving_waits_for_nobody() -> None:
    assert max(on_ranks(2, leave_before_the_others)) < 0.5


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistNetworkError("Broken pipe"), True),
        (dist.DistStoreError("wait timeout after 1000ms, keys: /0"), True),
        (
            RuntimeError(
                "[/__w/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:39337"
            ),
            True,
        ),
        (
            RuntimeError(
                "[/__w/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1000ms for recv "
                "operation to complete"
            ),
            True,
        ),
        (RuntimeError("Application timeout caused pair closure"), True),
        (RuntimeError("Gloo connectFullMesh failed with [127.0.0.1]: no address"), True),
        (RuntimeError("Socket Timeout"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 2x2)"), False),
        (ValueError("connection"), False),
        (HarnessError("gloo"), False),
    ],
)
def test_a_lost_peer_is_told_from_a_bug(error: BaseException, lost: bool) -> None:
    assert is_lost_peer(error) is lost


def rows_that_do_not_fit() -> tuple[str, list[int]]:
    ranks = Ranks.join()
    raised = caught(lambda: ranks.gather_rows(torch.zeros(2, 2 + ranks.rank)))
    return str(raised), ranks.gather(1)


def test_rows_that_do_not_fit_together_are_refused_on_every_rank() -> None:
    message, after = same_on_all(on_ranks(2, rows_that_do_not_fit))
    assert message.startswith("rows that do not fit together, by rank:")
    assert after == [1, 1]
