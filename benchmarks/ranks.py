"""What ranks that speak to each other cost with their number.

Run: python benchmarks/ranks.py [--ranks 2 4 8 16 32] [--simulated 1024]

Told, on real gloo processes of this machine: the sockets that a process holds, with gloo's own way
to connect (all to all at once) and with that of 64 ranks and more (when they first speak to each
other); how long joining took; a log point of 50 steps; a decision of rank 0. And for more ranks
than fit here: what rank 0 computes at a log point, with the other ranks' rows made up.

Aim: sockets that grow as the logarithm of the ranks, and a log point of 1,024 that costs
less than one step of 20 ms.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.ranks.meeting import LAZY_FROM, connect_lazily
from harness.ranks.pulse import Pulse
from harness.ranks.ranks import Ranks
from harness.training.losses import LossWindow

STEPS, SLOTS, TIMES = 50, 2, 10


def milliseconds(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


def log_point(window: LossWindow) -> float:
    """Of its reading, without the steps."""

    def fill() -> None:
        for _ in range(STEPS):
            losses = [torch.tensor(1.5)] * SLOTS
            window.add(losses, torch.tensor(64), torch.tensor(0.5), skipped=False)

    times = []
    for number in range(1, TIMES + 1):
        fill()
        begun = time.perf_counter()
        window.read(number * STEPS)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


def sockets() -> int:
    """That this process holds."""
    found = 0
    for one in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(one).startswith("socket:")
        except OSError:
            continue
    return found


def rank_process(rank: int, size: int, port: int, lazy: bool, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.pop("TORCH_GLOO_LAZY_INIT", None)
    if lazy:
        connect_lazily(LAZY_FROM)
    begun = time.perf_counter()
    where = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(
        "gloo", init_method=where, rank=rank, world_size=size, timeout=timedelta(seconds=300)
    )
    ranks = Ranks.join(300)
    pulse, saves = Pulse(ranks), ranks.channel()
    joined_s = time.perf_counter() - begun
    window = LossWindow(ranks)
    pulse.beat(0)
    saves.gather(None)
    ranks.start_sum(torch.ones(1000))()
    took = log_point(window), milliseconds(lambda: ranks.decide(lambda: 1))
    pulse.read()
    if rank == 0:
        results.put((sockets(), joined_s, *took))
    ranks.wait_for_all()
    time.sleep(0.2)
    dist.destroy_process_group()


def real(size: int, lazy: bool) -> tuple[int, float, float, float]:
    """(sockets, seconds to join, ms of a log point, ms of a decision)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # torch is imported once
    results = context.Queue()
    processes = [
        context.Process(target=rank_process, args=(rank, size, port, lazy, results))
        for rank in range(size)
    ]
    for one in processes:
        one.start()
    found: tuple[int, float, float, float] = results.get(timeout=300)
    for one in processes:
        one.join()
    return found


class Simulated(Ranks):
    """Rank 0 of many: the others have its rows."""

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        return list(torch.stack([rows] * self.size).unbind())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--simulated", type=int, nargs="+", default=[8, 1024])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{len(os.sched_getaffinity(0))} cores; log points of {STEPS} steps of {SLOTS} slots")
    print("ranks  connect   sockets  join s  log point ms  decision ms")
    for size in given.ranks:
        for lazy in (False, True):
            held, joined_s, point, decision = real(size, lazy)
            kind = "at use" if lazy else "at once"
            print(
                f"{size:>5}  {kind:<8} {held:>8}  {joined_s:6.2f}  {point:12.2f}  {decision:11.2f}"
            )
    for size in given.simulated:
        took = log_point(LossWindow(Simulated(0, size)))
        print(f"{size:>5}  simulated: {took:.2f} ms of rank 0's own at a log point")


if __name__ == "__main__":
    main()
