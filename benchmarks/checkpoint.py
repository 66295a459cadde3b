"""What a checkpoint costs: how long a save holds the loop, how long until it is durable, how long a
load takes, how much memory all that needs.

    python benchmarks/checkpoint.py [--mb 500] [--ranks 1 2] [--repeats 4] [--directory DIR] [--json
    FILE]

Beside it, in the same run: what else saves a network and its optimizer, and the machine's own
limits (one memcpy, one write + fsync, SHA-256, one read). The state is a stack of linear layers
with AdamW's moments, replicated over the ranks as under DDP. Times are medians over the repeats
after the first, which has its memory to find; of the ranks the slowest counts. Only fermarsi and
"write + fsync" end with the data on the disk.
"""

import argparse
import hashlib
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
from harness.checkpoint.read import choose, load
from harness.checkpoint.retention import Retention
from harness.checkpoint.stage import Snapshot
from harness.checkpoint.state import optimizer_tensors
from harness.checkpoint.write import CheckpointStore
from harness.ranks.ranks import Ranks
from harness.training.agreement import compare

CHUNK_BYTES = 8 * 2**20
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
        self.moments, self.rest = optimizer_tensors(
            self.optimizer, {parameter: name for name, parameter in self.network.named_parameters()}
        )
        self.size_bytes = sum(
            tensor.nbytes
            for tensor in [*self.network.state_dict().values(), *self.moments.values()]
        )

    def snapshot(self, step: int) -> Snapshot:
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
        )


def memory_bytes(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def measured(ranks: Ranks, repeats: int, save: Callable[[int], tuple[float, float]]) -> Measured:
    """`save(n)` gives (stall, total) in seconds. Called by every rank; the slowest rank counts."""
    times = []
    before, peak = memory_bytes("VmRSS"), 0
    for number in range(repeats + 1):
        ranks.wait_for_all()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        times.append(save(number))
        peak = max(peak, memory_bytes("VmHWM"))
    mine = {
        "first_stall_s": times[0][0],
        "stall_s": statistics.median(stall for stall, _ in times[1:]),
        "total_s": statistics.median(total for _, total in times[1:]),
        "memory_mb": (peak - before) / 1e6,
    }
    everyone = ranks.gather(mine)
    return {key: max(one[key] for one in everyone) for key in mine}


def in_one_go(call: Callable[[], Any]) -> tuple[float, float]:
    begun = time.perf_counter()
    call()
    elapsed_s = time.perf_counter() - begun
    return elapsed_s, elapsed_s


def fermarsi(state: State, ranks: Ranks, directory: Path, repeats: int) -> Measured:
    store = CheckpointStore(
        directory,
        ranks,
        Retention(keep_last=1),
        run_id="b",
        attempt="b",
        fence=lambda: None,
        max_failures=1,
        timeout_s=600.0,
    )

    def begin(number: int) -> tuple[float, float]:
        store.save(state.snapshot(number), None)
        store.wait()
        (report,) = store.reports()
        assert report.error is None, report.error
        return report.stall_s, report.total_s

    found = measured(ranks, repeats, begin)
    store.close()
    loads = []
    for _ in range(repeats):
        ranks.wait_for_all()
        begun = time.perf_counter()
        path = ranks.decide(lambda: str(choose(directory, "auto").path))
        load(Path(path), rank=ranks.rank, num_ranks=ranks.size, device=torch.device("cpu"))
        loads.append(time.perf_counter() - begun)
    return {**found, "load_s": max(ranks.gather(statistics.median(loads)))}


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


def limits(size_bytes: int, ranks: Ranks, directory: Path, repeats: int) -> Measured:
    """What this machine can do: every rank's memcpy of its share at once; the whole state's write,
    hash and read by rank 0. Called by every rank.
    """
    source = torch.ones(size_bytes // 4)
    share = bytes_of(source)[: size_bytes // ranks.size]
    target = bytes_of(torch.zeros(len(share), dtype=torch.uint8))
    data = bytes_of(source)
    path = directory / "limit"

    def copy() -> None:
        target[:] = share

    def write() -> None:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        for begin in range(0, len(data), CHUNK_BYTES):
            os.pwrite(descriptor, data[begin : begin + CHUNK_BYTES], begin)
        os.fsync(descriptor)
        os.close(descriptor)

    def read() -> None:
        with open(path, "rb", buffering=0) as file:
            file.readinto(bytes_of(torch.empty(size_bytes, dtype=torch.uint8)))

    def timed(call: Callable[[], Any]) -> float:
        return statistics.median(in_one_go(call)[0] for _ in range(repeats))

    ranks.wait_for_all()
    found = {"memcpy_s": max(ranks.gather(timed(copy)))}
    calls: dict[str, Callable[[], Any]] = {
        "write_s": write,
        "hash_s": lambda: hashlib.sha256(data).digest(),
        "read_s": read,
    }
    return found | ranks.decide(lambda: {name: timed(call) for name, call in calls.items()})


SUBJECTS = [
    fermarsi,
    comparison_of_ranks,
    accelerator_save_state,
    torch_save,
    safetensors_save_file,
    dcp_save,
    dcp_async_save,
]


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
    for subject in SUBJECTS:
        if arguments.only and subject.__name__ not in arguments.only:
            continue
        directory = Path(arguments.directory) / f"{subject.__name__}-{size}"
        ranks.decide(lambda directory=directory: directory.mkdir())  # type: ignore[misc]
        os.sync()
        results[subject.__name__] = subject(state, ranks, directory, arguments.repeats)
        ranks.decide(lambda directory=directory: shutil.rmtree(directory))  # type: ignore[misc]
    os.sync()
    results["limits"] = limits(
        state.size_bytes, ranks, Path(arguments.directory), arguments.repeats
    )
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
        command += ["--only", *arguments.only] if arguments.only else []
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
    limit, state_mb = results["limits"], results["size_mb"]
    slower_save, slower_load = (
        max(limit["write_s"], limit["hash_s"]),
        max(limit["read_s"], limit["hash_s"]),
    )
    print(f"\n{size} rank(s), {state_mb:.0f} MB of state")
    names = {
        "memcpy_s": "memcpy of 1/N",
        "write_s": "write + fsync",
        "hash_s": "SHA-256",
        "read_s": "read",
    }
    print("limits: " + ", ".join(f"{name} {limit[key]:.3f} s" for key, name in names.items()))
    print(
        f"{'':24}{'first stall':>12}{'stall':>9}{'memcpys':>9}{'total':>9}{'memory/(state/N)':>18}"
    )
    for name, one in results.items():
        if name in ("size_mb", "limits"):
            continue
        memory = one["memory_mb"] / (state_mb / size)
        copies = one["stall_s"] / limit["memcpy_s"]
        times = (
            f"{one['first_stall_s']:12.3f}{one['stall_s']:9.3f}{copies:9.2f}{one['total_s']:9.3f}"
        )
        print(f"{name:24}{times}{memory:18.2f}")
    if "fermarsi" in results:
        mine = results["fermarsi"]
        print(
            "stall / memcpy of 1/N                      "
            f"{mine['stall_s'] / limit['memcpy_s']:6.2f}   (aim 1.2)"
        )
        print(
            f"total / the slower of write+fsync and hash {mine['total_s'] / slower_save:6.2f}   "
            "(aim 1.3)"
        )
        print(
            f"load  / the slower of read and hash        {mine['load_s'] / slower_load:6.2f}   "
            "(aim 1.5)"
        )
        spare_mb = mine["memory_mb"] - state_mb / size
        print(
            f"peak extra memory - state/N                {spare_mb:6.1f} MB   (aim: one chunk, "
            f"{CHUNK_BYTES / 1e6:.1f} MB)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument(
        "--directory",
        default=None,
        help="on the disk that is to be measured; default: the present directory",
    )
    parser.add_argument("--only", nargs="+", choices=[subject.__name__ for subject in SUBJECTS])
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
