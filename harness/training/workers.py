"""How many processes prepare the micro-batches of each rank, where the config leaves it open: a
matter of time alone, for what a micro-batch holds depends on no process.
"""

import math
import os
import time

import numpy as np
import torch
from accelerate import PartialState

from harness.console import Console
from harness.data.settings import DataConfig
from harness.data.split import Split
from harness.ranks.ranks import Ranks
from harness.training.network_state import find_changes

# What a worker costs the process that it works for, by pickles, a pipe and shared memory, is about
# 1 ms a micro-batch
WORTH_S = 0.003
MOST = 8


def choose_workers(fetch_s: float, obstacle: str | None, spare: int) -> tuple[int, str | None]:
    """The number of workers, and why; None where a micro-batch takes less than they are worth.

    fetch_s: what a micro-batch takes; obstacle: why no other process can prepare it; spare: cores
    that a rank does not compute on.
    """
    if fetch_s < WORTH_S:
        return 0, None
    if math.isinf(fetch_s):
        return 0, obstacle
    number = 0 if obstacle is not None else max(0, min(spare, MOST))
    reason = obstacle or f"cores that a process does not compute on: {spare}"
    return number, f"a micro-batch of data.train takes {fetch_s * 1e3:.3g} ms, and {reason}"


def settle_workers(
    settings: DataConfig, micro_size: int, split: Split, ranks: Ranks, console: Console
) -> int:
    """As the config has it, or as rank 0 finds best; reported where it matters.

    Called by every rank. Raises DataError.
    """
    if settings.num_workers != "auto":
        return settings.num_workers

    def choose() -> tuple[int, str | None]:
        return choose_workers(*look_at(split, micro_size), spare_cores(ranks.size))

    number, why = ranks.decide(choose)
    if why is not None:
        console.say(f"data.num_workers: auto: {number}: {why}")
    return number


def look_at(split: Split, micro_size: int) -> tuple[float, str | None]:
    """Seconds that a micro-batch takes once what is opened at the first is open, and why
    other processes cannot prepare it. Raises DataError.
    """
    if hasattr(split.source, "mark"):
        return math.inf, "a stream is read by one process"
    indices = np.arange(min(len(split), micro_size), dtype=np.int64)
    took, batches = [], []
    for _ in range(3):
        begun = time.perf_counter()
        batches.append(split.fetch(indices, indices.astype(np.uint64), 0, training=True))
        took.append(time.perf_counter() - begun)
        if len(took) > 1 and not WORTH_S < min(took) < 10 * WORTH_S:
            break  # clear enough; another one settles what a busy machine blurs
    differs = find_changes(batches[0], batches[1])
    return min(took), "it differs when it is fetched again" if differs else None


def num_cores() -> int:
    """Cores of this machine that this process may use."""
    known = hasattr(os, "sched_getaffinity")  # Linux
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def spare_cores(num_ranks: int) -> int:
    """Cores of a rank that it does not compute on."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks))
    cores = num_cores()
    computing = torch.get_num_threads() if PartialState().device.type == "cpu" else 1
    return max(0, cores // here - computing)
