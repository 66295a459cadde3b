"""What a checkpoint costs: how long a save holds the loop, how long until it is durable, how long a
load takes, how much memory all that needs.

    python benchmarks/checkpoint.py [--mb 500] [--ranks 1 2] [--repeats 8] [--directory DIR] [--json
    FILE] [--beside [SUBJECT ...]]

The machine's own limits (one memcpy, one write + fsync, SHA-256, one read of as many bytes) are
measured after each save and load, so that both meet the same neighbours; a ratio is the median of
those of single rounds. Then what else saves a network and its optimizer. The state is a stack of
linear layers with AdamW's moments, replicated over the ranks as under DDP. Times are medians over
the repeats after the first, which has its memory to find; of the ranks the slowest counts. Only
fermarsi and "write + fsync" end with the data on the disk.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import async_save, save

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.checkpoint.format import bytes_of
from harness.checkpoint.read import choose, find_damage, load
from harness.checkpoint.retention import Retention
from harness.checkpoint.stage import Snapshot
from harness.checkpoint.state import optimizer_tensors, restore_network, restore_optimizer
from harness.checkpoint.write import CheckpointStore
from harness.ranks.ranks import Ranks
from harness.ranks.slowly import together_slowly
from harness.training.agreement import compare

CHUNK_BYTES = 8 * 2**20
RATIOS = {
    "under_step": ("stall, copied under a step / memcpy of 1/N", 0.1),
    "stall": ("stall, copied at once / memcpy of 1/N", 1.2),
    "total": ("total / the slower of write+fsync and hash", 1.2),
    "load": ("load / the slower of read and hash", 1.2),
}
Measured = dict[str, float]


class State:
    """A network and its optimizer, in memory as a training has them."""

    def __init__(self, size_mb: int) -> None:
        width = 1024
        num_layers = max(1, round(size_mb * 1e6 / 3 / 4 / (width * width)))
        torch.manual_seed(0)
        self.network = nn.Sequential(*(nn.Linear(width, width) for _ in range(num_layers)))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.0, fused=True)
        for parameter in self.network.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.find_moments()
        self.size_bytes = sum(
            tensor.nbytes
            for tensor in [*self.network.state_dict().values(), *self.moments.values()]
        )

    def find_moments(self) -> None:
        """They are others after each load."""
        self.moments, self.rest = optimizer_tensors(
            self.optimizer, {parameter: name for name, parameter in self.network.named_parameters()}
        )

    def pass_through(self) -> None:
        """A forward and backward pass that outlasts a copy of everything."""
        inputs = torch.ones(512, self.network[0].in_features)  # type: ignore[arg-type] # a Linear
        self.network(inputs).sum().backward()
        self.optimizer.zero_grad()

    def snapshot(self, step: int, *, under_step: bool = False) -> Snapshot:
        return Snapshot(
            step=step,
            epoch=0,
            samples=step,
            reason="schedule",
            exact=True,
            exact_reason="",
            model=self.network.state_dict(),
            optimizer=self.moments,
            rng={"torch": torch.get_rng_state()},
            trainer={"optimizer": self.rest},
            metrics={},
            facts={},
            config_yaml="",
            extra_files={},
            history=[],
            stable={"model": set(dict(self.network.named_parameters())), "optimizer": self.moments}
            if under_step
            else {},
        )


def memory_bytes(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def run_rounds(
    ranks: Ranks,
    repeats: int,
    save: Callable[[int], tuple[float, float]],
    between: Callable[[], Measured] = dict,
) -> list[Measured]:
    """`save(n)` gives (stall, total) in seconds; `between()` times of its own, after each save.

    Called by every rank; the slowest counts.
    """
    rounds = []
    for number in range(repeats + 1):
        ranks.wait_for_all()
        before = memory_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        stall_s, total_s = save(number)
        memory_mb = (memory_bytes("VmHWM") - before) / 1e6
        mine = {"stall_s": stall_s, "total_s": total_s, "memory_mb": memory_mb, **between()}
        everyone = ranks.gather(mine)
        rounds.append({key: max(one[key] for one in everyone) for key in mine})
    return rounds


def summary(rounds: list[Measured]) -> Measured:
    """The first round's stall, the most memory of all, and medians of the others' times."""
    medians = {key: statistics.median(one[key] for one in rounds[1:]) for key in rounds[0]}
    most = max(one["memory_mb"] for one in rounds)
    return medians | {"first_stall_s": rounds[0]["stall_s"], "memory_mb": most}


def measured(ranks: Ranks, repeats: int, save: Callable[[int], tuple[float, float]]) -> Measured:
    return summary(run_rounds(ranks, repeats, save))


def in_one_go(call: Callable[[], Any]) -> tuple[float, float]:
    begun = time.perf_counter()
    call()
    elapsed_s = time.perf_counter() - begun
    return elapsed_s, elapsed_s


def fermarsi(state: State, ranks: Ranks, directory: Path, repeats: int) -> dict[str, Any]:
    """The summary, with the limits' times of the same rounds; `ratios`: of each round."""
    store = CheckpointStore(
        directory / "run",
        ranks,
        Retention(keep_last=1),
        run_id="b",
        attempt="b",
        fence=lambda: None,
        max_failures=1,
        timeout_s=600.0,
    )

    numbers = itertools.count()

    def begin(_: int, *, under_step: bool = False) -> tuple[float, float]:
        store.save(state.snapshot(next(numbers), under_step=under_step), None)
        if under_step:
            state.pass_through()
            store.finish_copy()
        store.wait()
        (report,) = store.reports()
        assert report.error is None, report.error
        return report.stall_s, report.total_s

    names = {parameter: name for name, parameter in state.network.named_parameters()}

    def restore() -> None:
        """As a launch does it, from the choice to the last moment."""
        path = Path(
            ranks.decide(lambda: str(choose(directory / "run", "auto", verify="size").path))
        )
        found = together_slowly(ranks, lambda: find_damage(path, ranks.rank, ranks.size))
        assert not any(ranks.gather(found))
        loaded = load(path, rank=ranks.rank, num_ranks=ranks.size)
        restore_network(state.network, loaded, ranks)
        rest = loaded.trainer["optimizer"]
        restore_optimizer(state.optimizer, names, loaded.optimizer, rest, ranks)
        state.find_moments()

    limits = Limits(state.size_bytes, ranks, directory)

    def between() -> Measured:
        ranks.wait_for_all()
        loaded = {"load_s": in_one_go(restore)[0], **limits.measure()}
        return {**loaded, "under_step_s": begin(0, under_step=True)[0]}

    rounds = run_rounds(ranks, repeats, begin, between)
    store.close()
    ratios = {
        "under_step": [one["under_step_s"] / one["memcpy_s"] for one in rounds[1:]],
        "stall": [one["stall_s"] / one["memcpy_s"] for one in rounds[1:]],
        "total": [one["total_s"] / max(one["write_s"], one["hash_s"]) for one in rounds[1:]],
        "load": [one["load_s"] / max(one["read_s"], one["hash_s"]) for one in rounds[1:]],
    }
    return {**summary(rounds), "ratios": ratios}


def comparison_of_ranks(state: State, ranks: Ranks, directory: Path, repeats: int) -> Measured:
    """What every save begins with on several ranks."""
    tensors = {**state.network.state_dict(), **state.moments}
    return measured(
        ranks,
        repeats,
        lambda number: in_one_go(lambda: compare(tensors, ranks, torch.device("cpu"), "")),
    )


def torch_save(state: State, ranks: Ranks, directory: Path, repeats: int) -> Measured:
    def write() -> None:
        if ranks.is_first():
            torch.save(
                {"model": state.network.state_dict(), "optimizer": state.optimizer.state_dict()},
                directory / "state.pt",
            )
        ranks.wait_for_all()

    return measured(ranks, repeats, lambda number: in_one_go(write))


def safetensors_save_file(state: State, ranks: Ranks, directory: Path, repeats: int) -> Measured:
    def write() -> None:
        if ranks.is_first():
            save_file(
                {**state.network.state_dict(), **state.moments}, directory / "state.safetensors"
            )
        ranks.wait_for_all()

    return measured(ranks, repeats, lambda number: in_one_go(write))


def accelerator_save_state(state: State, ranks: Ranks, directory: Path, repeats: int) -> Measured:
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(state.network, state.optimizer)
    return measured(
        ranks,
        repeats,
        lambda number: in_one_go(lambda: accelerator.save_state(str(directory / "state"))),
    )


def dcp_save(state: State, ranks: Ranks, directory: Path, repeats: int) -> Measured:
    tensors = {**state.network.state_dict(), **state.moments}
    return measured(
        ranks,
        repeats,
        lambda number: in_one_go(
            lambda: save(dict(tensors), checkpoint_id=directory / str(number))
        ),
    )


def dcp_async_save(state: State, ranks: Ranks, directory: Path, repeats: int) -> Measured:
    tensors = {**state.network.state_dict(), **state.moments}

    def begin(number: int) -> tuple[float, float]:
        begun = time.perf_counter()
        future = async_save(dict(tensors), checkpoint_id=directory / str(number))
        stall_s = time.perf_counter() - begun
        future.result()  # type: ignore[union-attr]
        return stall_s, time.perf_counter() - begun

    return measured(ranks, repeats, begin)


class Limits:
    """What this machine can do: every rank's memcpy of its share at once; the whole state's write,
    hash and read by rank 0.
    """

    def __init__(self, size_bytes: int, ranks: Ranks, directory: Path) -> None:
        self._ranks = ranks
        self._path = directory / "limit"
        self._data = bytes_of(torch.ones(size_bytes // 4))
        self._share = self._data[: size_bytes // ranks.size]
        self._target = bytes_of(torch.zeros(len(self._share), dtype=torch.uint8))

    def measure(self) -> Measured:
        """Called by every rank."""
        self._ranks.wait_for_all()
        calls = {"write_s": self._write, "hash_s": self._hash, "read_s": self._read}
        return {
            "memcpy_s": in_one_go(self._copy)[0],
            **self._ranks.decide(
                lambda: {name: in_one_go(call)[0] for name, call in calls.items()}
            ),
        }

    def _copy(self) -> None:
        self._target[:] = self._share

    def _write(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        for begin in range(0, len(self._data), CHUNK_BYTES):
            os.pwrite(descriptor, self._data[begin : begin + CHUNK_BYTES], begin)
        os.fsync(descriptor)
        os.close(descriptor)

    def _hash(self) -> None:
        hashlib.sha256(self._data).digest()

    def _read(self) -> None:
        with open(self._path, "rb", buffering=0) as file:
            file.readinto(self._data)  # the same bytes, into memory that need not be found
        self._path.unlink()


SUBJECTS = {
    subject.__name__: subject
    for subject in (
        comparison_of_ranks,
        accelerator_save_state,
        torch_save,
        safetensors_save_file,
        dcp_save,
        dcp_async_save,
    )
}


def work(arguments: argparse.Namespace) -> None:
    """One rank: every subject in turn, in a directory of its own.

    Rank 0 prints the results as JSON.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    dist.init_process_group("gloo")  # also for one rank: async_save needs it
    ranks = Ranks(rank, size, dist.group.WORLD) if size > 1 else Ranks()
    state = State(arguments.mb)
    results: dict[str, Any] = {"size_mb": state.size_bytes / 1e6}
    for subject in (fermarsi, *(SUBJECTS[name] for name in arguments.beside)):
        directory = Path(arguments.directory) / f"{subject.__name__}-{size}"
        ranks.decide(lambda directory=directory: directory.mkdir())  # type: ignore[misc]
        os.sync()
        results[subject.__name__] = subject(state, ranks, directory, arguments.repeats)
        ranks.decide(lambda directory=directory: shutil.rmtree(directory))  # type: ignore[misc]
    if rank == 0:
        print("RESULT " + json.dumps(results), flush=True)
    ranks.wait_for_all()
    dist.destroy_process_group()


def launch(arguments: argparse.Namespace, size: int) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        command = [
            sys.executable,
            __file__,
            "--worker",
            "--mb",
            str(arguments.mb),
            "--repeats",
            str(arguments.repeats),
            "--directory",
            directory,
        ]
        command += ["--beside", *arguments.beside]
        place = {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        }
        processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"a rank failed: {[process.returncode for process in processes]}")
    line = next(line for line in outputs[0].splitlines() if line.startswith("RESULT "))
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return found


def show(size: int, results: dict[str, Any]) -> None:
    mine, state_mb = results["fermarsi"], results["size_mb"]
    print(f"\n{size} rank(s), {state_mb:.0f} MB of state")
    names = {
        "memcpy_s": "memcpy of 1/N",
        "write_s": "write + fsync",
        "hash_s": "SHA-256",
        "read_s": "read",
    }
    print("limits: " + ", ".join(f"{name} {mine[key]:.3f} s" for key, name in names.items()))
    print(f"{'':24}{'first stall':>12}{'stall':>9}{'total':>9}{'load':>9}{'memory/(state/N)':>18}")
    for name, one in results.items():
        if name == "size_mb":
            continue
        columns = f"{one['first_stall_s']:12.3f}{one['stall_s']:9.3f}{one['total_s']:9.3f}"
        columns += f"{one['load_s']:9.3f}" if "load_s" in one else f"{'':9}"
        print(f"{name:24}{columns}{one['memory_mb'] / (state_mb / size):18.2f}")
    print(f"{'ratios of single rounds':44}median  quartiles")
    for key, (what, aim) in RATIOS.items():
        low, middle, high = statistics.quantiles(mine["ratios"][key], n=4)
        print(f"{what:44}{middle:6.2f}  {low:.2f} to {high:.2f}  (aim {aim})")
    spare_mb = mine["memory_mb"] - state_mb / size
    print(
        f"{'peak extra memory - state/N':44}{spare_mb:6.1f} MB  (aim: one chunk, "
        f"{CHUNK_BYTES / 1e6:.1f} MB)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument(
        "--directory",
        default=None,
        help="on the disk that is to be measured; default: the present directory",
    )
    parser.add_argument(
        "--beside",
        nargs="*",
        default=list(SUBJECTS),
        choices=list(SUBJECTS),
        help="what is measured beside fermarsi; default: all",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.directory = arguments.directory or os.getcwd()
    if arguments.worker:
        work(arguments)
        return
    found = {size: launch(arguments, size) for size in arguments.ranks}
    for size, results in found.items():
        show(size, results)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
