"""What the same bits on any number of ranks cost: a step with `run.exactness: elastic` beside one
with `resume`.

Run: python benchmarks/elastic.py [--ranks 1 2 4] [--rounds 15] [--width 900] [--block 6]

Both are engines of the same processes, with a network, an optimizer and gradients of their own, and
take turns, a block of steps in each round: what the machine does meanwhile hits both. 4 slots of 64
samples; with four ranks each has one. A ratio is that of two blocks of one round; median and
quartiles over all rounds. `CPU` is that of the processor time of all ranks. Of ranks that share a
core it says more than the time, in which they wait for each other.

`sums` are the exchanges alone, of a flat tensor as large as the network, without any step: torch's
all_reduce, and what elastic does.

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
batch: {size: 256, micro_size: 64}
optimizer: {_target_: torch.optim.AdamW, lr: 1e-3}
train: {clip_grad_norm: 1.0}
stop: {every: {steps: 1000000}, budget: {steps: 1000000}}
"""


class Noise:
    """Samples of nothing."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"x": np.zeros(64, np.float32), "label": 0}


def step_of(exactness: str, width: int) -> Callable[[], None]:
    """A step of this rank's."""
    from harness import components
    from harness.config.read import read_config
    from harness.ranks.ranks import Ranks
    from harness.training.engine import Engine
    from harness.training.items import Count
    from harness.training.parallel import start_accelerator

    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "config.yaml"
        file.write_text(CONFIG.replace("EXACTNESS", exactness).replace("WIDTH", str(width)))
        config = read_config(file, [])
    accelerator = start_accelerator("no", exactness, 60.0)
    ranks = Ranks.join(60.0)
    batch = {"x": torch.randn(MICRO_SIZE, 64), "label": torch.randint(0, 10, (MICRO_SIZE,))}
    engine = Engine(config, accelerator, components.build(config.task, "task"), batch)
    engine.shard(ranks)
    engine.open()
    engine.warm_up(ranks, batch, batch)
    share = SLOTS // ranks.size

    def step() -> None:
        for slot in range(share):
            items = Count(torch.tensor(SLOTS * MICRO_SIZE), engine.sharing.averaged_over)
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


def rank_process(rank: int, size: int, port: int, width: int, block: int, rounds: int) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} if size > 1 else {}
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}
    kinds = {one: step_of(one, width) for one in ("elastic", "resume")}
    report(rank, size, "step", kinds, block, rounds)
    if size > 1:
        length = 64 * width + 2 * width * width + 10 * width
        kinds = {"elastic": elastic_sum_of(length), "all_reduce": all_reduce_of(length)}
        report(rank, size, "sums", kinds, block, rounds)
        dist.barrier()
        os._exit(0)


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
    arguments = parser.parse_args()
    print(f"{arguments.rounds} rounds; {os.cpu_count()} CPUs, torch {torch.__version__}\n")
    print("ranks   what     elastic     other     ratio   quartiles         CPU   (ms)")
    context = multiprocessing.get_context("spawn")
    for size in arguments.ranks:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        rest = (size, port, arguments.width, arguments.block, arguments.rounds)
        processes = [
            context.Process(target=rank_process, args=(rank, *rest)) for rank in range(size)
        ]
        for one in processes:
            one.start()
        for one in processes:
            one.join()


if __name__ == "__main__":
    main()
