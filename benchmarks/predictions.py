"""What `fermarsi predict` takes for many rows.

Run: python benchmarks/predictions.py [ROWS] [--processes 1 2]

A CSV of ROWS (1 million) rows of 8 numbers and a class, a small network trained for 20 steps, and
its predictions as Parquet and JSON lines, by one process and by two, without and with `data.store`.
Seconds, processor time, and the largest memory of a process, start included. Aim: two processes
take at most 0.7 of the time of one where there are two idle cores; memory does not grow with ROWS
beyond the table's own columns.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

CONFIG = """
run: {name: rows, seed: 1, dir: ROOT/run}
data:
  checks: {duplicates: "off"}STORE
  train: &split
    source:
      _target_: harness.sources.tables.Table
      files: ROOT/table.csv
      features: [x0, x1, x2, x3, x4, x5, x6, x7]
      columns: {label: text}
    treatments:
      - {_target_: harness.treatments.Encode, key: label}
      - {_target_: harness.treatments.Standardise}
  val: *split
network: {_target_: harness.networks.Mlp, dims: [8, 64, 3]}
task: {_target_: harness.tasks.Classification, input: features, target: label}
batch: {size: 4096, micro_size: 512}
optimizer: {_target_: torch.optim.AdamW, lr: 0.01}
stop: {every: {steps: 20}, budget: {steps: 20}}
"""


def run(*words: str) -> tuple[float, float, float]:
    """Seconds, processor seconds with those of its own processes, and GB of the largest one."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", "from harness.cli import main; main()", *words],
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)}: exit code {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    asked = parser.parse_args()
    draw = np.random.default_rng(0)
    columns = {f"x{at}": draw.normal(size=asked.rows) for at in range(8)}
    labels = np.array(["walk", "run", "sit"])[draw.integers(0, 3, asked.rows)]
    for store in ("", "\n  store: {dir: ROOT/store}"):
        with tempfile.TemporaryDirectory() as folder:
            csv.write_csv(pa.table({**columns, "label": labels}), f"{folder}/table.csv")
            text = CONFIG.replace("STORE", store).replace("ROOT", folder)
            Path(folder, "rows.yaml").write_text(text)
            run("train", f"{folder}/rows.yaml", "--quiet")
            for suffix in ("parquet", "jsonl"):
                for processes in asked.processes:
                    out = ["--out", f"{folder}/found.{suffix}", "--allow", f"{folder}/"]
                    found = run("predict", f"{folder}/run", *out, "--processes", str(processes))
                    name = f"{suffix}, {'store' if store else 'no store'}, {processes} processes"
                    seconds, busy_s, largest_gb = found
                    print(f"{name}: {seconds:.1f} s, processor {busy_s:.1f} s, {largest_gb:.2f} GB")


if __name__ == "__main__":
    main()
