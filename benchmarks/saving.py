"""What a checkpoint every ten steps costs a training in throughput.

    python benchmarks/saving.py [--cases digits large] [--rounds 9] [--directory DIR]

Two launches of one config take turns, a block of 50 steps (of `large`: 20, with 256 samples 10)
each in every round: one never saves, the other after every tenth step. A ratio is that of the
throughputs of one round; the median counts (aim: 0.99 while the disk keeps up). `CPU` is that of
the processor time of the process, all its threads included: what saves take of a machine without
spare cores. `held` and `done`: how long a save held the loop, and how long until it was durable;
medians. `large` is a network of 50 million parameters: 600 MB of weights and moments; with 64
samples a step it is bound by the memory that the optimizer and a save read and write alike, with
256 by computing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from step import block_s

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/digits.yaml"
BLOCKS = {"digits": 50, "large": 20, "large, 256 samples": 10}  # steps
ENDLESS = [
    "stop.targets=null",
    "stop.improvement=null",
    "stop.every={steps: 1000000}",
    "stop.budget={steps: 1000000}",
    "schedule={_target_: step.TakesTurns}",
    "checkpoint.keep_best=1",
]
_LARGE = "network.dims=[64, 4096, 4096, 4096, 4096, 10]"
CASES = {
    "digits": [],
    "large": [_LARGE, "batch={size: 64, micro_size: 32}"],
    "large, 256 samples": [_LARGE, "batch={size: 256, micro_size: 128}"],
}
ARMS = {"never": 1000000, "every 10 steps": 10}


def start(case: str, arm: str, directory: Path) -> subprocess.Popen[str]:
    run = directory / arm.replace(" ", "-")
    overrides = [*CASES[case], *ENDLESS, f"checkpoint.every={{steps: {ARMS[arm]}}}"]
    paths = [str(Path(__file__).parent), str(ROOT)]
    return subprocess.Popen(
        [sys.executable, "-m", "harness.train", str(CONFIG), f"run.dir={run}", *overrides],
        env={
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "BLOCK": str(BLOCKS[case]),
            "PYTHONPATH": os.pathsep.join(paths),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def measure(case: str, rounds: int, directory: Path) -> None:
    arms = {arm: start(case, arm, directory) for arm in ARMS}
    found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
    try:
        for process in arms.values():
            block_s(process, another=False)
        for number in range(rounds):
            for arm in ARMS if number % 2 else reversed(ARMS):
                found[arm].append(block_s(arms[arm]))
    finally:
        for process in arms.values():
            process.kill()
            process.wait()
    pairs = list(zip(*found.values(), strict=True))
    low, middle, high = statistics.quantiles([never[0] / saving[0] for never, saving in pairs], n=4)
    used = statistics.median(never[1] / saving[1] for never, saving in pairs)
    step_ms = 1000 * statistics.median(never[0] for never, _ in pairs) / BLOCKS[case]
    lines = (directory / "every-10-steps/metrics.jsonl").read_text().splitlines()
    saves = [one["save"] for one in map(json.loads, lines) if one.get("event") == "save"]
    held_s = statistics.median(one["stall_s"] for one in saves)
    total_s = statistics.median(one["total_s"] for one in saves)
    print(
        f"{case:<20}{step_ms:>9.1f}{middle:>12.3f}   {low:.3f} to {high:.3f}{used:>9.3f}"
        f"{1000 * held_s:>9.1f}{1000 * total_s:>9.1f}   {len(saves)} saves",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--directory", default=None, help="on the disk that is to be measured")
    arguments = parser.parse_args()
    print(
        f"{'case':<20}{'ms/step':>9}{'throughput':>12}   quartiles{'CPU':>14}{'held':>9}{'done':>9}"
    )
    for case in arguments.cases:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            measure(case, arguments.rounds, Path(directory))


if __name__ == "__main__":
    main()
