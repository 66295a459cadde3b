"""What a training loses when it is killed again and again, with `checkpoint.every: auto`.

    python benchmarks/storm.py [--mean 30] [--lives 12] [--seed 1] [--width 1024] [--directory DIR]

One training of digits by a wide network (13 MB of weights and moments at width 1024), whose
process is killed after times drawn from an exponential distribution of that mean; the last life
ends by itself. `auto` is told nothing: it sees the failures. Targets: saves cost at most 1 % of the
training, the median of the work that a kill undoes is at most twice the interval that the formula
gave, and 97 % of the time goes into what a training without saves and kills would do as well
(steps, waits for data, evaluations). That is told with and without the start of each process, which
takes its share of lives this short; the processes are forked from one that has everything imported.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.checkpoint.read import list_checkpoints
from harness.rundir.crashes import FILE, last_crash
from harness.training.launch import launch

ROOT = Path(__file__).parents[1]
LONG = 10**9


def live(run: Path, overrides: list[str], limit_s: float) -> int | None:
    """One launch, in a process of its own; its exit code, None if it was killed."""
    child = os.fork()
    if child == 0:
        with open(run.parent / "output", "a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os._exit(launch(ROOT / "configs" / "digits.yaml", [f"run.dir={run}", *overrides]))
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def events(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [one for one in map(json.loads, lines) if one["kind"] == "event"]


def undone_steps(run: Path, born: float) -> int | None:
    """The steps since the last checkpoint of a launch that was killed; None before its first.

    born: when it began, in seconds since the epoch.
    """
    crash = last_crash(run)
    if crash is None or (run / FILE).stat().st_mtime < born:
        return None
    saved = [one.step for one in list_checkpoints(run / "checkpoints") if one.manifest is not None]
    return crash.step - 1 - max(saved, default=0)


def storm(run: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The run, killed `lives` times and then ended."""
    drawn = random.Random(arguments.seed)
    overrides = [
        f"network.dims=[64, {arguments.width}, {arguments.width}, 10]",
        "checkpoint.every=auto",
        "stop.targets=null",
        "stop.improvement=null",
        "stop.every={epochs: 50}",
        f"stop.budget={{steps: {LONG}}}",
        "run.max_crashes=1000",
        "log.every={steps: 20}",
    ]
    undone: list[int] = []
    intervals: list[float] = []
    for number in range(arguments.lives):
        limit_s = drawn.expovariate(1 / arguments.mean)
        born = time.time()
        code = live(run, overrides, limit_s)
        assert code is None, f"ended with {code}: {(run.parent / 'output').read_text()[-2000:]}"
        steps = undone_steps(run, born)
        told = [one["seconds"] for one in events(run) if one["event"] == "save_interval"]
        if steps is not None and told:
            undone.append(steps)
            intervals.append(told[-1])
        print(f"life {number + 1}: {limit_s:.1f} s, {steps} steps undone", flush=True)
    last = max(one.step for one in list_checkpoints(run / "checkpoints"))
    code = live(run, [*overrides, f"stop.budget.steps={last + 500}"], 600.0)
    assert code == 0, code
    outcome = json.loads((run / "outcome.json").read_text())
    trainer = outcome["time"]
    kept = trainer["compute_s"] + trainer["data_wait_s"]
    step_s = kept / outcome["step"]
    saves = [one["save"] for one in events(run) if one["event"] == "save"]
    return {
        "failures": arguments.lives,
        "steps": outcome["step"],
        "step_ms": 1000 * step_s,
        "saves_reported": len(saves),
        "stall_share": trainer["checkpoint_stall_s"] / kept,
        "undone_s": [steps * step_s for steps in undone],
        "intervals_s": intervals,
        "accounts": {name: trainer[f"{name}_s"] for name in (*KEPT, *LOST, *STARTS)},
        "told": [one["reason"] for one in events(run) if one["event"] == "save_interval"][-1],
    }


KEPT = ("compute", "data_wait", "evaluation")
LOST = ("checkpoint_stall", "work_lost")
STARTS = ("start_up", "resume", "idle")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mean", type=float, default=30.0, help="seconds between two kills")
    parser.add_argument("--lives", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--directory", default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        found = storm(Path(directory) / "run", arguments)
    undone_s, interval_s = found["undone_s"], statistics.median(found["intervals_s"])
    print(
        f"{found['failures']} kills, one every {arguments.mean:.0f} s in the mean; "
        f"{found['steps']:,} steps of {found['step_ms']:.1f} ms were kept"
    )
    print(f"the interval: {found['told']}")
    print(f"saves held the loop for {100 * found['stall_share']:.2f} % of the training (aim 1 %)")
    print(
        f"work undone by a kill: median {statistics.median(undone_s):.2f} s, at most "
        f"{max(undone_s):.2f} s; the interval's median {interval_s:.2f} s (aim: twice that)"
    )
    accounts = found["accounts"]
    kept_s, lost_s, starts_s = (
        sum(accounts[name] for name in names) for names in (KEPT, LOST, STARTS)
    )
    print(", ".join(f"{name} {value:.1f} s" for name, value in accounts.items()))
    print(
        f"kept {100 * kept_s / (kept_s + lost_s + starts_s):.1f} %, without starts and idle time "
        f"{100 * kept_s / (kept_s + lost_s):.1f} % (aim 97 %)"
    )


if __name__ == "__main__":
    main()
