"""What a verdict costs: to reach, for histories of several lengths, and to tell every process.

Run: python benchmarks/stopping.py

Targets: below 50 microseconds with 5 criteria and 10,000 evaluations of history, and no dearer than
with 10.
"""

import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from harness.ranks.meeting import leave
from harness.ranks.ranks import Ranks
from harness.stopping.controller import StopController
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Evaluation, MetricInfo

LENGTHS = (10, 1_000, 10_000)
WORLD_SIZES = (2, 4, 8)
METRICS = {
    **{f"{split}/accuracy": MetricInfo("max", 0.0, 1.0) for split in ("train", "val")},
    **{f"{split}/loss": MetricInfo("min", 0.0) for split in ("train", "val")},
    "val/f1": MetricInfo("max", 0.0, 1.0),
}
SETTINGS = StopSettings.model_validate(
    {
        "targets": {"accuracy": {"at_least": 1.0}, "val/loss": {"at_most": 0.0}},
        "improvement": [{"metric": name, "at_least": "1%", "patience": 10**9} for name in METRICS],
        "divergence": {"metric": "val/loss", "ratio_to_best": 1e12},
        "budget": {"steps": 10**9, "hours": 1e9},
    }
)


def evaluations(first: int, count: int) -> list[Evaluation]:
    draw = random.Random(first)
    return [
        Evaluation(
            step,
            step / 7,
            step * 64,
            step / 3600,
            {name: draw.uniform(0.01, 0.99) for name in METRICS},
        )
        for step in range(first, first + count)
    ]


def cost_of_a_verdict(length: int, count: int = 200, repeats: int = 9) -> float:
    """Microseconds of CPU a verdict after `length` evaluations: the fastest of repeats, each on a
    controller that was given that history.
    """
    history, next_ones = evaluations(1, length), evaluations(length + 1, count)
    costs = []
    for _ in range(repeats):
        controller = StopController(SETTINGS, METRICS)
        for evaluation in history:
            controller.judge(evaluation)
        begin = time.process_time()
        for evaluation in next_ones:
            controller.judge(evaluation)
        costs.append((time.process_time() - begin) / count * 1e6)
    return min(costs)


def cost_of_a_restore(length: int) -> float:
    """Milliseconds of CPU to take a history of `length` evaluations back."""
    controller = StopController(SETTINGS, METRICS)
    for evaluation in evaluations(1, length):
        controller.judge(evaluation)
    state, rows = controller.state(), controller.history()
    begin = time.process_time()
    StopController(SETTINGS, METRICS).restore(state, rows)
    return (time.process_time() - begin) * 1e3


def broadcast(rank: int, size: int, port: int, path: str, count: int = 300) -> None:
    """One process of a group that lets rank 0 judge; rank 0 leaves the median microseconds of a
    decision.
    """
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size
    )
    ranks = Ranks.join()
    controller = StopController(SETTINGS, METRICS)
    costs = []
    for evaluation in evaluations(1, count):
        ranks.wait_for_all()
        begin = time.perf_counter()
        ranks.decide(judging(controller, evaluation))
        costs.append((time.perf_counter() - begin) * 1e6)
    ranks.wait_for_all()
    if rank == 0:
        Path(path).write_text(str(statistics.median(costs)))
    leave()


def judging(controller: StopController, evaluation: Evaluation) -> Callable[[], object]:
    return lambda: controller.judge(evaluation).to_json()


def cost_of_a_decision(size: int) -> float:
    """Microseconds, on rank 0, from the evaluation to the verdict that every one of `size`
    processes has been sent.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as directory:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        result = Path(directory) / "cost"
        # Torch's
        spawn(broadcast, args=(size, port, str(result)), nprocs=size)  # type: ignore[no-untyped-call] # see above
        return float(result.read_text())


def cost_of_starting_replay(repeats: int = 5) -> float:
    """Milliseconds for `fermarsi replay` on a history of 100 evaluations, from the start of Python
    to its end: the fastest of some.
    """
    with tempfile.TemporaryDirectory() as directory:
        history, config = Path(directory, "history.csv"), Path(directory, "config.yaml")
        history.write_text(
            "step,epoch,val/accuracy\n"
            + "".join(f"{step},{step},{1 - 1 / step}\n" for step in range(1, 101))
        )
        config.write_text(
            "stop: {improvement: {metric: val/accuracy, at_least: 5%, patience: 5}}\n"
        )
        command = [
            sys.executable,
            "-c",
            "from harness.cli import main; main()",
            "replay",
            str(history),
            "--config",
            str(config),
            "--json",
        ]
        costs = []
        for _ in range(repeats):
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            costs.append((time.perf_counter() - begin) * 1e3)
        return min(costs)


def main() -> None:
    print(
        f"{len(SETTINGS.improvement)} criteria, {len(SETTINGS.targets)} targets, {os.cpu_count()} "
        "CPUs\n"
    )
    print(f"{'history':>10}  {'us a verdict':>12}  {'ratio':>6}  {'ms to restore':>13}")
    costs = {length: cost_of_a_verdict(length) for length in LENGTHS}
    for length, cost in costs.items():
        print(
            f"{length:>10,}  {cost:>12.1f}  {cost / costs[LENGTHS[0]]:>6.2f}  "
            f"{cost_of_a_restore(length):>13.1f}"
        )
    print(f"\n{'processes':>10}  {'us a verdict, broadcast':>23}")
    for size in WORLD_SIZES:
        print(f"{size:>10}  {cost_of_a_decision(size):>23.0f}", flush=True)
    print(
        f"\nfermarsi replay, 100 evaluations: {cost_of_starting_replay():.0f} ms from start to end"
    )


if __name__ == "__main__":
    main()
