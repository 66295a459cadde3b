"""What the same bits on any number of ranks cost: a step with `run.exactness: elastic` beside one
with `resume`.

Run: python benchmarks/elastic.py [--ranks 1 2 4] [--rounds 15] [--width 900] [--block 6]
     [--parallel fsdp] [--memory]

Both are engines of the same processes, with a network, an optimizer and gradients of their own, and
take turns, a block of steps in each round: what the machine does meanwhile hits both. 4 slots of 64
samples; with four ranks each has one. A ratio is that of two blocks of one round; median and
quartiles over all rounds. `CPU` is that of the processor time of all ranks. Of ranks that share a
core it says more than the time, in which they wait for each other.

`sums` are the exchanges alone, of a flat tensor as large as the network, without any step: torch's
all_reduce, and what elastic does.

`--memory` says instead what a process needs at most while it makes its first three steps, of 16
slots, more than it has before: in bytes, and as a multiple of all gradients.

Aim: 1.05 where a step takes 10 ms or more.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

SLOTS, MICRO_SIZE, SETTLE = 4, 64, 6
CONFIG = """\
run: {name: elastic, exactness: EXACTNESS, seed: 1}
data: {train: {source: {_target_: elastic.Noise}}}
network: {_target_: harness.networks.Mlp, dims: [64, WIDTH, WIDTH, WIDTH, 10]}
task: {_target_: harness.tasks.Classification, input: x, target: label}
batch: {size: SIZE, micro_size: MICRO}
optimizer: {_target_: torch.optim.AdamW, lr: 1e-3}
train: {clip_grad_norm: 1.0}
stop: {every: {steps: 1000000}, budget: {steps: 1000000}}
parallel: PARALLEL
"""
PARALLEL = {
    "ddp": "{kind: ddp}",
    "fsdp": "{kind: fsdp, shard: ['0', '2', '4', '6']}",
    "hsdp": "{kind: hsdp, shard: ['0', '2', '4', '6'], replicate: 2}",
}


class Noise:
    """Samples of nothing."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"x": np.zeros(64, np.float32), "label": 0}


def step_of(
    exactness: str, width: int, parallel: str, slots: int = SLOTS, micro_size: int = MICRO_SIZE
) -> Callable[[], None]:
    """A step of this rank's."""
    from harness import components
    from harness.config.read import read_config
    from harness.ranks.ranks import Ranks
    from harness.training.engine import Engine
    from harness.training.items import Count
    from harness.training.parallel import start_accelerator

    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "config.yaml"
        words = {
            "EXACTNESS": exactness,
            "WIDTH": width,
            "PARALLEL": PARALLEL[parallel],
            "SIZE": slots * micro_size,
            "MICRO": micro_size,
        }
        text = CONFIG
        for word, value in words.items():
            text = text.replace(word, str(value))
        file.write_text(text)
        config = read_config(file, [])
    accelerator = start_accelerator("no", exactness, 60.0)
    ranks = Ranks.join(60.0)
    batch = {"x": torch.randn(micro_size, 64), "label": torch.randint(0, 10, (micro_size,))}
    engine = Engine(config, accelerator, components.build(config.task, "task"), batch)
    engine.shard(ranks)
    engine.open()
    engine.warm_up(ranks, batch, batch)
    share = slots // ranks.size

    def step() -> None:
        for slot in range(share):
            items = Count(torch.tensor(slots * micro_size), engine.sharing.averaged_over)
            with engine.accumulate(last=slot == share - 1):
                engine.forward_backward(batch, items)
        engine.update()

    return step


def all_reduce_of(length: int) -> Callable[[], None]:
    flat = torch.zeros(length)
    return lambda: dist.all_reduce(flat) and None


def elastic_sum_of(length: int) -> Callable[[], None]:
    """The exchange of one bucket, one partial sum of each rank."""
    from harness.ranks.ranks import Ranks

    ranks = Ranks.join(60.0)
    rows = torch.zeros(ranks.size, -(-length // ranks.size))
    received = torch.zeros(rows.numel())

    def act() -> None:
        ranks.start_exchange(rows, received, [rows.shape[1]] * ranks.size)()
        whole = received.view_as(rows)
        for other in range(1, ranks.size):
            whole[0].add_(whole[other])
        rows[ranks.rank] = whole[0]
        ranks.start_gather(rows)()

    return act


def rank_process(rank: int, size: int, port: int, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} if size > 1 else {}
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}
    width, parallel = arguments.width, arguments.parallel
    length = 64 * width + 2 * width * width + 10 * width
    if arguments.memory:
        weigh(rank, size, step_of(arguments.memory, width, parallel, 16, 4), length, arguments)
    else:
        kinds = {one: step_of(one, width, parallel) for one in ("elastic", "resume")}
        report(rank, size, "step", kinds, arguments.block, arguments.rounds)
    if size > 1 and parallel == "ddp" and not arguments.memory:
        kinds = {"elastic": elastic_sum_of(length), "all_reduce": all_reduce_of(length)}
        report(rank, size, "sums", kinds, arguments.block, arguments.rounds)
    if size > 1:
        dist.barrier()
        os._exit(0)


def weigh(
    rank: int, size: int, step: Callable[[], None], length: int, arguments: argparse.Namespace
) -> None:
    """Print the most memory that rank 0's steps took, beyond what it had before."""
    before = memory_of("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most so far
    for _ in range(3):
        step()
    peak, all_ranks = memory_of("VmHWM") - before, 4 * length
    if rank == 0:
        print(
            f"{size:<8}{arguments.parallel:<8}{arguments.memory:<10}{peak / 2**20:>8.1f} MiB"
            f"{peak / all_ranks:>8.2f}",
            flush=True,
        )


def memory_of(name: str) -> int:
    """Bytes of this process, as Linux has them."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{name}:")[2].split()[0])


def report(
    rank: int,
    size: int,
    what: str,
    kinds: Mapping[str, Callable[[], None]],
    block: int,
    rounds: int,
) -> None:
    found: dict[str, list[tuple[float, float]]] = {one: [] for one in kinds}
    for number in range(SETTLE + rounds):
        for kind in kinds if number % 2 else reversed(kinds):
            if size > 1:
                dist.barrier()
            begun = time.perf_counter(), time.process_time()
            for _ in range(block):
                kinds[kind]()
            used = torch.tensor(time.process_time() - begun[1], dtype=torch.float64)
            if size > 1:
                dist.all_reduce(used)
            found[kind].append((time.perf_counter() - begun[0], float(used)))
    if rank:
        return
    ours, theirs = ([*one[SETTLE:]] for one in found.values())
    pairs = list(zip(ours, theirs, strict=True))
    low, middle, high = statistics.quantiles([one[0] / other[0] for one, other in pairs], n=4)
    cpu = statistics.median(one[1] / other[1] for one, other in pairs)
    wall = [statistics.median(one for one, _ in blocks) / block * 1e3 for blocks in (ours, theirs)]
    print(
        f"{size:<8}{what:<8}{wall[0]:>8.1f}{wall[1]:>10.1f}"
        f"{middle:>10.2f}   {low:.2f} to {high:.2f}{cpu:>10.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], choices=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--width", type=int, default=900)
    parser.add_argument("--block", type=int, default=6)
    parser.add_argument("--parallel", choices=PARALLEL, default="ddp")
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    print(f"{arguments.rounds} rounds; {os.cpu_count()} CPUs, torch {torch.__version__}\n")
    if arguments.memory:
        print("ranks   parallel  mode       the most   of all gradients")
    else:
        print("ranks   what     elastic     other     ratio   quartiles         CPU   (ms)")
    modes = ("elastic", "resume") if arguments.memory else ("",)
    for size in arguments.ranks:
        for arguments.memory in modes:
            run(size, arguments)


def run(size: int, arguments: argparse.Namespace) -> None:
    """Start the ranks, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=rank_process, args=(rank, size, port, arguments))
        for rank in range(size)
    ]
    for one in processes:
        one.start()
    for one in processes:
        one.join()


if __name__ == "__main__":
    main()
