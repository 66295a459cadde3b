"""How fast random batches come out of the store, beside what else there is.

Run: python benchmarks/data.py

60,000 images of 28 x 28, of float32 and of bytes, in random batches of 256, in this process, by
each way in turn, several times over; CPU time of the fastest round:

    gather        images[rows], labels[rows] on bare memory maps: the limit
    fetch         Split.fetch on the store: gather, tensors, the task's check of the labels
    feed          the same through Feed, as a training gets them (one process, no workers)
    tensors       TensorDataset with a DataLoader's default collation
    mixture       as feed, from two stores by weights 3 : 1
    datasets      Hugging Face datasets in torch format, rows by number
    interleaved   two of them by datasets.interleave_datasets, in order

Then files: CPU time to read a table of ROWS x 10 as CSV and Parquet, a hundredth of it as Excel,
and a folder of 64 x 64 PNG, by our sources, by pandas (and polars, if it is there), and by a bare
loop of csv, openpyxl or PIL.

Target: `feed` at 50 % of `gather` or more, with float32. Bytes are a quarter as much to copy, and
what a batch costs beside copying does not shrink
with them: their share is told too.
"""

import csv
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import openpyxl
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from harness.data.feed import Feed
from harness.data.sampling import Sampling
from harness.data.split import Split
from harness.data.store import EntrySource, Store
from harness.sources.cells import Kind
from harness.sources.images import Images
from harness.sources.mixtures import Mixture
from harness.sources.tables import Table
from harness.tasks.classification import Classification

NUM, SIZE, ROUNDS = 60_000, 256, 7
ROWS, IMAGES = 500_000, 2000
CPU = torch.device("cpu")


class Made:
    """Images of noise with a label."""

    def __init__(self, dtype: type[np.generic]) -> None:
        draw = np.random.default_rng(0)
        self.images = draw.integers(0, 256, (NUM, 1, 28, 28), dtype=np.uint8).astype(dtype)
        self.labels = draw.integers(0, 10, NUM)

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"image": self.images[index], "label": self.labels[index]}

    def __getitems__(self, indices: list[int]) -> dict[str, NDArray[np.generic]]:
        return {"image": self.images[indices], "label": self.labels[indices]}


def epoch(batches: Iterator[object], count: int) -> float:
    """Samples a second of CPU."""
    begin = time.process_time()
    for _ in range(count):
        next(batches)
    return count * SIZE / (time.process_time() - begin)


def compare(dtype: type[np.generic]) -> float:
    """Print the rates of all ways; returns the share of `gather` that `feed` has."""
    with tempfile.TemporaryDirectory() as name:
        source = Made(dtype)
        path = Store(Path(name)).build(
            "k",
            Split(source, (), "data.train", lambda batch: None),
            {},
            0,
            lambda: None,
            lambda done, of: None,
        )
        task = Classification(input="image", target="label")
        task.fit_to(torch.zeros(1, 10))
        split = Split(EntrySource(path), (), "data.train", task.check)
        images, labels = (
            np.asarray(np.load(path / "shard-00000" / f"{column}.npy", mmap_mode="r"))
            for column in ("image", "label")
        )
        # All pages are in memory from here on: the disk is not what is compared
        images.sum(), labels.sum()
        rows = np.random.default_rng(1).permutation(NUM)[: NUM // SIZE * SIZE].reshape(-1, SIZE)
        seeds = np.zeros(SIZE, dtype=np.uint64)
        tensors = TensorDataset(torch.from_numpy(source.images), torch.from_numpy(source.labels))
        table = datasets.Dataset.from_dict(
            {"image": list(source.images[:, 0]), "label": source.labels}
        ).with_format("torch")
        sampling = Sampling(NUM, SIZE, SIZE, seed=0)
        mixture = Mixture([EntrySource(path), EntrySource(path)], [3, 1])
        mixed = Split(mixture, (), "data.train", task.check)
        weighted = Sampling(len(mixture), SIZE, SIZE, seed=0, order=mixture.order)
        turns = datasets.interleave_datasets([table, table], probabilities=[0.75, 0.25], seed=0)
        ways: dict[str, tuple[Callable[[], Iterator[object]], int]] = {
            "gather": (lambda: ((images[some], labels[some]) for some in rows), len(rows)),
            "fetch": (
                lambda: (split.fetch(some, seeds, 0, training=True) for some in rows),
                len(rows),
            ),
            "feed": (lambda: _steps(Feed(split, sampling, range(1), CPU, 0, 0)), len(rows)),
            "tensors": (lambda: iter(DataLoader(tensors, SIZE, shuffle=True)), 20),
            "mixture": (lambda: _steps(Feed(mixed, weighted, range(1), CPU, 0, 0)), len(rows)),
            "datasets": (lambda: (table[some.tolist()] for some in rows), 3),
            "interleaved": (lambda: (turns[at : at + SIZE] for at in range(0, NUM, SIZE)), 3),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, (begin, count) in ways.items():
                batches = begin()
                next(batches)
                rates[way].append(epoch(batches, count - 1))
    best = {way: max(found) for way, found in rates.items()}
    print(f"{NUM:,} images of 28 x 28 {np.dtype(dtype).name}, random batches of {SIZE}, one thread")
    for way, rate in best.items():
        print(f"  {way:11} {rate:>12,.0f} samples/s   {rate / best['gather']:.3f} of gather")
    return best["feed"] / best["gather"]


def make_files(folder: Path) -> None:
    """A table of eight columns of numbers and two of words in three formats, and images."""
    draw = np.random.default_rng(0)
    columns: dict[str, Any] = {f"x{at}": draw.normal(size=ROWS).round(5) for at in range(8)}
    columns["subject"] = np.array([f"s{at:03d}" for at in range(200)])[draw.integers(0, 200, ROWS)]
    columns["label"] = np.array(["walk", "run", "sit"])[draw.integers(0, 3, ROWS)]
    frame = pd.DataFrame(columns)
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_parquet(folder / "t.parquet", index=False)
    frame[: ROWS // 100].to_excel(folder / "t.xlsx", index=False)
    for at in range(IMAGES):
        pixels = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{at}.png")


def compare_files() -> None:
    """Print the CPU time of each way to read each kind of file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder)

        def table(ending: str) -> Table:
            words: dict[str, Kind] = {"label": "text", "subject": "text"}
            return Table(str(folder / f"t.{ending}"), columns=words)

        def loop() -> list[Any]:
            with (folder / "t.csv").open(newline="") as file:
                _, *rows = csv.reader(file)
            return [list(map(float, row[:8])) for row in rows]

        def sheet() -> list[Any]:
            book = openpyxl.load_workbook(folder / "t.xlsx", read_only=True)
            return list(book.worksheets[0].iter_rows(values_only=True))

        ways: dict[str, dict[str, Callable[[], object]]] = {
            "CSV": {
                "ours": lambda: table("csv"),
                "pandas": lambda: pd.read_csv(folder / "t.csv"),
                "loop": loop,
            },
            "Parquet": {
                "ours": lambda: table("parquet"),
                "pandas": lambda: pd.read_parquet(folder / "t.parquet"),
            },
            "Excel": {
                "ours": lambda: table("xlsx"),
                "pandas": lambda: pd.read_excel(folder / "t.xlsx", engine="calamine"),
                "loop": sheet,
            },
            "images": {
                "ours": lambda: Images(str(folder / "*.png")),
                "loop": lambda: [np.asarray(Image.open(path)) for path in folder.glob("*.png")],
            },
        }
        if importlib.util.find_spec("polars"):
            polars = importlib.import_module("polars")
            ways["CSV"]["polars"] = lambda: polars.read_csv(folder / "t.csv")
            ways["Parquet"]["polars"] = lambda: polars.read_parquet(folder / "t.parquet")
        print(
            f"{ROWS:,} rows x 10, Excel {ROWS // 100:,}, {IMAGES:,} images of 64 x 64: CPU seconds"
        )
        for kind, of_kind in ways.items():
            times = {way: min(_cpu(read) for _ in range(3)) for way, read in of_kind.items()}
            print(f"  {kind:9}", "   ".join(f"{way} {spent:.2f}" for way, spent in times.items()))


def _cpu(read: Callable[[], object]) -> float:
    begin = time.process_time()
    read()
    return time.process_time() - begin


def main() -> None:
    torch.set_num_threads(1)
    share = compare(np.float32)
    compare(np.uint8)
    compare_files()
    print(
        f"target: feed at 0.5 of gather with float32: {'met' if share >= 0.5 else 'MISSED'} "
        f"({share:.2f})"
    )


def _steps(feed: Feed) -> Iterator[object]:
    while True:
        yield feed.next_step()


if __name__ == "__main__":
    main()
