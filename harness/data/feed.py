"""Micro-batches on their way to the device: in this process or in loaders' workers."""

import atexit
import functools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from harness.data.sampling import Sampling
from harness.data.source import Batch
from harness.data.split import Split
from harness.errors import HarnessError, error_from_json
from harness.interrupt import die_with_parent, ignore_signals
from harness.randomness import seed_for


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker process: a raised one would arrive wrapped in the text of
    its traceback.
    """

    error: Mapping[str, Any]


class _Slots(Dataset[Any]):
    """Training micro-batches by global slot number = step x num_slots + slot."""

    def __init__(self, split: Split, sampling: Sampling) -> None:
        self.split = split
        self.sampling = sampling

    def __getitem__(self, number: int) -> Batch | _Failure:
        step, slot = divmod(number, self.sampling.num_slots)
        seed = seed_for(self.sampling.seed, "treatments", step, slot)
        samples = self.sampling.samples(step, slot)
        seeds = (
            self.sampling.sample_seeds(step, slot)
            if self.split.draws
            else np.zeros(len(samples), dtype=np.uint64)
        )
        return _catch(lambda: self.split.fetch(samples, seeds, seed, training=True))


class _Blocks(Dataset[Any]):
    """Evaluation micro-batches: block b holds the samples [b x size, (b + 1) x size) of the split,
    or of `chosen` ones; the last may be shorter.
    """

    def __init__(self, split: Split, size: int, chosen: NDArray[np.int64] | None = None) -> None:
        self.split = split
        self.size = size
        self.samples = np.arange(len(split), dtype=np.int64) if chosen is None else chosen

    def __len__(self) -> int:
        return -(-len(self.samples) // self.size)

    def __getitem__(self, block: int) -> Batch | _Failure:
        samples = self.samples[block * self.size : (block + 1) * self.size]
        seed = seed_for(0, "evaluation", block)
        return _catch(
            lambda: self.split.fetch(samples, samples.astype(np.uint64), seed, training=False)
        )


class Feed:
    """The training micro-batches of one rank, step after step from `first_step` on."""

    def __init__(
        self,
        split: Split,
        sampling: Sampling,
        slots: range,
        device: torch.device,
        num_workers: int,
        first_step: int,
    ) -> None:
        self._dataset = _Slots(split, sampling)
        self._slots = slots
        self._num_slots = sampling.num_slots
        self._device = device
        # The numbers know nothing of this feed: in a cycle the workers would only end when it is
        # collected, and not in order.
        self._batches = iter(
            _loader(
                self._dataset, _numbers(slots, sampling.num_slots, first_step), device, num_workers
            )
        )

    def next_step(self) -> list[Batch]:
        """The micro-batches of this rank's slots, in order, on the device. Raises DataError."""
        return [_unwrap(next(self._batches)) for _ in self._slots]

    def sample_batch(self, step: int) -> Batch:
        """The micro-batch of this rank's first slot at a step, out of turn: the feed's position
        does not move.
        """
        return to_device(
            _unwrap(self._dataset[step * self._num_slots + self._slots[0]]), self._device
        )


def _numbers(slots: range, num_slots: int, step: int) -> Iterator[int]:
    while True:
        yield from (step * num_slots + slot for slot in slots)
        step += 1


def evaluation_batches(
    split: Split,
    size: int,
    rank: int,
    num_ranks: int,
    device: torch.device,
    num_workers: int,
    chosen: NDArray[np.int64] | None = None,
) -> Iterator[tuple[int, Batch]]:
    """(block number, micro-batch on the device) for this rank's consecutive share of a split's
    blocks; each sample exactly once over all ranks.
    """
    blocks = _Blocks(split, size, chosen)
    mine = range(rank * len(blocks) // num_ranks, (rank + 1) * len(blocks) // num_ranks)
    if len(mine) == 0:
        return
    for block, batch in zip(mine, _loader(blocks, mine, device, num_workers), strict=True):
        yield block, _unwrap(batch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _loader(
    dataset: Dataset[Any], numbers: Iterable[int], device: torch.device, num_workers: int
) -> Any:
    if num_workers == 0 and device.type == "cpu":
        # Nothing to move or to look ahead for: a DataLoader takes longer than a micro-batch
        return map(dataset.__getitem__, numbers)
    if num_workers:
        _end_workers_at_exit()
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=_Singles(numbers),  # the dataset's items are whole micro-batches
        collate_fn=_only,
        num_workers=num_workers,
        worker_init_fn=_begin_worker if num_workers else None,
        pin_memory=device.type == "cuda",
        # Its own: iter() would draw from the ambient one
        generator=torch.Generator().manual_seed(0),
    )
    # One process here and no generator to synchronise: Accelerate only moves the tensors, and has
    # nothing to shard, pad or reseed.
    return prepare_data_loader(
        loader,
        device=device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        rng_types=[],
        non_blocking=True,
    )


class _Singles(Sampler[list[int]]):
    """Numbers, one at a time and possibly without end, in the form of batches: Accelerate drops a
    plain sampler when it wraps a loader.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = numbers

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in self._numbers)


def end_workers() -> None:
    """End the loaders' workers: they ignore SIGTERM, by which multiprocessing would end them at
    exit, and it would then wait for them for ever.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
            child.join()


@functools.cache
def _end_workers_at_exit() -> None:
    atexit.register(end_workers)  # runs before multiprocessing's own, which was registered earlier


def _only(items: list[Any]) -> Any:
    return items[0]


def _begin_worker(worker: int) -> None:
    ignore_signals()
    # At once: a worker holds copies of the sockets by whose end other ranks learn that this one is
    # gone
    die_with_parent()
    torch.set_num_threads(1)


def _catch(fetch: Callable[[], Batch]) -> Batch | _Failure:
    try:
        return fetch()
    except HarnessError as error:
        return _Failure(error.to_json())


def _unwrap(batch: Any) -> Batch:
    if isinstance(batch, _Failure):
        raise error_from_json(batch.error)
    opened: Batch = batch
    return opened
