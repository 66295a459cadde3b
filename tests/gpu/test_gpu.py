"""What only a GPU can show. Run by `make gpu-test`; with one GPU, no network, and its own torch."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from harness.checkpoint.copying import HostMemory, Part
from harness.checkpoint.read import list_checkpoints
from harness.data import delivery
from harness.data.feed import Feed
from harness.data.sampling import Sampling
from harness.data.split import Split
from tests.training.test_stable import saved

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROOT = Path(__file__).parents[2]
STORM = ROOT / "tests" / "resume" / "storm.yaml"
PRECISIONS = ["no", "bf16", "fp16"]


def start(run: Path, *overrides: str, **env: str) -> "subprocess.Popen[str]":
    """One process of a launch on the GPU."""
    kept = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    command = [sys.executable, "-m", "tests.gpu.launch", str(STORM), f"run.dir={run}", *overrides]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def train(run: Path, *overrides: str, ranks: int = 0, die_at: str = "", **env: str) -> list[int]:
    """Exit codes by rank. ranks: 0 for a process alone, else that many in a process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
    places: list[dict[str, str]] = [
        {**group, "RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(ranks)}
        for rank in range(ranks)
    ]
    begun = [start(run, *overrides, DIE_AT=die_at, **env, **place) for place in places or [{}]]
    ends = [finish(process) for process in begun]
    print(*(out for _, out in ends), sep="\n")
    return [code for code, _ in ends]


def trace(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]


def outcome(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "outcome.json").read_text()))


def assert_resumes(tmp_path: Path, *overrides: str, ranks: int = 0, **env: str) -> None:
    """A run killed at step 17 ends with the bits of one never interrupted, and says `exact`."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(whole, *overrides, ranks=ranks, **env) == [0] * max(1, ranks)
    assert train(cut, *overrides, ranks=ranks, die_at="0:17", **env) != [0] * max(1, ranks)
    assert train(cut, *overrides, ranks=ranks, **env) == [0] * max(1, ranks)
    assert trace(cut) == trace(whole)
    assert outcome(whole)["exact"], outcome(whole)["exact_reason"]
    assert outcome(cut)["exact"], outcome(cut)["exact_reason"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, precision: str) -> None:
    assert_resumes(tmp_path, f"train.precision={precision}")
    last = list_checkpoints(tmp_path / "cut" / "checkpoints")[-1]
    (generators,) = last.path.glob("rng-*.safetensors")
    with safe_open(generators, "pt") as kept:
        assert "torch.cuda" in set(kept.keys())
    assert last.manifest is not None
    (machine,) = last.manifest.facts["environment"]
    assert machine["device"] == "cuda"
    assert machine["GPU"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_a_sharded_network_resumes_to_the_same_bits(tmp_path: Path, offload: str) -> None:
    """Unrun so far, as docs/large-models.md says; one GPU has all rows."""
    tower = "network={_target_: tests.parallel.way_parts.Tower}"
    assert_resumes(tmp_path, tower, f"parallel={{kind: fsdp, offload: {offload}}}")


def test_a_sharded_step_makes_the_host_wait_for_nothing(tmp_path: Path) -> None:
    tower = "network={_target_: tests.parallel.way_parts.Tower}"
    assert train(tmp_path / "run", tower, "parallel={kind: fsdp}", SYNC="error") == [0]


def test_what_is_copied_under_a_step_is_what_the_step_before_left(tmp_path: Path) -> None:
    asked = [
        "network={_target_: tests.training.moving_networks.Still}",
        "optimizer={_target_: tests.training.witness.Witness, lr: 0.1}",
        "schedule=null",
        "stop={every: {steps: 100}, budget: {steps: 6}}",
        "checkpoint={every: {steps: 1}, keep_last: 100}",
    ]
    assert train(tmp_path / "run", *asked, WITNESS=str(tmp_path / "seen")) == [0]
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    found = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [saved(one.path) for one in found] == seen


def test_staging_memory_is_pinned_and_of_its_own_size() -> None:
    """Torch's pinned allocator would take the next power of two. Memory that grows is registered
    anew: what was registered before must not be (pytorch/pytorch#155192, "already registered").
    """
    before = torch.cuda.host_memory_stats()["allocated_bytes.current"]
    memory = HostMemory()
    for size in (3 * 2**20 + 5, 9 * 2**20 + 1, 5):
        memory.reserve(size, True)
        assert memory.octets.is_pinned()
        assert memory.trouble is None
        tensor = torch.arange(size, device="cuda").to(torch.uint8)
        memory.fill(Part("x", tensor, 0, tensor))
        torch.cuda.synchronize()
        assert memory.octets[:size].equal(tensor.cpu())
    assert memory.octets.numel() == 9 * 2**20 + 1
    assert torch.cuda.host_memory_stats()["allocated_bytes.current"] == before


def test_memory_that_cannot_be_registered_is_torchs_and_no_kernel_is_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = torch.cuda.cudart()

    def refuse(begin: int, size_bytes: int, flags: int) -> int:
        return int(runtime.cudaHostRegister(0, size_bytes, flags))  # an invalid address

    calls = SimpleNamespace(cudaHostRegister=refuse)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: calls)
    memory = HostMemory()
    memory.reserve(2**20, True)
    assert memory.octets.is_pinned()
    assert memory.trouble is not None
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_attention_has_a_deterministic_backward_pass(tmp_path: Path) -> None:
    network = "network={_target_: tests.gpu.parts.Attends}"
    assert_resumes(tmp_path, network, "train.precision=bf16")


def test_fp16_goes_through_its_overflows(tmp_path: Path) -> None:
    """The scale starts at 65,536 and is halved until nothing overflows: skipped, not diverged."""
    assert train(tmp_path / "run", "train.precision=fp16", "optimizer.lr=1e-2") == [0]
    assert outcome(tmp_path / "run")["reason"] in ("budget", "no_improvement")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_step_makes_the_host_wait(tmp_path: Path, precision: str) -> None:
    asked = [f"train.precision={precision}", "log.trace=false", "data.num_workers=2"]
    assert train(tmp_path / "run", *asked, SYNC="error") == [0]


def test_no_counted_item_makes_the_host_wait(tmp_path: Path) -> None:
    """Items of several micro-batches a step, which are counted before they are on the GPU."""
    task = "task={_target_: harness.tasks.Classification, input: x, target: label, ignore_index: 0}"
    asked = [task, "log.trace=false", "data.num_workers=2"]
    assert train(tmp_path / "run", *asked, SYNC="error") == [0]


def delivered(width: int) -> Iterator[tuple[Feed, list[dict[str, Any]]]]:
    """A feed, and the micro-batches of each of four steps: 16, each a tensor of one number."""

    class Numbers:
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> Mapping[str, Any]:
            return {"x": np.full(width, index, dtype=np.float32)}

    plan = Sampling(num_samples=64, size=16, micro_size=1, seed=3)
    source = Split(Numbers(), (), "data.train", lambda batch: None)
    feed = Feed(source, plan, range(16), torch.device("cuda"), 0, 0)
    for _ in range(4):
        yield feed, feed.next_step()


def test_micro_batches_come_by_a_stream_of_their_own_one_ahead() -> None:
    """Each is whole when a slow computation reads it, and not all of a step take memory at once."""
    width = 4 * 2**20  # 16 MiB each
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    streams = set()
    to_device = delivery.to_device

    def seen(batch: Any, device: torch.device) -> Any:
        streams.add(torch.cuda.current_stream().cuda_stream)
        return to_device(batch, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "to_device", seen)
        for feed, batches in delivered(width):
            expected = [float(batch["x"][0, 0]) for batch in batches]
            sums = []
            for batch in feed.deliver(batches):
                torch.cuda._sleep(2_000_000)  # type: ignore[no-untyped-call] # torch's
                sums.append(batch["x"].max())
                del batch
                torch.cuda.synchronize()  # as a host that is not ahead
            assert torch.stack(sums).tolist() == expected
    assert torch.cuda.current_stream().cuda_stream not in streams
    assert torch.cuda.max_memory_allocated() - before < 4 * 4 * width


def test_memory_is_not_used_again_before_it_was_read() -> None:
    """The host is far ahead: many copies are begun while the first micro-batch is computed with."""
    for feed, batches in delivered(1024):
        expected = [float(batch["x"][0, 0]) for batch in batches]
        sums = []
        for batch in feed.deliver(batches):
            torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call] # torch's
            sums.append(batch["x"].max())
            del batch
        assert torch.stack(sums).tolist() == expected


def test_micro_batches_lie_in_pinned_memory() -> None:
    _, batches = next(delivered(8))
    assert all(batch["x"].is_pinned() for batch in batches)


def test_a_hidden_wait_would_be_found(tmp_path: Path) -> None:
    asked = ["network={_target_: tests.gpu.parts.Waits}", "log.trace=false"]
    assert train(tmp_path / "run", *asked, SYNC="error") == [1]


def test_faster_kernels_are_taken_where_bits_may_differ(tmp_path: Path) -> None:
    """Images with their channels last; the network raises for kernels that were not asked for."""
    network = "network={_target_: tests.gpu.parts.Expects, products: %s, benchmark: %s}"
    fast = ["run.exactness=none", "train.channels_last=true"]
    exact = ["train.channels_last=true"]
    for name, products, benchmark, asked in [
        ("fast", "high", "true", fast),
        ("medium", "medium", "true", [*fast, "train.matmul_precision=medium"]),
        ("exact", "highest", "false", exact),
    ]:
        run, kernels = tmp_path / name, network % (products, benchmark)
        assert train(run, kernels, "log.trace=false", *asked) == [0]
        assert outcome(run)["exact"] == (name == "exact")


def test_two_ranks_on_one_gpu(tmp_path: Path) -> None:
    assert_resumes(tmp_path, ranks=2, BACKEND="gloo")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_ranks_have_the_bits_of_one(tmp_path: Path, precision: str) -> None:
    asked = ["run.exactness=elastic", f"train.precision={precision}"]
    assert train(tmp_path / "1", *asked) == [0]
    assert train(tmp_path / "2", *asked, ranks=2, BACKEND="gloo") == [0, 0]
    assert trace(tmp_path / "2") == trace(tmp_path / "1")
    assert outcome(tmp_path / "2")["exact"], outcome(tmp_path / "2")["exact_reason"]


def test_nccl_with_one_rank(tmp_path: Path) -> None:
    assert_resumes(tmp_path, ranks=1)
    last = list_checkpoints(tmp_path / "cut" / "checkpoints")[-1]
    assert last.manifest is not None
    assert last.manifest.facts["environment"][0]["NCCL_ALGO"] == "Ring"


def test_a_run_on_the_cpu_starts_no_context_on_the_gpu(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from harness.training.launch import launch; "
        "code = launch(Path(sys.argv[1]), sys.argv[2:]); "
        "sys.exit(code or 10 * torch.cuda.is_initialized())"
    )
    command = [sys.executable, "-c", code, str(STORM), f"run.dir={tmp_path / 'run'}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
