"""What an evaluation costs beside a loop of a person's own over the same samples.

Run: python benchmarks/evaluation.py [--rounds 15]

Loops evaluate the same network on the same 4,096 samples, in micro-batches of 32, in turns:

    later      `evaluate`: loss, accuracy, balanced accuracy and F1, exact on any number of ranks;
               an evaluation but the first of a training, which has the micro-batches already
    first      the same, which fetches them from the source
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
from functools import partial
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
    print(f"{'network':<10}{'ms, bare':>10}{'':4}{'fermarsi is':>17}   quartiles        CPU")
    device = torch.device("cpu")
    for name, dims in NETWORKS.items():
        network, noise, task = Mlp(dims), Noise(), Classification("x", "label")
        task.fit_to(torch.zeros(1, 10))
        split = Split(noise, (), "noise", task.check)
        plans = [EvaluationPlan(split, MICRO_SIZE, keep=keep) for keep in (True, False)]
        arms: list[Callable[[], object]] = [
            partial(evaluate, network, task, plan, Ranks(), device) for plan in plans
        ]
        arms.append(partial(bare, network, noise))
        for arm in arms:
            arm()
        found = [[seconds(arm) for arm in arms] for _ in range(rounds)]
        for which, number in (("later", 0), ("first", 1)):
            ratios = [one[number][0] / one[2][0] for one in found]
            low, middle, high = statistics.quantiles(ratios, n=4)
            used = statistics.median(one[number][1] / one[2][1] for one in found)
            print(
                f"{name:<10}{statistics.median(one[2][0] for one in found) * 1e3:>10.1f}    "
                f"{which:<6}{middle:>11.2f}   {low:.2f} to {high:.2f}{used:>11.2f}"
            )


if __name__ == "__main__":
    main()
