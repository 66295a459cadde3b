"""How long files take to read, beside what else reads them.

Run: python benchmarks/files.py [ROWS]

CPU time of one thread, the fastest of three rounds in turn: a table of ROWS x 10 as CSV, Parquet
and JSON lines, a twentieth of it as Excel, and a folder of PNG of 64 x 64, by our sources, by the
packages that read them for us (pyarrow, calamine), by pandas, by datasets without its cache (and by
polars, if it is there), and by a bare loop of csv, openpyxl or PIL. LISTED JPEG of 32 x 32: to list
them and read the first batch, beside os.scandir and PIL. And three splits of the tables checked as
by `fermarsi data check`.

Target: tables are read and checked in at most 1.5 times the time of the package alone; the first
batch of images comes after at most 1.5 times what os.scandir and PIL take.
"""

import csv
import importlib.util
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import python_calamine
import torch
from PIL import Image
from pyarrow import csv as arrow_csv
from pyarrow import json as arrow_json
from pyarrow import parquet as pq

from harness.commands.data import check_config
from harness.sources.collection import Check
from harness.sources.images import Images
from harness.sources.tables import Table

IMAGES, LISTED, SIZE, ROUNDS = 2000, 100_000, 256, 3
COLUMNS = [f"x{at}" for at in range(8)]
CHECKED = """
data:
  train:
    source: &table
      _target_: harness.sources.tables.Table
      files: FILE
      features: [x0, x1, x2, x3, x4, x5, x6, x7]
      columns: {label: text}
      part: train
      split: {_target_: harness.sources.split.ByGroup, column: subject}
    treatments: &encode [{_target_: harness.treatments.Encode, key: label}]
  val: {source: {<<: *table, part: val}, treatments: *encode}
  test: {source: {<<: *table, part: test}, treatments: *encode}
network: {_target_: harness.networks.Mlp, dims: [8, 16, 3]}
task: {_target_: harness.tasks.Classification, input: features, target: label}
optimizer: {_target_: torch.optim.AdamW, lr: 1e-3}
batch: {size: 256, micro_size: 256}
stop: {budget: {epochs: 1}}
"""
Ways = Mapping[str, Callable[[], object]]


def make_tables(folder: Path, rows: int) -> None:
    """Tables of eight columns of numbers and two of words."""
    draw = np.random.default_rng(0)
    columns: dict[str, Any] = {name: draw.normal(size=rows).round(5) for name in COLUMNS}
    columns["subject"] = np.array([f"s{at:03d}" for at in range(200)])[draw.integers(0, 200, rows)]
    columns["label"] = np.array(["walk", "run", "sit"])[draw.integers(0, 3, rows)]
    frame = pd.DataFrame(columns)
    arrow_csv.write_csv(pa.Table.from_pandas(frame), folder / "t.csv")
    frame.to_parquet(folder / "t.parquet", index=False)
    frame.to_json(folder / "t.jsonl", orient="records", lines=True)
    frame[: rows // 20].to_excel(folder / "t.xlsx", index=False)
    for ending in ("csv", "parquet", "jsonl", "xlsx"):
        (folder / f"{ending}.yaml").write_text(CHECKED.replace("FILE", str(folder / f"t.{ending}")))


def make_images(folder: Path) -> None:
    """PNG of noise; JPEG in ten folders, of ten contents."""
    draw = np.random.default_rng(0)
    for at in range(IMAGES):
        pixels = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{at}.png")
    for at in range(LISTED):
        path = folder / "listed" / f"c{at % 10}" / f"{at:06d}.jpg"
        if at < 10:
            path.parent.mkdir(parents=True)
            Image.fromarray(pixels[at : at + 32, at : at + 32]).save(path)
        else:
            os.link(path.with_name(f"{at % 10:06d}.jpg"), path)


def ways_of_tables(folder: Path) -> dict[str, Ways]:
    """{kind of file: {reader: what reads it}}"""
    paths = {ending: folder / f"t.{ending}" for ending in ("csv", "parquet", "jsonl", "xlsx")}

    def by_datasets(read: Callable[..., object], ending: str) -> object:
        with tempfile.TemporaryDirectory() as cache:
            return read(str(paths[ending]), cache_dir=cache)

    def by_loop() -> list[Any]:
        with paths["csv"].open(newline="") as file:
            _, *rows = csv.reader(file)
        return [list(map(float, row[:8])) for row in rows]

    def by_calamine() -> list[Any]:
        book = python_calamine.CalamineWorkbook.from_path(str(paths["xlsx"]))
        return book.get_sheet_by_index(0).to_python()

    def by_openpyxl() -> list[Any]:
        book = openpyxl.load_workbook(paths["xlsx"], read_only=True)
        return list(book.worksheets[0].iter_rows(values_only=True))

    ways: dict[str, dict[str, Callable[[], object]]] = {
        "csv": {
            "package": lambda: arrow_csv.read_csv(paths["csv"]),
            "pandas": lambda: pd.read_csv(paths["csv"]),
            "datasets": lambda: by_datasets(datasets.Dataset.from_csv, "csv"),
            "loop": by_loop,
        },
        "parquet": {
            "package": lambda: pq.read_table(paths["parquet"]),
            "pandas": lambda: pd.read_parquet(paths["parquet"]),
            "datasets": lambda: by_datasets(datasets.Dataset.from_parquet, "parquet"),
        },
        "jsonl": {
            "package": lambda: arrow_json.read_json(paths["jsonl"]),
            "pandas": lambda: pd.read_json(paths["jsonl"], lines=True),
            "datasets": lambda: by_datasets(datasets.Dataset.from_json, "jsonl"),
        },
        "xlsx": {
            "package": by_calamine,
            "pandas": lambda: pd.read_excel(paths["xlsx"], engine="calamine"),
            "loop": by_openpyxl,
        },
    }
    if importlib.util.find_spec("polars"):
        polars = importlib.import_module("polars")
        ways["csv"]["polars"] = lambda: polars.read_csv(paths["csv"])
        ways["parquet"]["polars"] = lambda: polars.read_parquet(paths["parquet"])
        ways["jsonl"]["polars"] = lambda: polars.read_ndjson(paths["jsonl"])
    for ending, path in paths.items():
        ways[ending]["ours"] = lambda path=path: Table(  # type: ignore[misc] # mypy: no default
            str(path), COLUMNS, {"label": "text", "subject": "text"}
        )
        ways[ending]["data check"] = lambda ending=ending: check_config(  # type: ignore[misc] # too
            folder / f"{ending}.yaml", (), None
        )
    return dict(ways)


def ways_of_images(folder: Path) -> dict[str, Ways]:
    """{kind of reading: {reader: what reads it}}"""

    def listed(check: Check) -> object:
        files = str(folder / "listed" / "{label}" / "*.jpg")
        return Images(files, keep="disk", check=check).__getitems__(list(range(SIZE)))

    def scanned() -> object:
        folders = [one.path for one in os.scandir(folder / "listed")]
        found = sorted(one.path for name in folders for one in os.scandir(name))
        return np.stack([np.asarray(Image.open(path)) for path in found[:SIZE]])

    return {
        "images": {
            "ours": lambda: Images(str(folder / "*.png")),
            "loop": lambda: [np.asarray(Image.open(path)) for path in folder.glob("*.png")],
        },
        "listing": {
            "ours": lambda: listed("all"),
            "ours, check: first": lambda: listed("first"),
            "loop": scanned,
        },
    }


def _cpu(read: Callable[[], object]) -> float:
    begin = time.process_time()
    read()
    return time.process_time() - begin


def main() -> None:
    """Print the CPU time of each way to read each kind of file."""
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    print(f"{rows:,} rows x 10, Excel {rows // 20:,}; {IMAGES:,} PNG; {LISTED:,} JPEG: CPU seconds")
    with tempfile.TemporaryDirectory() as name:
        make_tables(Path(name), rows)
        make_images(Path(name))
        for kind, ways in (ways_of_tables(Path(name)) | ways_of_images(Path(name))).items():
            rounds = [{way: _cpu(read) for way, read in ways.items()} for _ in range(ROUNDS)]
            best = {way: min(one[way] for one in rounds) for way in ways}
            print(f"  {kind:8}", "   ".join(f"{way} {spent:.2f}" for way, spent in best.items()))


if __name__ == "__main__":
    main()
