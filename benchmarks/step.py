"""What a step costs beside the same step in a loop of a person's own.

Run: python benchmarks/step.py [--cases tiny tiny/accumulate tiny/ranks ...] [--rounds 15]

Loops train the same network on the same samples, each in processes of its own:

    fermarsi   `fit` with everything on: training metrics, gradient norm, log, stop controller,
               interruption
    best       the best bare loop one can write: fused AdamW, a micro-batch fetched at once by its
               indices, zero_grad(set_to_none=True); no metrics, no log
    tutorial   as tutorials write it: the default DataLoader over single samples, AdamW as it
               comes; no metrics, no log
    eager      instead of it in the cases of compiled networks, where `fermarsi` has train.compile
               and `best` network.compile(dynamic=False): fermarsi without

They take turns, a block of steps each in every round: what the machine does meanwhile hits all of
them. A ratio is that of two blocks of one round; the median over all rounds counts. `CPU` is that
of the processor time of rank 0, with all its threads, which a busy machine leaves as it is; `main`
of its main thread alone: on several processes the thread in which gloo waits for sockets takes from
100 to 1,200 us a step of the very same loop.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

sys.path.insert(0, str(Path(__file__).parents[1]))

MICRO_SIZE = 32
NUM_SAMPLES = 4096
# Widths of an Mlp, or the width of another network, and the steps of a block
NETWORKS = {
    "tiny": ([64, 64, 10], 200),
    "10ms": ([64, 1024, 1024, 1024, 10], 20),
    "100-tensors": ([64, *[32] * 49, 10], 60),
    "1000-tensors": ([64, *[16] * 499, 10], 10),
    "transformer": ([128], 10),
    "convnet": ([32], 10),
}
SHAPES = {"": (1, 1), "/accumulate": (1, 4), "/ranks": (2, 1)}  # ranks, micro-batches of each
COMPILED = ("tiny", "10ms", "transformer", "convnet")
CONFIG = """\
run: {name: step, dir: DIR/run, seed: 1}
data: {train: {source: {_target_: step.Noise}}}
network: NETWORK
task: {_target_: harness.tasks.Classification, input: x, target: label}
batch: {size: SIZE, micro_size: 32}
optimizer: {_target_: torch.optim.AdamW, lr: 1e-3}
stop: {every: {steps: 1000000}, budget: {steps: 1000000}}
log: {every: {steps: 50}}
train: {compile: COMPILED}
"""


@dataclass(frozen=True)
class Case:
    """What the loops train, on how many ranks, and by how many micro-batches a step and rank."""

    name: str
    dims: list[int]
    block: int
    ranks: int
    micro_batches: int
    compiled: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        return ("fermarsi", "best", "eager" if self.compiled else "tutorial")

    def network(self) -> nn.Module:
        from harness.networks import Mlp

        if len(self.dims) > 1:
            return Mlp(self.dims)
        return (Convolutions if self.name.startswith("convnet") else Transformer)(*self.dims)

    def spec(self) -> str:
        """The network in a config."""
        if len(self.dims) > 1:
            return f"{{_target_: harness.networks.Mlp, dims: {self.dims}}}"
        kind = "Convolutions" if self.name.startswith("convnet") else "Transformer"
        return f"{{_target_: step.{kind}, width: {self.dims[0]}}}"


CASES = {
    network + shape: Case(network + shape, dims, block, ranks, micro_batches)
    for network, (dims, block) in NETWORKS.items()
    for shape, (ranks, micro_batches) in SHAPES.items()
}
CASES |= {
    f"{network}/compiled": Case(f"{network}/compiled", *NETWORKS[network], 1, 1, compiled=True)
    for network in COMPILED
}


class Transformer(nn.Module):
    """Of two layers over 64 numbers, as those of series and of small languages are. x: (B, 64) ->
    (B, 10).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        layers = [
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True)
            for _ in range(2)
        ]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(self.embed(x.unsqueeze(2))).mean(1))
        return logits


class Convolutions(nn.Module):
    """Four layers, each with its norm and activation, over 64 numbers as an image of 28 x 28.
    x: (B, 64) -> (B, 10).
    """

    def __init__(self, width: int) -> None:
        from harness.networks import ConvNet

        super().__init__()
        self.image = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Upsample(size=28))
        self.net = ConvNet(1, [width, 2 * width], 10, depth=2, norm="layer", activation="GELU")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.image(x))
        return logits


class Noise:
    """Samples of nothing, one by one or many at once."""

    def __init__(self) -> None:
        draw = np.random.default_rng(1)
        self.x = draw.normal(size=(NUM_SAMPLES, 64)).astype(np.float32)
        self.labels = draw.integers(0, 10, NUM_SAMPLES)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"x": self.x[index], "label": self.labels[index]}

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        return {"x": self.x[indices], "label": self.labels[indices]}


class Pairs(Noise):
    """The same as a tutorial's dataset gives them."""

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(self.x[index]), int(self.labels[index])

    __getitems__ = None  # type: ignore[assignment]


class TakesTurns:
    """Stepped as a schedule is: on rank 0, after each block of steps, tells how long it took and
    waits to be asked for another; the other ranks wait for rank 0.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.left = self.block = int(os.environ["BLOCK"])
        self.begun = (0.0, 0.0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def step(self) -> None:
        self.left -= 1
        if self.left == 0 and os.environ.get("RANK", "0") == "0":
            spent = [now - then for now, then in zip(clocks(), self.begun, strict=True)]
            print("BLOCK", *spent, flush=True)
            if not sys.stdin.readline():
                os._exit(0)
            self.left = self.block
            self.begun = clocks()


def clocks() -> tuple[float, float, float]:
    """Seconds: wall, of the processor, of the processor in this thread."""
    return time.perf_counter(), time.process_time(), time.thread_time()


def bare(case: Case, arm: str) -> None:
    """One rank of a loop of a person's own; ends when rank 0 is asked for nothing more."""
    torch.manual_seed(1)
    rank = int(os.environ.get("RANK", "0"))
    model: nn.Module = case.network()
    if case.compiled:
        model.compile(dynamic=False)
    if case.ranks > 1:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    fused = True if arm == "best" else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    turns = TakesTurns(optimizer)
    loss_of = nn.CrossEntropyLoss()
    batches = indexed(rank, case.ranks) if arm == "best" else loaded(rank, case.ranks)
    model.train()
    while True:
        for number in range(case.micro_batches):
            x, label = next(batches)
            last = number == case.micro_batches - 1
            alone = isinstance(model, DistributedDataParallel) and not last
            with model.no_sync() if alone else nullcontext():  # type: ignore[operator]
                (loss_of(model(x), label) / case.micro_batches).backward()
        optimizer.step()
        turns.step()
        optimizer.zero_grad(set_to_none=True)


def indexed(rank: int, ranks: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Micro-batches fetched at once, in a new order each epoch."""
    noise = Noise()
    x, labels = torch.from_numpy(noise.x), torch.from_numpy(noise.labels)
    order = torch.Generator().manual_seed(1)
    while True:
        for chosen in torch.randperm(NUM_SAMPLES, generator=order)[rank::ranks].split(MICRO_SIZE):
            yield x[chosen], labels[chosen]


def loaded(rank: int, ranks: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Micro-batches of the default loader."""
    pairs: Any = Pairs()
    sampler = DistributedSampler(pairs, ranks, rank) if ranks > 1 else None
    loader = DataLoader(pairs, MICRO_SIZE, shuffle=sampler is None, sampler=sampler)
    while True:
        yield from loader


def work(case: Case, arm: str, config: Path) -> None:
    """One rank of one arm."""
    if arm not in ("fermarsi", "eager"):
        bare(case, arm)
    import harness.training.loop
    from harness.training.launch import launch

    turns, train_step = TakesTurns(), harness.training.loop.train_step

    def counted(run: Any) -> None:
        train_step(run)
        turns.step()

    harness.training.loop.train_step = counted
    raise SystemExit(launch(config, []))


def start(case: Case, arm: str, directory: Path) -> list[subprocess.Popen[str]]:
    """The processes of an arm; the first is rank 0."""
    (directory / arm).mkdir()
    config = directory / arm / "config.yaml"
    size = MICRO_SIZE * case.micro_batches * case.ranks
    config.write_text(
        CONFIG.replace("DIR", str(directory / arm))
        .replace("NETWORK", case.spec())
        .replace("COMPILED", str(case.compiled and arm != "eager").lower())
        .replace("SIZE", str(size))
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {
        "ACCELERATE_USE_CPU": "true",
        "BLOCK": str(case.block),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(case.ranks)}
    command = [sys.executable, __file__, "--arm", arm, "--config", str(config), "--cases"]
    return [
        subprocess.Popen(
            [*command, case.name],
            env={
                **os.environ,
                **here,
                **({**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} if case.ranks > 1 else {}),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(case.ranks)
    ]


def block_s(process: subprocess.Popen[str], *, another: bool = True) -> tuple[float, ...]:
    """The seconds of the next block of a rank 0, by `clocks`."""
    assert process.stdin is not None
    assert process.stdout is not None
    if another:
        process.stdin.write("\n")
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith("BLOCK"):
            return tuple(map(float, line.split()[1:]))
    raise SystemExit(f"an arm ended: {process.args}")


def measure(case: Case, rounds: int) -> dict[str, list[tuple[float, ...]]]:
    """Seconds of each block, by arm and `clocks`."""
    with tempfile.TemporaryDirectory(prefix="fermarsi-step-") as directory:
        arms = {arm: start(case, arm, Path(directory)) for arm in case.arms}
        try:
            for another in (False, True, True):  # the first steps touch memory for the first time
                for processes in arms.values():
                    block_s(processes[0], another=another)
            found: dict[str, list[tuple[float, ...]]] = {arm: [] for arm in case.arms}
            for number in range(rounds):
                for arm in case.arms if number % 2 else reversed(case.arms):
                    found[arm].append(block_s(arms[arm][0]))
            return found
        finally:
            for processes in arms.values():
                # The last rank first: one whose peer is gone complains
                for process in reversed(processes):
                    process.kill()
                    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        work(CASES[arguments.cases[0]], arguments.arm, arguments.config)
    print(f"{arguments.rounds} rounds; {os.cpu_count()} CPUs, torch {torch.__version__}\n")
    head = f"{'case':<24}{'loop':<10}{'us a step':>10}{'fermarsi is':>13}"
    print(f"{head}   quartiles        CPU   main")
    for name in arguments.cases:
        case = CASES[name]
        found = measure(case, arguments.rounds)
        for arm, blocks in found.items():
            pairs = list(zip(found["fermarsi"], blocks, strict=True))
            low, middle, high = statistics.quantiles([ours[0] / its[0] for ours, its in pairs], n=4)
            used, main_thread = (
                statistics.median(ours[clock] / its[clock] for ours, its in pairs)
                for clock in (1, 2)
            )
            print(
                f"{name:<24}{arm:<10}"
                f"{statistics.median(one[0] for one in blocks) / case.block * 1e6:>10.0f}"
                f"{middle:>13.2f}   {low:.2f} to {high:.2f}{used:>11.2f}{main_thread:>7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
