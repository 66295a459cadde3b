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

Files: benchmarks/files.py.

Target: `feed` at 50 % of `gather` or more, with float32. Bytes are a quarter as much to copy, and
what a batch costs beside copying does not shrink with them: their share is told too.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset

from harness.data.feed import Feed
from harness.data.sampling import Sampling
from harness.data.split import Split
from harness.data.store import EntrySource, Store
from harness.sources.mixtures import Mixture
from harness.tasks.classification import Classification

NUM, SIZE, ROUNDS = 60_000, 256, 7
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


def main() -> None:
    torch.set_num_threads(1)
    share = compare(np.float32)
    compare(np.uint8)
    print(
        f"target: feed at 0.5 of gather with float32: {'met' if share >= 0.5 else 'MISSED'} "
        f"({share:.2f})"
    )


def _steps(feed: Feed) -> Iterator[object]:
    while True:
        yield feed.next_step()


if __name__ == "__main__":
    main()
