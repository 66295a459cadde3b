"""A network whose state is larger than what a process may have, trained by four that share it."""

import resource
from pathlib import Path

import pytest

from harness.checkpoint.export import export
from harness.checkpoint.read import find_checkpoint
from tests.parallel.large_parts import CAP, data_bytes
from tests.pool import on_ranks, train_on_ranks

pytestmark = [pytest.mark.torture, pytest.mark.timeout(600)]

DEPTH, WIDTH = 32, 1024
STATE_BYTES = 16 * DEPTH * WIDTH**2  # weights, gradients and two moments in float32
# Threads, buffers of gloo and the like: what a network of a few kilobytes takes
_BESIDE_BYTES = 190_000_000
# Of a rank's quarter: itself without gradients, copied for a save, and blocks in use
CAP_BYTES = int(1.6 * STATE_BYTES / 4) + _BESIDE_BYTES
CONFIG = f"""
run: {{name: tall}}
data: {{train: {{source: {{_target_: tests.resume.parts.Blobs, count: 64}}}}}}
network: {{_target_: tests.parallel.large_parts.Tall, depth: {DEPTH}, width: {WIDTH}}}
task: {{_target_: harness.tasks.Classification, input: x, target: label}}
batch: {{size: 8, micro_size: 2}}
optimizer: {{_target_: torch.optim.AdamW, lr: 0.001}}
stop: {{budget: {{steps: 2}}, every: {{steps: 2}}}}
checkpoint: {{keep_last: 1}}
"""


def export_in(limit_bytes: int, run: Path, out: Path) -> int:
    """What `fermarsi export` writes; it then maps the file, which counts as memory asked for."""
    limit = data_bytes() + limit_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return export(find_checkpoint(run), out)


def test_it_trains_saves_resumes_and_is_exported_in_less_memory_than_ddp_needs(
    tmp_path: Path,
) -> None:
    (tmp_path / "tall.yaml").write_text(CONFIG)
    env = {CAP: str(CAP_BYTES)}
    for steps in (2, 3):
        given = [f"run.dir={tmp_path / 'run'}", "parallel.kind=fsdp", f"stop.budget.steps={steps}"]
        launched = train_on_ranks(4, tmp_path / "tall.yaml", given, env=env)
        assert [one.exit_code for one in launched] == [0] * 4, launched[0].stderr
        assert find_checkpoint(tmp_path / "run").name == f"step-{steps:08}"
    out = tmp_path / "tall.safetensors"
    assert on_ranks(1, export_in, 100_000_000, tmp_path / "run", out)[0] > STATE_BYTES / 4
    given = [f"run.dir={tmp_path / 'ddp'}"]
    launched = train_on_ranks(4, tmp_path / "tall.yaml", given, env=env)
    assert all(one.exit_code for one in launched)
    assert "can't allocate memory" in "".join(one.stderr for one in launched)
