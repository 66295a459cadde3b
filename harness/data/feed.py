"""Micro-batches on their way to the device: in this process or in loaders' workers."""

import atexit
import functools
import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from harness.data.delivery import Groups, Kept, copies_to, one_ahead, packed, to_device, widen_pipe
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
        seeds = samples.view(np.uint64)
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
        numbers = functools.partial(_numbers, slots, sampling.num_slots, first_step)
        # A step takes all of its micro-batches at once: as many are made ready under the one before
        ahead = 1 + -(-len(slots) // max(num_workers, 1))
        self._batches = iter(
            _Loading(self._dataset, numbers, device, num_workers, patience, ahead=ahead)
        )

    def next_step(self) -> list[Batch]:
        """The micro-batches of this rank's slots, in order, on the CPU. Raises DataError, and what
        the patience's `check` raises.
        """
        batches = [next(self._batches) for _ in self._slots]
        for batch in batches:
            self.mark = batch.pop(_MARK, self.mark)
        return batches

    def deliver(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """These micro-batches on the device. On a GPU each is copied under what computes with the
        one before it, and no more of them take memory there; the host waits for none.
        """
        copies = copies_to(self._device)
        if copies is not None:
            return one_ahead(batches, copies.start)
        if self._device.type == "cpu":
            return iter(batches)
        return (to_device(batch, self._device) for batch in batches)

    def sample_batch(self, step: int, *, of_all: bool = False) -> Batch:
        """The micro-batch of this rank's first slot at a step, or of all ranks' first, out of turn:
        the feed's position does not move, and the ambient generators are left as they were.
        """
        slot = 0 if of_all else self._slots[0]
        with preserve_random():
            batch = self._dataset[step * self._num_slots + slot]
        opened = _unwrap(batch)
        opened.pop(_MARK, None)
        return to_device(opened, self._device)


def _numbers(slots: range, num_slots: int, step: int) -> Iterator[int]:
    while True:
        yield from (step * num_slots + slot for slot in slots)
        step += 1


class EvaluationFeed:
    """The micro-batches of a rank's consecutive share of a split's blocks, each sample exactly once
    over all ranks, pass after pass: workers live on between them.
    """

    def __init__(
        self,
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
        lasting: bool = True,
        keep: bool = False,
    ) -> None:
        """preserve: as in `Split.fetch`; lasting: whether there is more than one pass; keep: later
        passes may get the first one's micro-batches, if they are few and made in this process.
        """
        blocks = _Blocks(split, size, chosen, preserve)
        self._mine = range(rank * len(blocks) // num_ranks, (rank + 1) * len(blocks) // num_ranks)
        self._device = device
        # Workers, and copies to a GPU, are ahead by themselves
        here = num_workers == 0 and device.type == "cpu"
        self._groups = Groups() if here else None
        self._kept = Kept() if here and keep else None
        self._loading = _Loading(
            blocks, self._mine.__iter__, device, num_workers, patience, lasting=lasting
        )

    def spare(self) -> Batch:
        """On the device, for a rank that has none when others have one. Raises DataError."""
        return to_device(_unwrap(self._loading.fetch(0)), self._device)

    def groups(self) -> Iterator[list[tuple[int, Batch]]]:
        """The same in groups that are best computed with at once. Raises DataError."""
        return ([one] for one in self) if self._groups is None else self._groups.of(self)

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """(block number, micro-batch on the device). Raises DataError."""
        if len(self._mine) == 0:
            return
        if self._kept is not None:
            for block in self._mine:
                yield block, self._kept.get(block, lambda one: _unwrap(self._loading.fetch(one)))
            return
        copies = copies_to(self._device)
        for block, batch in zip(self._mine, self._loading, strict=True):
            if copies is not None:
                yield block, copies.start(batch)()
            elif self._device.type == "cpu":
                yield block, batch
            else:
                yield block, to_device(batch, self._device)


def evaluation_batches(
    split: Split,
    size: int,
    rank: int,
    num_ranks: int,
    device: torch.device,
    num_workers: int,
    chosen: NDArray[np.int64] | None = None,
    patience: Patience = FOREVER,
) -> Iterator[tuple[int, Batch]]:
    """One pass of an `EvaluationFeed`."""
    return iter(
        EvaluationFeed(
            split, size, rank, num_ranks, device, num_workers, chosen, patience, lasting=False
        )
    )


class _Loading:
    """The micro-batches of a dataset by number, made in this process or in workers, which a lasting
    one keeps for its next pass.
    """

    def __init__(
        self,
        dataset: _Slots | _Blocks,
        numbers: Callable[[], Iterator[int]],
        device: torch.device,
        num_workers: int,
        patience: Patience,
        *,
        ahead: int = 2,
        lasting: bool = False,
    ) -> None:
        """ahead: how many each worker makes before they are asked for, at least."""
        self._dataset = dataset
        self._numbers = numbers
        self._device = device
        self._num_workers = num_workers
        self._patience = patience
        self._ahead = ahead
        self._lasting = lasting
        self._loader: DataLoader[Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """In the order of the numbers, in pinned memory where there is a GPU."""
        dataset = self._dataset
        if self._num_workers == 0 and self._device.type == "cpu":
            # Nothing to move or to look ahead for: a DataLoader takes longer than a micro-batch
            for number in self._numbers():
                yield _unwrap(dataset[number])
            return
        loaded = self._begin()
        for count, number in enumerate(self._numbers()):
            worker = count % self._num_workers if self._num_workers else 0
            yield _unwrap(_await(loaded, dataset, number, worker, self._patience))

    def fetch(self, number: int) -> Batch | _Failure:
        """One micro-batch out of turn, made in this process."""
        return self._dataset[number]

    def _begin(self) -> Iterator[Any]:
        loader, self._loader = self._loader, None
        if loader is not None:
            try:
                loaded = iter(loader)
            except RuntimeError as error:  # its workers do not answer soon enough: others will
                if not _timed_out(error):
                    raise
                # torch would give each five seconds to end
                end_workers(loader._iterator._workers)  # type: ignore[union-attr] # torch's
                loader = None
        if loader is None:
            loader = self._open()
            others = set(multiprocessing.active_children())
            loaded = iter(loader)
            if self._num_workers:
                widen_pipe(loaded._worker_result_queue._reader)  # type: ignore[attr-defined] # torch's
            _workers.update(one for one in multiprocessing.active_children() if one not in others)
        if self._lasting:
            self._loader = loader
        return loaded

    def _open(self) -> DataLoader[Any]:
        if self._num_workers:
            _end_workers_at_exit()
        return DataLoader(
            self._dataset,
            batch_sampler=_Singles(self._numbers),  # the dataset's items are whole micro-batches
            collate_fn=_packed if self._num_workers else _only,
            num_workers=self._num_workers,
            prefetch_factor=self._ahead if self._num_workers else None,
            persistent_workers=self._lasting and self._num_workers > 0,
            worker_init_fn=_begin_worker if self._num_workers else None,
            pin_memory=self._device.type == "cuda",
            timeout=_LOOK_S if self._num_workers else 0,
            # Its own: iter() would draw from the ambient one
            generator=torch.Generator().manual_seed(0),
        )


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
            if not _timed_out(error):
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


def _timed_out(error: RuntimeError) -> bool:
    return str(error).startswith("DataLoader timed out")


class _Singles(Sampler[list[int]]):
    """Numbers, one at a time and possibly without end, in the form of batches."""

    def __init__(self, numbers: Callable[[], Iterator[int]]) -> None:
        self._numbers = numbers

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in self._numbers())


_workers: WeakSet[BaseProcess] = WeakSet()  # this process may have other children


def end_workers(workers: Collection[BaseProcess] = _workers) -> None:
    """End the loaders' workers. They ignore SIGTERM, by which multiprocessing would end them at
    exit, and it would then wait for them for ever.
    """
    # Where a loader still lives, torch's own handler, in the main thread, takes a killed worker for
    # an accident
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    for worker in [one for one in multiprocessing.active_children() if one in workers]:
        worker.kill()
        worker.join()
    if before is not None:
        signal.signal(signal.SIGCHLD, before)


@functools.cache
def _end_workers_at_exit() -> None:
    atexit.register(end_workers)  # runs before multiprocessing's own, which was registered earlier


def _only(items: list[Any]) -> Any:
    return items[0]


def _packed(items: list[Any]) -> Any:
    return packed(items[0])


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
