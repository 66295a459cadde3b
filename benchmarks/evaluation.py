"""What an evaluation costs beside a loop of a person's own over the same samples.

Run: python benchmarks/evaluation.py [--rounds 15]

Two loops evaluate the same network on the same 4,096 samples, in micro-batches of 32, in turns:

    fermarsi   `evaluate`: loss, accuracy, balanced accuracy and F1, exact on any number of ranks
    bare       the best one can write: micro-batches fetched at once by their indices, the loss and
               the number of right answers summed on the device and read at the end

A ratio is that of one round; the median over all rounds counts; `CPU` is that of the processor
time, the firmer one where others work as well. Aim: at most 1.05.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from step import MICRO_SIZE, NUM_SAMPLES, Noise

from harness.data.split import Split
from harness.networks import Mlp
from harness.ranks.ranks import Ranks
from harness.tasks import Classification
from harness.training.evaluation import EvaluationPlan, evaluate

NETWORKS = {"tiny": [64, 64, 10], "1 ms": [64, 1024, 1024, 10]}


def bare(network: nn.Module, noise: Noise) -> tuple[float, float]:
    """(mean loss, accuracy)."""
    x, labels = torch.from_numpy(noise.x), torch.from_numpy(noise.labels)
    loss_sum, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    network.eval()
    with torch.no_grad():
        for chosen in torch.arange(NUM_SAMPLES).split(MICRO_SIZE):
            logits, targets = network(x[chosen]), labels[chosen]
            loss_sum += nn.functional.cross_entropy(logits, targets, reduction="sum")
            right += (logits.argmax(1) == targets).sum()
    network.train()
    return float(loss_sum) / NUM_SAMPLES, int(right) / NUM_SAMPLES


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, of the processor)."""
    begun, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{rounds} rounds; {os.cpu_count()} CPUs, torch {torch.__version__}\n")
    print(f"{'network':<10}{'ms, bare':>10}{'fermarsi is':>13}   quartiles        CPU")
    device = torch.device("cpu")
    for name, dims in NETWORKS.items():
        network, noise, task = Mlp(dims), Noise(), Classification("x", "label")
        task.fit_to(torch.zeros(1, 10))
        plan = EvaluationPlan(Split(noise, (), "noise", task.check), MICRO_SIZE, keep=True)
        ours: Callable[[], object] = lambda: evaluate(network, task, plan, Ranks(), device)  # noqa: B023, E731 - called in this round
        plain: Callable[[], object] = lambda: bare(network, noise)  # noqa: B023, E731 - the same
        ours(), plain()
        pairs = [(seconds(ours), seconds(plain)) for _ in range(rounds)]
        low, middle, high = statistics.quantiles([mine[0] / its[0] for mine, its in pairs], n=4)
        used = statistics.median(mine[1] / its[1] for mine, its in pairs)
        print(
            f"{name:<10}{statistics.median(other[0] for _, other in pairs) * 1e3:>10.1f}"
            f"{middle:>13.2f}   {low:.2f} to {high:.2f}{used:>11.2f}"
        )


if __name__ == "__main__":
    main()
