"""A rank that waits for one which does not answer is brought back."""

import os
import signal
import threading
import time

import torch
import torch.distributed as dist

from harness.ranks.meeting import is_lost_peer
from harness.ranks.sockets import cut_sockets, noted_sockets
from tests.pool import on_ranks

AFTER_S, WITHIN_S = 1.0, 5.0


def cut_later(port: int) -> None:
    threading.Timer(AFTER_S, cut_sockets, [port]).start()


def test_a_rank_in_a_sum_with_one_that_is_stopped() -> None:
    assert on_ranks(2, sum_with_a_stopped_one) == [True, True]


def sum_with_a_stopped_one() -> bool:
    store = dist.distributed_c10d._get_default_store()
    with noted_sockets():
        group = dist.new_group(backend="gloo")
    store.set(f"process/{dist.get_rank()}", str(os.getpid()))
    if dist.get_rank() == 1:
        store.get("done")  # it does not take part, and stays
        return True
    cut_later(int(os.environ["MASTER_PORT"]))
    begun = time.monotonic()
    try:
        os.kill(int(store.get("process/1")), signal.SIGSTOP)
        dist.all_reduce(torch.zeros(1), group=group)
    except RuntimeError as error:
        return is_lost_peer(error) and time.monotonic() - begun < WITHIN_S
    finally:
        os.kill(int(store.get("process/1")), signal.SIGCONT)
        store.set("done", "")
    return False
