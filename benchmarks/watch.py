"""What it costs that ranks watch each other.

Run: python benchmarks/watch.py [--ranks 2 1024]

Aim: below 0.5 % of a step of 10 ms. Told: the marks that a step leaves in the main thread (of one
slot; each further slot leaves two more); the processor time that the thread takes a second, on a
rank that only reports, and on the one that reads the reports of so many ranks. The other ranks are
simulated: their reports lie in a real store.
"""

import argparse
import json
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.ranks.board import Board
from harness.ranks.heartbeat import AGREEMENT, BACKWARD, DATA, FORWARD, UPDATE
from harness.ranks.ranks import Ranks
from harness.ranks.watch import PACE_S, Watch, _Link

STEP_S, AIM = 0.01, 0.005


def seconds(work: Callable[[], Any], times: int) -> float:
    """Processor time of this thread, by call."""
    begun = time.thread_time()
    for _ in range(times):
        work()
    return (time.thread_time() - begun) / times


def marks_s() -> float:
    """Of what a step leaves: five phases, and two waits for other ranks."""
    heart = Ranks().heartbeat

    def step() -> None:
        for phase in (DATA, FORWARD, BACKWARD, UPDATE, AGREEMENT):
            heart.enter(phase)
        for _ in range(2):
            with heart:
                pass

    return seconds(step, 20_000)


def rounds_s(size: int) -> tuple[float, float]:
    """(a rank that only reports, the one that oversees)."""
    watch = Watch(Ranks(0, size), "leave", Path("/nonexistent"))
    board = Board()
    for rank in range(size):
        report = replace(watch._report(1.0), rank=rank)
        board.put(f"watch/{rank}", json.dumps(report.to_json()))
    overseer, other = _Link(board, 0), _Link(board, size - 1)

    def oversee() -> None:
        overseer.exchange(watch._report(1.0))
        reports = overseer.reports(size)
        assert reports is not None
        watch._oversee(reports, 1.0)

    oversee()
    exchange_s = seconds(lambda: other.exchange(watch._report(1.0)), 200)
    return exchange_s, exchange_s + seconds(oversee, 20) / PACE_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 64, 1024])
    sizes = parser.parse_args().ranks
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    marks = marks_s()
    print(f"marks of a step: {marks * 1e6:.1f} us")
    for size in sizes:
        other, overseer = rounds_s(size)
        for who, round_s in (("reports", other), ("oversees", overseer)):
            share = marks / STEP_S + round_s
            verdict = "met" if share < AIM else "MISSED"
            print(
                f"{size:>5} ranks, one that {who:<8} {round_s * 1e3:8.2f} ms a second; with the "
                f"marks {share:.2%} of steps of 10 ms (aim {AIM:.1%}: {verdict})"
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
