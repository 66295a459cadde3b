"""From a source to micro-batches on the device: whole micro-batches are fetched, treated and checked in DataLoader workers.

A DataLoader here has no state worth saving: what it yields is a function of the slot numbers it is asked for. So its look-ahead, its workers and
their number cannot matter.
"""

import atexit
import functools
import hashlib
import inspect
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from harness.errors import DataError, HarnessError, error_from_json
from harness.interrupt import die_with_parent, ignore_signals
from harness.randomness import preserved, seed_ambient, seed_for
from harness.sampling import Sampling

FINGERPRINT_SAMPLES = 32

Batch = dict[str, Any]
Treatment = Callable[..., Batch]


@runtime_checkable
class Source(Protocol):
    """Where samples come from; may also have `__getitems__(indices) -> batch of arrays (B, ...) | list of samples`, which is faster."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class Split:
    """A source with its treatments: indices in, a checked micro-batch of CPU tensors out. `where` names it in messages, e.g. `data.train`."""

    def __init__(self, source: Source, treatments: Sequence[Treatment], where: str, check: Callable[[Batch], None]) -> None:
        self.source = source
        self.where = where
        self.check = check
        self._treatments = [(treatment, takes_seeds(treatment)) for treatment in treatments]
        self._gather: Callable[[NDArray[np.int64]], Batch] | None = getattr(source, "gather", None)  # the store's: no list is made on the way
        self.draws = any(draws for _, draws in self._treatments)
        # Ours never touch the ambient generators; to set and restore them takes longer than to gather a micro-batch.
        self._ambient = not all(_is_ours(part) for part in (source, *treatments))
        if len(source) == 0:
            raise DataError(f"{where}.source: the split is empty. Give a source with at least one sample.")

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: NDArray[np.int64], seeds: NDArray[np.uint64], ambient_seed: int, *, training: bool) -> Batch:
        """indices, seeds: (B,) -> {name: (B, ...) tensor}. Raises DataError with the place of the trouble."""
        try:
            with _seeded(ambient_seed) if self._ambient else nullcontext():
                batch = _as_batch(self._read(indices))
                for treatment, draws in self._treatments:
                    if training or not getattr(treatment, "training_only", False):
                        batch = treatment(batch, seeds=seeds) if draws else treatment(batch)
                self.check(batch)
        except HarnessError as error:
            raise type(error)(f"{self.where}: {error}") from error
        except Exception as error:
            shown = ", ".join(map(str, indices[:4].tolist()))
            raise DataError(
                f"{self.where}: {type(error).__name__} while reading samples {shown}{', …' if len(indices) > 4 else ''}: {error}"
            ) from error
        return batch

    def fingerprint(self) -> str:
        """A digest of the number of samples and of some of them, spread over the split, as an evaluation gets them. Raises DataError."""
        indices = np.unique(np.linspace(0, len(self) - 1, FINGERPRINT_SAMPLES).astype(np.int64))
        digest = hashlib.sha256(str(len(self)).encode())
        for name, value in sorted(self.fetch(indices, indices.astype(np.uint64), 0, training=False).items()):
            digest.update(name.encode())
            digest.update(value.contiguous().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
        return digest.hexdigest()

    def _read(self, indices: NDArray[np.int64]) -> Any:
        if self._gather is not None:
            return self._gather(indices)
        together = getattr(self.source, "__getitems__", None)
        return together(indices.tolist()) if together is not None else [self.source[index] for index in indices.tolist()]


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker process: a raised one would arrive wrapped in the text of its traceback."""

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
        seeds = self.sampling.sample_seeds(step, slot) if self.split.draws else np.zeros(len(samples), dtype=np.uint64)
        return _guarded(lambda: self.split.fetch(samples, seeds, seed, training=True))


class _Blocks(Dataset[Any]):
    """Evaluation micro-batches: block b holds the samples [b x size, (b + 1) x size) of the split, or of `chosen` ones; the last may be shorter."""

    def __init__(self, split: Split, size: int, chosen: NDArray[np.int64] | None = None) -> None:
        self.split = split
        self.size = size
        self.samples = np.arange(len(split), dtype=np.int64) if chosen is None else chosen

    def __len__(self) -> int:
        return -(-len(self.samples) // self.size)

    def __getitem__(self, block: int) -> Batch | _Failure:
        samples = self.samples[block * self.size : (block + 1) * self.size]
        seed = seed_for(0, "evaluation", block)
        return _guarded(lambda: self.split.fetch(samples, samples.astype(np.uint64), seed, training=False))


class Feed:
    """The training micro-batches of one rank, step after step from `first_step` on."""

    def __init__(self, split: Split, sampling: Sampling, slots: range, device: torch.device, num_workers: int, first_step: int) -> None:
        self._dataset = _Slots(split, sampling)
        self._slots = slots
        self._num_slots = sampling.num_slots
        self._device = device
        # The numbers know nothing of this feed: in a cycle the workers would only end when it is collected, and not in order.
        self._batches = iter(_loader(self._dataset, _numbers(slots, sampling.num_slots, first_step), device, num_workers))

    def next_step(self) -> list[Batch]:
        """The micro-batches of this rank's slots, in order, on the device. Raises DataError."""
        return [_opened(next(self._batches)) for _ in self._slots]

    def sample_batch(self, step: int) -> Batch:
        """The micro-batch of this rank's first slot at a step, out of turn: the feed's position does not move."""
        return to_device(_opened(self._dataset[step * self._num_slots + self._slots[0]]), self._device)


def _numbers(slots: range, num_slots: int, step: int) -> Iterator[int]:
    while True:
        yield from (step * num_slots + slot for slot in slots)
        step += 1


def evaluation_batches(
    split: Split, size: int, rank: int, num_ranks: int, device: torch.device, num_workers: int, chosen: NDArray[np.int64] | None = None
) -> Iterator[tuple[int, Batch]]:
    """(block number, micro-batch on the device) for this rank's consecutive share of a split's blocks; each sample exactly once over all ranks."""
    blocks = _Blocks(split, size, chosen)
    mine = range(rank * len(blocks) // num_ranks, (rank + 1) * len(blocks) // num_ranks)
    if len(mine) == 0:
        return
    for block, batch in zip(mine, _loader(blocks, mine, device, num_workers), strict=True):
        yield block, _opened(batch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _loader(dataset: Dataset[Any], numbers: Iterable[int], device: torch.device, num_workers: int) -> Any:
    if num_workers == 0 and device.type == "cpu":
        return map(dataset.__getitem__, numbers)  # nothing to move or to look ahead for: a DataLoader takes longer than a micro-batch
    if num_workers:
        _end_workers_at_exit()
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=_Singles(numbers),  # the dataset's items are whole micro-batches
        collate_fn=_only,
        num_workers=num_workers,
        worker_init_fn=_begin_worker if num_workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),  # its own: iter() would draw from the ambient one
    )
    # One process here and no generator to synchronise: Accelerate only moves the tensors, and has nothing to shard, pad or reseed.
    return prepare_data_loader(loader, device=device, num_processes=1, process_index=0, put_on_device=True, rng_types=[], non_blocking=True)


class _Singles(Sampler[list[int]]):
    """Numbers, one at a time and possibly without end, in the form of batches: Accelerate drops a plain sampler when it wraps a loader."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = numbers

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in self._numbers)


def end_workers() -> None:
    """End the loaders' workers: they ignore SIGTERM, by which multiprocessing would end them at exit, and it would then wait for them for ever."""
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
    die_with_parent()  # at once: a worker holds copies of the sockets by whose end other ranks learn that this one is gone
    torch.set_num_threads(1)


def takes_seeds(treatment: Treatment) -> bool:
    """Whether a treatment draws: what it is given then is a seed for each sample."""
    return "seeds" in inspect.signature(treatment).parameters


def _is_ours(part: object) -> bool:
    """Whether a source or treatment is of this package, with the sources inside of it."""
    return type(part).__module__.startswith("harness.") and all(map(_is_ours, getattr(part, "sources", {}).values()))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Ambient generators for code that draws without being given seeds."""
    with preserved():
        seed_ambient(seed)
        yield


def _guarded(fetch: Callable[[], Batch]) -> Batch | _Failure:
    try:
        return fetch()
    except HarnessError as error:
        return _Failure(error.to_json())


def _opened(batch: Any) -> Batch:
    if isinstance(batch, _Failure):
        raise error_from_json(batch.error)
    opened: Batch = batch
    return opened


def _as_batch(read: Any) -> Batch:
    """A batch of arrays, or a list of samples, as a dict of tensors (B, ...); what has no numbers stays a list."""
    columns = read if isinstance(read, Mapping) else {name: [sample[name] for sample in read] for name in read[0]}
    return {name: _as_tensor(values) for name, values in columns.items()}


def _as_tensor(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values
    if isinstance(values, list) and values and isinstance(values[0], Tensor | np.ndarray):
        if len({value.shape for value in values}) > 1:  # ragged: a treatment has to make one shape of them
            return [torch.as_tensor(value) for value in values]
        if isinstance(values[0], Tensor):
            return torch.stack(values)
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        return values
    return torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())
