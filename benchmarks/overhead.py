"""What interruption handling and tracking cost a step.

Run: python benchmarks/overhead.py [--ranks 1 2] [--blocks 30]

Aim: at least 0.98 of the steps per second of a loop without them, on steps of about 10 ms.

    bare       `train_step` and a look at the losses at each log point: no signals, no agreement
               between ranks, no files, no records
    fit        the loop as it is: all that, with records in metrics.jsonl
    trackers   the same with Weights & Biases (offline), TensorBoard and Trackio

The three train the same network in processes of their own and take turns, a block of steps each:
what the machine does meanwhile hits all of them. A ratio is that of two blocks side by side; the
median over all blocks counts.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import harness.training.train
from harness.training.agenda import Request
from harness.training.loop import train_step, warm_up_batches
from harness.training.run import Run

BLOCK = 40  # steps
LOG_EVERY = 20
CONFIG = """\
run: {name: overhead, dir: DIR/run, seed: 1}
data: {train: {source: {_target_: overhead.Noise}}}
network: {_target_: harness.networks.Mlp, dims: [512, 1024, 768, 10]}
task: {_target_: harness.tasks.Classification, input: x, target: label}
batch: {size: 64, micro_size: 32}
optimizer: {_target_: overhead.TakesTurns, lr: 1e-3}
stop: {every: {steps: 1000000}, budget: {steps: 1000000}}
log: {every: {steps: LOG_EVERY}}
"""
TRACKERS = (
    "tracking: {wandb: {project: overhead, mode: offline}, backends: [tensorboard, trackio]}\n"
)
ARMS = {"bare": "", "fit": "", "trackers": TRACKERS}


class Noise:
    """4,096 samples of nothing."""

    def __init__(self) -> None:
        draw = np.random.default_rng(1)
        self.x = draw.normal(size=(4096, 512)).astype(np.float32)
        self.labels = draw.integers(0, 10, 4096)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"x": self.x[index], "label": self.labels[index]}

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        return {"x": self.x[indices], "label": self.labels[indices]}


class TakesTurns(torch.optim.SGD):
    """SGD that on rank 0, after each block of steps, tells how long it took and waits to be asked
    for another; the other ranks wait for rank 0.
    """

    steps, begun = 0, 0.0

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        self.steps += 1
        if self.steps % BLOCK == 0 and os.environ.get("RANK", "0") == "0":
            print(f"BLOCK {time.perf_counter() - self.begun}", flush=True)
            if not sys.stdin.readline():
                os._exit(0)
            self.begun = time.perf_counter()
        return result


def bare(run: Run) -> Any:
    """The loop without what this benchmark is about."""
    run.engine.warm_up(run.ranks, *warm_up_batches(run))
    while True:
        train_step(run)
        if run.agenda.due(run.step, Request.NONE).log:
            run.losses.read(run.step)
            run.losses.take_pending()


def work(config: Path, arm: str) -> None:
    """One rank of one arm; ends when rank 0 is asked for nothing more."""
    from harness.training.launch import launch

    if arm == "bare":
        harness.training.train.fit = bare
    raise SystemExit(launch(config, []))


def start(arm: str, size: int, directory: Path) -> list[subprocess.Popen[str]]:
    """The processes of an arm; the first is rank 0."""
    (directory / arm).mkdir()
    config = directory / arm / "config.yaml"
    config.write_text(
        (CONFIG + ARMS[arm])
        .replace("DIR", str(directory / arm))
        .replace("LOG_EVERY", str(LOG_EVERY))
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = (
        {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if size > 1
        else {}
    )
    here = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent),
        "TRACKIO_DIR": str(directory / "trackio"),
    }
    return [
        subprocess.Popen(
            [sys.executable, __file__, "--config", str(config), "--arm", arm],
            env={
                **os.environ,
                **here,
                **place,
                **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if place else {}),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(size)
    ]


def block_s(process: subprocess.Popen[str], *, another: bool = True) -> float:
    """The seconds of the next block of a rank 0."""
    assert process.stdin is not None
    assert process.stdout is not None
    if another:
        process.stdin.write("\n")
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith("BLOCK"):
            return float(line.split()[1])
    raise SystemExit(f"an arm ended: {process.args}")


def measure(size: int, blocks: int) -> dict[str, list[float]]:
    """Seconds of each block, by arm."""
    with tempfile.TemporaryDirectory(prefix="fermarsi-overhead-") as directory:
        arms = {arm: start(arm, size, Path(directory)) for arm in ARMS}
        try:
            for processes in arms.values():
                block_s(processes[0], another=False)
            for _ in range(3):  # imports of the trackers, first touches of memory
                for processes in arms.values():
                    block_s(processes[0])
            time.sleep(5.0)
            found: dict[str, list[float]] = {arm: [] for arm in ARMS}
            for number in range(blocks):
                for arm in list(ARMS) if number % 2 else reversed(ARMS):
                    found[arm].append(block_s(arms[arm][0]))
            return found
        finally:
            for processes in arms.values():
                for process in processes:
                    process.kill()
                    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        work(arguments.config, arguments.arm)
    print(
        f"{arguments.blocks} blocks of {BLOCK} steps, a record every {LOG_EVERY}; {os.cpu_count()} "
        "CPUs\n"
    )
    print(f"{'ranks':>5}  {'arm':<9}{'ms a step':>10}{'of bare':>9}   quartiles")
    for size in arguments.ranks:
        found = measure(size, arguments.blocks)
        for arm, seconds in found.items():
            ratios = [
                without / with_it for without, with_it in zip(found["bare"], seconds, strict=True)
            ]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f"{size:>5}  "
                f"{arm:<9}{statistics.median(seconds) / BLOCK * 1e3:>10.2f}{middle:>9.3f}   "
                f"{low:.3f} to {high:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
