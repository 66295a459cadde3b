"""What each part of a step of a small network costs: what the time beyond a bare loop's buys.

Run: python benchmarks/step_parts.py [--rounds 15]

One training, in blocks of 100 steps: as it is, and with one part after another replaced by nothing
(a fetch by a list of micro-batches made before), in turns; then the best bare loop's own step, in
the same process. Microseconds a step of the main thread's processor time, medians of the rounds'
differences to the block before, which is whole, with quartiles. Parts lean on each other's caches,
so that they do not add up to the whole. `loss window alone`: 50 steps' values kept, read and taken
once, beside nothing.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from step import CASES, CONFIG, MICRO_SIZE, indexed

import harness.training.loop
from harness.ranks.heartbeat import Heartbeat
from harness.ranks.ranks import Ranks
from harness.training.launch import launch
from harness.training.losses import LossWindow
from harness.training.run import Run

BLOCK = 100
EMPTY = nullcontext()
Patch = list[tuple[Any, str, Any]]  # owner, attribute, what stands there instead


def nothing(*_: object, **__: object) -> None:
    pass


def parts_of(run: Run) -> dict[str, Patch]:
    """What is left out, by name."""
    batches = itertools.cycle([run.feed.next_step() for _ in range(64)])
    first = next(batches)
    count = run.engine.items.of(first)
    norm = torch.ones(())
    seeds: Patch = [
        (run.engine, "seed_forward", nothing),
        (run.feed._dataset.split, "_ambient", False),
    ]
    return {
        "seeds": seeds,
        "fetch (with its seeds)": [(run.feed, "next_step", lambda: next(batches))],
        "check of labels": [(run.feed._dataset.split, "check", nothing)],
        "number of items": [(run.engine.items, "of", lambda _: count)],
        "gradient norm": [(run.engine.sharing, "clip", lambda *_: norm)],
        "training metrics": [(run.train_metrics, "update", nothing)],
        "heartbeat": [(Heartbeat, "enter", nothing)],
        "ledger": [(run.ledger, "account", lambda _: EMPTY)],
        "note, console": [(Run, "begin_step", nothing)],
        "boundary": [(run.engine.boundary, "reach", nothing)],
        "wish, pulse": [(harness.training.loop, "wish", lambda _: 0)],
    }


class Turns:
    """In place of `train_step`: the time of each block of steps, by what is left out."""

    def __init__(self, rounds: int) -> None:
        self.train_step = harness.training.loop.train_step
        self.rounds = rounds
        self.found: dict[str, list[float]] = {}
        self.plan: list[tuple[str, Patch]] = []
        self.left = 3 * BLOCK  # the first steps touch memory for the first time
        self.name = ""
        self.kept: Patch = []
        self.begun = 0.0

    def __call__(self, run: Run) -> None:
        if self.left == 0:
            if self.name:
                spent = time.thread_time() - self.begun
                self.found.setdefault(self.name, []).append(spent / BLOCK * 1e6)
            put(self.kept)
            if not self.plan and self.rounds:
                parts = parts_of(run).items()
                self.plan = [one for part in parts for one in (part, (f"before {part[0]}", []))]
                self.rounds -= 1
            elif not self.plan:
                raise KeyboardInterrupt
            self.name, patch = self.plan.pop()
            self.kept = [(owner, key, vars(owner).get(key, _ABSENT)) for owner, key, _ in patch]
            put(patch)
            self.left = BLOCK
            self.begun = time.thread_time()
        self.left -= 1
        self.train_step(run)


_ABSENT = object()


def put(patch: Patch) -> None:
    for owner, key, value in patch:
        if value is _ABSENT:
            delattr(owner, key)
        else:
            setattr(owner, key, value)


def block_us(step: Callable[[], object]) -> float:
    begun = time.thread_time()
    for _ in range(BLOCK):
        step()
    return (time.thread_time() - begun) / BLOCK * 1e6


def bare() -> Callable[[], None]:
    """A step of the best bare loop."""
    model = CASES["tiny"].network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    loss_of, batches = nn.CrossEntropyLoss(), indexed(0, 1)

    def step() -> None:
        x, label = next(batches)
        loss_of(model(x), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def loss_window() -> Callable[[], None]:
    """Of one step: its values kept, and a fiftieth of reading them."""
    window, numbers = LossWindow(Ranks()), itertools.count(1)
    loss, items, norm = torch.ones(()), torch.tensor(MICRO_SIZE), torch.ones(())

    def step() -> None:
        window.add([loss], items, norm, skipped=False)
        number = next(numbers)
        if number % 50 == 0:
            window.read(number)
            window.take_pending()

    return step


def tell(name: str, values: list[float]) -> None:
    low, middle, high = statistics.quantiles(values, n=4)
    print(f"{name:<28}{middle:>8.1f}   ({low:.1f} to {high:.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    case, turns = CASES["tiny"], Turns(rounds)
    harness.training.loop.train_step = turns
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.yaml"
        given = {"DIR": directory, "NETWORK": case.spec(), "COMPILED": "false", "SIZE": "32"}
        text = CONFIG
        for key, value in given.items():
            text = text.replace(key, value)
        config.write_text(text)
        with open(Path(directory) / "output", "w") as output:
            out = os.dup(1)
            os.dup2(output.fileno(), 1)
            launch(config, [])
            os.dup2(out, 1)
    steps = {"best bare loop": bare(), "loss window alone": loss_window()}
    for step in steps.values():
        block_us(step)
    wholes = {name: values for name, values in turns.found.items() if name.startswith("before ")}
    print(f"{rounds} rounds; {os.cpu_count()} CPUs, torch {torch.__version__}; us a step\n")
    tell("whole step", list(itertools.chain(*wholes.values())))
    for name, step in steps.items():
        tell(name, [block_us(step) for _ in range(rounds)])
    print("\nless without")
    for name in sorted(turns.found.keys() - wholes.keys()):
        pairs = zip(wholes[f"before {name}"], turns.found[name], strict=True)
        tell(name, [whole - part for whole, part in pairs])


if __name__ == "__main__":
    main()
