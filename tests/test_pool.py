"""The pool that the distributed tests rely on."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from harness.errors import ConfigError
from tests.pool import RanksFailed, on_ranks


def place() -> tuple[int, int, str]:
    return (
        (dist.get_rank(), dist.get_world_size(), dist.get_backend())
        if dist.is_initialized()
        else (0, 1, "none")
    )


def sum_over_ranks() -> int:
    mine = torch.tensor([dist.get_rank() + 1])
    dist.all_reduce(mine)
    return int(mine)


def parent_id() -> int:
    return os.getppid()


def raise_on(rank: int) -> str:
    if dist.get_rank() == rank:
        raise ConfigError("batch: mistaken", origin_rank=rank)
    return "fine"


def die_on(rank: int) -> int:
    if dist.get_rank() == rank:
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return sum_over_ranks()


def hang_on(rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(600)


def make_a_mess() -> None:
    os.environ["MESS"] = "1"
    os.chdir("/")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(2)


def look_for_a_mess() -> tuple[str | None, str, bool, int]:
    return (
        os.environ.get("MESS"),
        os.getcwd(),
        signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        torch.get_num_threads(),
    )


def leave_a_thread(seconds: float) -> None:
    threading.Thread(target=time.sleep, args=(seconds,), name="straggler").start()


def wait_for_signal(ready: Path) -> str:
    told = threading.Event()
    signal.signal(signal.SIGUSR1, lambda number, frame: told.set())
    (ready / str(dist.get_rank())).touch()
    print("ready", flush=True)
    # In short waits: a signal that comes as a wait begins is only seen at its end
    return "told" if any(told.wait(0.1) for _ in range(300)) else "never told"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_each_rank_knows_its_place(n: int) -> None:
    assert on_ranks(n, place) == [(rank, n, "gloo" if n > 1 else "none") for rank in range(n)]


def test_ranks_reach_each_other_again_and_again_from_the_same_processes() -> None:
    assert on_ranks(3, sum_over_ranks) == [6, 6, 6]
    before = set(on_ranks(3, parent_id))
    assert on_ranks(2, sum_over_ranks) == [3, 3]
    assert set(on_ranks(3, parent_id)) == before


def test_an_error_arrives_with_its_type_and_the_rank_it_comes_from() -> None:
    with pytest.raises(
        RanksFailed, match=r"rank 1: ConfigError: batch: mistaken\nTraceback"
    ) as raised:
        on_ranks(2, raise_on, 1)
    error = raised.value.error(1)
    assert isinstance(error, ConfigError)
    assert error.origin_rank == 1
    assert raised.value.results == {0: "fine"}


def test_a_rank_that_dies_is_named_and_its_peers_notice() -> None:
    with pytest.raises(RanksFailed, match="rank 1: the process died: SIGKILL") as raised:
        on_ranks(2, die_on, 1, timeout_s=30.0)
    assert raised.value.failures[1].exit_code == -signal.SIGKILL
    assert isinstance(raised.value.error(0), RuntimeError)
    assert on_ranks(2, sum_over_ranks) == [3, 3]


def test_a_rank_that_hangs_is_ended_and_shown_where_it_stood() -> None:
    with pytest.raises(RanksFailed, match="in hang_on") as raised:
        on_ranks(2, hang_on, 1, timeout_s=1.0)
    assert list(raised.value.failures) == [1]
    assert raised.value.failures[1].hung
    assert on_ranks(2, sum_over_ranks) == [3, 3]


def test_nothing_that_a_job_did_to_its_process_reaches_the_next() -> None:
    on_ranks(1, make_a_mess)
    assert on_ranks(1, look_for_a_mess) == [(None, os.getcwd(), True, 1)]


def test_a_thread_may_end_after_its_job_but_must_end() -> None:
    on_ranks(1, leave_a_thread, 0.2)
    with pytest.raises(RanksFailed, match="left behind after its end: thread straggler"):
        on_ranks(1, leave_a_thread, 600.0)


def test_signals_reach_ranks_while_they_work(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def tell(processes: Sequence[int]) -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        for process in processes:
            os.kill(process, signal.SIGUSR1)

    assert on_ranks(2, wait_for_signal, tmp_path, meanwhile=tell) == ["told", "told"]
    assert "[rank 1] ready" in capfd.readouterr().out
