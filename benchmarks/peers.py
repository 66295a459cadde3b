"""What a step costs here and in other harnesses, as their users run them.

Run: make bench-env; python benchmarks/peers.py [--cases tiny 10ms] [--rounds 9]

All train the same network on the same samples on one process of one core, in micro-batches of 32:

    fermarsi, best, tutorial   those of step.py
    accelerate                 `prepare` and `backward` in a loop of its own
    fabric                     Lightning Fabric's `setup` and `backward`, likewise
    trainer                    Hugging Face's `Trainer`, with its log, norm and rate schedule
    lightning                  Lightning's `Trainer`, with the loss logged

The last four run by the environment that `make bench-env` makes, .venv/bench, whose torch is that
of ours; they save nothing and show no bar, and measure no metrics. All take turns, a block of steps
each in every round. A ratio is that of two blocks of one round; medians over all rounds, with
quartiles. `CPU` is that of the processor time, which a busy machine leaves as it is.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from step import CASES, MICRO_SIZE, Case, Pairs, TakesTurns, block_s, start
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

PYTHON = Path(__file__).parents[1] / ".venv/bench/bin/python"
OURS = ("fermarsi", "best", "tutorial")


def parts_of(case: Case) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(1)
    model = network_of(case)
    pairs: Any = Pairs()
    loader = DataLoader(pairs, MICRO_SIZE, shuffle=True)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader


def network_of(case: Case) -> nn.Module:
    """harness.networks.Mlp, without harness."""
    layers: list[nn.Module] = []
    for before, after in zip(case.dims, case.dims[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def endless(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def accelerate(case: Case, _: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator()
    model, optimizer, loader = accelerator.prepare(*parts_of(case))
    turns = TakesTurns(optimizer)
    for x, label in endless(loader):
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(x), label))
        optimizer.step()
        turns.step()


def fabric(case: Case, _: Path) -> None:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    network, its_optimizer, its_loader = parts_of(case)
    model, optimizer = fabric.setup(network, its_optimizer)
    loader = fabric.setup_dataloaders(its_loader)
    turns = TakesTurns(its_optimizer)
    for x, label in endless(loader):
        optimizer.zero_grad()
        fabric.backward(nn.functional.cross_entropy(model(x), label))
        optimizer.step()
        turns.step()


def lightning(case: Case, directory: Path) -> None:
    from lightning.pytorch import Callback, LightningModule, Trainer

    model, optimizer, loader = parts_of(case)
    turns = TakesTurns(optimizer)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            x, label = batch
            loss = nn.functional.cross_entropy(self.model(x), label)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

    class Turns(Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            turns.step()

    Trainer(
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        callbacks=[Turns()],
        default_root_dir=directory,
        enable_checkpointing=False,
        enable_progress_bar=False,
    ).fit(Module(), loader)


def trainer(case: Case, directory: Path) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model, optimizer, _ = parts_of(case)
    turns = TakesTurns(optimizer)

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    class Named(Dataset[dict[str, Any]]):
        def __init__(self) -> None:
            self.pairs = Pairs()

        def __len__(self) -> int:
            return len(self.pairs)

        def __getitem__(self, index: int) -> dict[str, Any]:
            x, label = self.pairs[index]
            return {"x": x, "labels": label}

    class Turns(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.step()

    asked = TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=MICRO_SIZE,
        learning_rate=1e-3,
        max_steps=1_000_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(Module(), asked, train_dataset=Named(), callbacks=[Turns()]).train()


PEERS: dict[str, Callable[[Case, Path], None]] = {
    "accelerate": accelerate,
    "fabric": fabric,
    "trainer": trainer,
    "lightning": lightning,
}


def start_peer(case: Case, arm: str, directory: Path) -> subprocess.Popen[str]:
    here = {
        "ACCELERATE_USE_CPU": "true",
        "BLOCK": str(case.block),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    return subprocess.Popen(
        [str(PYTHON), __file__, "--cases", case.name, "--arm", arm, "--directory", str(directory)],
        env={**os.environ, **here},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def measure(case: Case, rounds: int) -> dict[str, list[tuple[float, ...]]]:
    """Seconds of each block, by arm: (wall, of the processor)."""
    with tempfile.TemporaryDirectory(prefix="fermarsi-peers-") as name:
        directory = Path(name)
        arms = {arm: start(case, arm, directory)[0] for arm in OURS}
        arms |= {arm: start_peer(case, arm, directory) for arm in PEERS}
        found: dict[str, list[tuple[float, ...]]] = {arm: [] for arm in arms}
        try:
            for another in (False, True, True):  # the first steps touch memory for the first time
                for process in arms.values():
                    block_s(process, another=another)
            for number in range(rounds):
                for arm in arms if number % 2 else reversed(arms):
                    found[arm].append(block_s(arms[arm]))
        finally:
            for process in arms.values():
                process.kill()
                process.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=["tiny", "10ms"], choices=["tiny", "10ms"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--arm", choices=list(PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.arm is not None:
        PEERS[asked.arm](CASES[asked.cases[0]], asked.directory)
        return
    if not PYTHON.exists():
        raise SystemExit(f"{PYTHON} is missing. Make it: make bench-env")
    print(f"{asked.rounds} rounds; {os.cpu_count()} CPUs, torch {torch.__version__}\n")
    print(f"{'case':<8}{'loop':<12}{'us a step':>10}{'fermarsi is':>13}   quartiles        CPU")
    for name in asked.cases:
        case = CASES[name]
        found = measure(case, asked.rounds)
        for arm, blocks in found.items():
            pairs = list(zip(found["fermarsi"], blocks, strict=True))
            low, middle, high = statistics.quantiles([ours[0] / its[0] for ours, its in pairs], n=4)
            used = statistics.median(ours[1] / its[1] for ours, its in pairs)
            step_us = statistics.median(block[0] for block in blocks) / case.block * 1e6
            print(
                f"{name:<8}{arm:<12}{step_us:>10.0f}{middle:>13.2f}   {low:.2f} to {high:.2f}"
                f"{used:>11.2f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
