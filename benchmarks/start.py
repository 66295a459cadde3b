"""How long a launch takes to the end of its first step.

Run: python benchmarks/start.py [--rounds 15] [--launches 1 2 resume]

Aim: `accelerate launch` of a training within 1.15 of the same of a script that imports torch and
accelerate and takes one fused AdamW step.

    script     that script: a tiny MLP, `prepare`, one step
    fermarsi   the same MLP and optimizer by a config: data checks, a trial step, records, the
               controller of the end, interruption
    load       the script with a network of 500 MB of weights and moments, `load_state` before
               the step
    resume     fermarsi going on from its checkpoint of the same size: every file is hashed

All are launched anew in each round, one after the other, in turn forwards and backwards; the time
is that from the command to the end of the first `optimizer.step`, a ratio that of two launches of
the same round. Processor time is that of all processes of the launch. On the CPU.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOLD = "the first step is done"
SCRIPT = f"""\
import os
import sys

import torch
from accelerate import Accelerator

dims = [int(size) for size in sys.argv[1].split(",")]
accelerator = Accelerator()
layers = []
for before, after in zip(dims, dims[1:]):
    layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
network = torch.nn.Sequential(*layers[:-1])
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
network, optimizer = accelerator.prepare(network, optimizer)
saved = sys.argv[2] if len(sys.argv) > 2 else None
if saved is not None and os.path.isdir(saved):
    accelerator.load_state(saved)
x, y = torch.randn(32, dims[0]), torch.randint(0, 10, (32,))
accelerator.backward(torch.nn.functional.cross_entropy(network(x), y))
optimizer.step()
if saved is not None and not os.path.isdir(saved):
    accelerator.save_state(saved)
if accelerator.is_main_process:
    print({TOLD!r}, flush=True)
os._exit(0)
"""
PARTS = f"""\
import os

import numpy as np
import torch


class Noise:
    def __init__(self, width):
        draw = np.random.default_rng(1)
        self.x = draw.normal(size=(4096, width)).astype(np.float32)
        self.y = draw.integers(0, 10, 4096)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return {{"x": self.x[index], "label": self.y[index]}}

    def __getitems__(self, indices):
        return {{"x": self.x[indices], "label": self.y[indices]}}


class Telling(torch.optim.AdamW):
    def step(self, closure=None):
        result = super().step(closure)
        if "TO_THE_END" not in os.environ:
            if os.environ.get("RANK", "0") == "0":
                print({TOLD!r}, flush=True)
            os._exit(0)
        return result
"""
CONFIG = """\
run: {name: start, seed: 1}
data: {train: {source: {_target_: start_parts.Noise, width: WIDTH}}}
network: {_target_: harness.networks.Mlp, dims: [DIMS]}
task: {_target_: harness.tasks.Classification, input: x, target: label}
batch: {size: 32, micro_size: 32}
optimizer: {_target_: start_parts.Telling, lr: 1e-3, fused: true}
stop: {every: {steps: 1000000}, budget: {steps: 1000000}}
"""
RESUME = "resume"
TINY, LARGE = "64,256,10", "512,6400,6000,10"  # the large one: 41.8 million parameters


@dataclass
class Arm:
    """One of the commands, what it is compared with, and what it took."""

    name: str
    peer: str
    command: list[str]
    fresh: Path | None = None  # a run directory, laid anew before each launch
    kept: Path | None = None  # from this one
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def launch(self, environment: dict[str, str]) -> None:
        """Once, to its first step."""
        if self.fresh is not None:
            shutil.rmtree(self.fresh, ignore_errors=True)
            if self.kept is not None:
                shutil.copytree(self.kept, self.fresh, symlinks=True, copy_function=_link)
        begun = time.perf_counter()
        process = subprocess.Popen(
            self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        took = None
        for line in process.stdout:
            if line.strip() == TOLD:
                took = time.perf_counter() - begun
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0
        if took is None:
            raise SystemExit(f"{self.name}: ended before its first step: {self.command}")
        self.wall_s.append(took)
        self.cpu_s.append(used.ru_utime + used.ru_stime)


def _link(source: str, target: str) -> None:
    """Large files of a checkpoint are not copied, all others are: they are written to."""
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def launcher(processes: int) -> list[str]:
    several = ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    command = [sys.executable, "-m", "accelerate.commands.launch", *several]
    command += ["--num_processes", str(processes), "--num_machines", "1"]
    return [*command, "--mixed_precision", "no", "--dynamo_backend", "no"]


def arms_of(
    launches: list[str], directory: Path, environment: dict[str, str]
) -> Iterator[list[Arm]]:
    """Groups of arms that take turns with each other."""
    script = directory / "script.py"
    script.write_text(SCRIPT)
    (directory / "start_parts.py").write_text(PARTS)
    for name, dims in (("tiny", TINY), ("large", LARGE)):
        text = CONFIG.replace("WIDTH", dims.partition(",")[0]).replace("DIMS", dims)
        (directory / f"{name}.yaml").write_text(text)
    train = str(ROOT / "harness" / "train.py")
    for processes in (1, 2):
        if str(processes) not in launches:
            continue
        run = directory / "run"
        ours = [*launcher(processes), train, str(directory / "tiny.yaml"), f"run.dir={run}"]
        ours += [f"batch.size={32 * processes}"]
        suffix = f", {processes} processes" if processes > 1 else ""
        peer = f"script{suffix}"
        yield [
            Arm(peer, peer, [*launcher(processes), str(script), TINY]),
            Arm(f"fermarsi{suffix}", peer, ours, fresh=run),
        ]
    if RESUME not in launches:
        return
    saved, kept, run = directory / "saved", directory / "kept", directory / "resumed"
    load = [*launcher(1), str(script), LARGE, str(saved)]
    large = [*launcher(1), train, str(directory / "large.yaml")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(load, env=environment, check=True, **quiet)
    subprocess.run(
        [*large, f"run.dir={kept}", "stop.budget={steps: 1}"],
        env={**environment, "TO_THE_END": "1"},
        check=True,
        **quiet,
    )
    yield [
        Arm("load", "load", load),
        Arm(RESUME, "load", [*large, f"run.dir={run}"], fresh=run, kept=kept),
    ]


def show(arms: list[Arm]) -> None:
    """A line an arm."""
    found = {arm.name: arm for arm in arms}
    for arm in arms:
        low, middle, high = statistics.quantiles(arm.wall_s, n=4)
        ratios = [one / peer for one, peer in zip(arm.wall_s, found[arm.peer].wall_s, strict=True)]
        of_cpu = [one / peer for one, peer in zip(arm.cpu_s, found[arm.peer].cpu_s, strict=True)]
        ratio_low, ratio, ratio_high = statistics.quantiles(ratios, n=4)
        print(
            f"{arm.name:<22}{middle:>6.2f} s ({low:.2f} to {high:.2f})"
            f"{ratio:>8.3f} ({ratio_low:.3f} to {ratio_high:.3f})"
            f"{statistics.median(arm.cpu_s):>8.2f} s{statistics.median(of_cpu):>8.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--launches", nargs="+", default=["1", "2", RESUME])
    asked = parser.parse_args()
    rounds = asked.rounds
    with tempfile.TemporaryDirectory(prefix="fermarsi-start-") as name:
        directory = Path(name)
        kept = {key: one for key, one in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment = {
            **kept,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(directory),
        }
        print(f"{rounds} rounds, {os.cpu_count()} CPUs\n")
        print(f"{'':<22}{'to the first step':>21}{'of its peer':>24}{'processor time':>22}")
        for arms in arms_of(asked.launches, directory, environment):
            for number in range(-1, rounds):
                for arm in arms if number % 2 else reversed(arms):
                    arm.launch(environment)
                if number < 0:  # bytecode and the page cache
                    for arm in arms:
                        arm.wall_s.clear()
                        arm.cpu_s.clear()
            show(arms)


if __name__ == "__main__":
    main()
