"""The most memory that each process asks for while it trains and saves, by way of sharing, beside
its share of weights, gradients and moments, with two micro-batches a step on each of four:
python benchmarks/memory.py [NUM_RANKS]

On the CPU with gloo; of a process what it asks for from the network's construction on (VmData).
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEPTH, WIDTH = 48, 1024
STATE_BYTES = 16 * DEPTH * WIDTH**2  # weights, gradients and two moments in float32
CONFIG = f"""
run: {{name: tall}}
data: {{train: {{source: {{_target_: tests.resume.parts.Blobs, count: 64}}}}}}
network: {{_target_: tests.parallel.large_parts.Tall, depth: {DEPTH}, width: {WIDTH}}}
task: {{_target_: harness.tasks.Classification, input: x, target: label}}
batch: {{size: 16, micro_size: 2}}
optimizer: {{_target_: torch.optim.AdamW, lr: 0.001}}
stop: {{budget: {{steps: 3}}, every: {{steps: 3}}}}
"""


WAYS = {
    "ddp": "{kind: ddp}",
    "fsdp": "{kind: fsdp}",
    "fsdp, reduce_every: micro_batch": "{kind: fsdp, reduce_every: micro_batch}",
}


def peaks_of(num_ranks: int, way: str) -> list[int]:
    """Bytes, of each process."""
    with tempfile.TemporaryDirectory() as directory:
        config, peak = Path(directory) / "tall.yaml", Path(directory) / "peak"
        config.write_text(CONFIG)
        subprocess.run(
            [
                *(ROOT / "launch" / "cpu.sh", str(num_ranks), config),
                *(f"run.dir={directory}/run", f"parallel={way}"),
            ],
            env={**os.environ, "TALL_PEAK_FILE": str(peak), "PYTHONPATH": str(ROOT)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return [int(Path(f"{peak}-{rank}").read_text()) for rank in range(num_ranks)]


def main() -> None:
    num_ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    for name, way in WAYS.items():
        share = STATE_BYTES / (1 if name == "ddp" else num_ranks)
        shown = ", ".join(f"{one / 1e6:.0f} MB" for one in peaks_of(num_ranks, way))
        print(f"{name}: {shown}; share {share / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
