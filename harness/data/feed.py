"""Micro-batches on their way to the device: in this process or in loaders' workers."""

import atexit
import functools
import itertools
import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from harness.data.sampling import Sampling
from harness.data.source import Batch, mark_of
from harness.data.split import Split
from harness.errors import DataError, HarnessError, error_from_json
from harness.interrupt import die_with_parent, ignore_signals
from harness.randomness import preserve_random, seed_for
from harness.wording import some


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker process: a raised one would arrive wrapped in the text of
    its traceback.
    """

    error: Mapping[str, Any]


@dataclass(frozen=True)
class Patience:
    """How a micro-batch of data workers is waited for: `limit_s` seconds at most, and after
    `quiet_s` `check` is called now and then, which raises where the launch is asked to leave.
    """

    limit_s: float = math.inf
    check: Callable[[], None] = lambda: None
    quiet_s: float = 0.0


FOREVER = Patience()


def data_limit_s(timeout_s: float) -> float:
    """How long samples are waited for, where ranks wait `timeout_s` for each other: less, so that
    it is the cause that is reported.
    """
    return max(timeout_s / 2, timeout_s - 10)


_MARK = "mark of the stream"


class _Slots(Dataset[Any]):
    """Training micro-batches by global slot number = step x num_slots + slot.

    The ambient generators are left as a source or a treatment leaves them: each forward pass seeds
    them anew.
    """

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
        batch = _catch(
            lambda: self.split.fetch(samples, seeds, seed, training=True, preserve=False)
        )
        mark = mark_of(self.split.source)
        return batch if mark is None or isinstance(batch, _Failure) else {**batch, _MARK: mark}

    def samples_of(self, number: int) -> NDArray[np.int64]:
        """The samples of one micro-batch."""
        return self.sampling.samples(*divmod(number, self.sampling.num_slots))


class _Blocks(Dataset[Any]):
    """Evaluation micro-batches: block b holds the samples [b x size, (b + 1) x size) of the split,
    or of `chosen` ones; the last may be shorter.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        chosen: NDArray[np.int64] | None = None,
        preserve: bool = True,
    ) -> None:
        self.split = split
        self.size = size
        self.preserve = preserve
        self.samples = np.arange(len(split), dtype=np.int64) if chosen is None else chosen

    def __len__(self) -> int:
        return -(-len(self.samples) // self.size)

    def __getitem__(self, block: int) -> Batch | _Failure:
        samples = self.samples_of(block)
        seed = seed_for(0, "evaluation", block)
        seeds = samples.astype(np.uint64)
        return _catch(
            lambda: self.split.fetch(samples, seeds, seed, training=False, preserve=self.preserve)
        )

    def samples_of(self, block: int) -> NDArray[np.int64]:
        """The samples of one micro-batch."""
        return self.samples[block * self.size : (block + 1) * self.size]


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
        patience: Patience = FOREVER,
    ) -> None:
        self._dataset = _Slots(split, sampling)
        self.mark: Mapping[str, Any] | None = None  # of a stream: where its last samples begin
        self._slots = slots
        self._num_slots = sampling.num_slots
        self._device = device
        # The numbers know nothing of this feed: in a cycle the workers would only end when it is
        # collected, and not in order.
        numbers = _numbers(slots, sampling.num_slots, first_step)
        self._batches = _batches(self._dataset, numbers, device, num_workers, patience)

    def next_step(self) -> list[Batch]:
        """The micro-batches of this rank's slots, in order, on the device. Raises DataError, and
        what the patience's `check` raises.
        """
        batches = [next(self._batches) for _ in self._slots]
        for batch in batches:
            self.mark = batch.pop(_MARK, self.mark)
        return batches

    def sample_batch(self, step: int) -> Batch:
        """The micro-batch of this rank's first slot at a step, out of turn: the feed's position
        does not move, and the ambient generators are left as they were.
        """
        with preserve_random():
            batch = self._dataset[step * self._num_slots + self._slots[0]]
        opened = _unwrap(batch)
        opened.pop(_MARK, None)
        return to_device(opened, self._device)


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
    patience: Patience = FOREVER,
    *,
    preserve: bool = True,
) -> Iterator[tuple[int, Batch]]:
    """(block number, micro-batch on the device) for this rank's consecutive share of a split's
    blocks; each sample exactly once over all ranks.

    preserve: as in `Split.fetch`.
    """
    blocks = _Blocks(split, size, chosen, preserve)
    mine = range(rank * len(blocks) // num_ranks, (rank + 1) * len(blocks) // num_ranks)
    if len(mine) == 0:
        return
    yield from zip(mine, _batches(blocks, mine, device, num_workers, patience), strict=True)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; from pinned memory the host does not wait."""
    return {name: _move(value, device) for name, value in batch.items()}


def _move(value: Any, device: torch.device) -> Any:
    """Tensors, in lists and dicts too, such as the boxes of each image."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if type(value) is list:
        return [_move(item, device) for item in value]
    if type(value) is dict:
        return {key: _move(item, device) for key, item in value.items()}
    return value


def _batches(
    dataset: _Slots | _Blocks,
    numbers: Iterable[int],
    device: torch.device,
    num_workers: int,
    patience: Patience,
) -> Iterator[Batch]:
    """Micro-batches on the device, in the order of `numbers`."""
    if num_workers == 0 and device.type == "cpu":
        # Nothing to move or to look ahead for: a DataLoader takes longer than a micro-batch
        for number in numbers:
            yield _unwrap(dataset[number])
        return
    if num_workers:
        _end_workers_at_exit()
    # The loader draws its numbers ahead of what is taken from it
    drawn, taken = itertools.tee(numbers)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=_Singles(drawn),  # the dataset's items are whole micro-batches
        collate_fn=_only,
        num_workers=num_workers,
        worker_init_fn=_begin_worker if num_workers else None,
        pin_memory=device.type == "cuda",
        timeout=_LOOK_S if num_workers else 0,
        # Its own: iter() would draw from the ambient one
        generator=torch.Generator().manual_seed(0),
    )
    others = set(multiprocessing.active_children())
    loaded = iter(loader)
    _workers.update(one for one in multiprocessing.active_children() if one not in others)
    for count, number in enumerate(taken):
        worker = count % num_workers if num_workers else 0
        yield to_device(_unwrap(_await(loaded, dataset, number, worker, patience)), device)


_LOOK_S = 1.0  # between two looks at what asks to leave, while a data worker is waited for


def _await(
    loaded: Iterator[Any], dataset: _Slots | _Blocks, number: int, worker: int, patience: Patience
) -> Any:
    """The next item of a loader. Raises DataError if its worker does not give it in time."""
    begun = time.monotonic()
    while True:
        try:
            return next(loaded)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
        waited_s = time.monotonic() - begun
        try:
            if waited_s > patience.quiet_s:
                patience.check()
        except HarnessError:
            end_workers()  # torch would give each five seconds to end
            raise
        if waited_s > patience.limit_s:
            end_workers()
            samples = dataset.samples_of(number).tolist()
            raise DataError(
                f"{dataset.split.where}: data worker {worker} has not delivered samples "
                f"{some(list(map(str, samples)))} after {waited_s:.0f} s. Its source "
                "or a treatment hangs, e.g. on a lock or a server, or run.timeout_s is too short."
            )


class _Singles(Sampler[list[int]]):
    """Numbers, one at a time and possibly without end, in the form of batches."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = numbers

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in self._numbers)


_workers: WeakSet[BaseProcess] = WeakSet()  # this process may have other children


def end_workers() -> None:
    """End the loaders' workers: they ignore SIGTERM, by which multiprocessing would end them at
    exit, and it would then wait for them for ever.
    """
    # Where a loader still lives, torch's own handler, in the main thread, takes a killed worker for
    # an accident
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    for worker in [one for one in multiprocessing.active_children() if one in _workers]:
        worker.kill()
        worker.join()
    if before is not None:
        signal.signal(signal.SIGCHLD, before)


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
