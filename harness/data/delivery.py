"""Micro-batches from workers, and to the device: to a GPU on a stream of their own."""

import copy
import fcntl
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from harness.data.source import Batch

T = TypeVar("T")
R = TypeVar("R")
_MOST_IN_GROUP, _GROUP_S = 16, 0.002


class Copies:
    """Copies to a GPU on a stream of their own, from pinned memory; the host waits for none."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch's

    def start(self, batch: Batch) -> Callable[[], Batch]:
        """Begin to copy a micro-batch. Gives what hands it over to the stream that computes."""
        if any(one.layout != torch.strided for one in _tensors(batch)):
            return lambda: to_device(batch, self._device)  # whose memory no stream can be told of
        with torch.cuda.stream(self._stream):
            moved = to_device(batch, self._device)
            copied = self._stream.record_event()

        def hand_over() -> Batch:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(copied)
            # Its memory, once let go of, is used again after what was asked of it by then
            for tensor in _tensors(moved):
                tensor.record_stream(computing)
            return moved

        return hand_over


@functools.cache
def copies_to(device: torch.device) -> Copies | None:
    """Those of this process, None for a device without streams of ours."""
    return Copies(device) if device.type == "cuda" else None


def one_ahead(items: Iterable[T], start: Callable[[T], Callable[[], R]]) -> Iterator[R]:
    """What `start` begins with each item and its result finishes: the next one is begun before one
    is finished, and no more.
    """
    begun: list[Callable[[], R]] = []  # nothing else here holds what was yielded
    for item in items:
        begun.append(start(item))
        if len(begun) == 2:
            yield begun.pop(0)()
    if begun:
        yield begun.pop()()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; from pinned memory the host does not wait."""
    return {
        name: _map(one, lambda t: t.to(device, non_blocking=True)) for name, one in batch.items()
    }


class Groups:
    """Numbered micro-batches on the CPU several at a time, as many as are likely to come in 2 ms:
    where fetching and computing take turns, a small network's evaluation takes longer (probably:
    each finds the processor's caches full of the other's). docs/benchmarks.md has the figures.

    The first come one by one, to see whether each has memory of its own: a source may give the same
    arrays again and again, and then the others come so as well.
    """

    def __init__(self) -> None:
        self._first: list[Batch] = []  # alive, so that their memory is not used again
        self._most: int | None = None  # in a group, once that is known

    def of(self, batches: Iterable[tuple[int, Batch]]) -> Iterator[list[tuple[int, Batch]]]:
        """One pass, in order."""
        left, wanted = iter(batches), 1
        while True:
            begun = time.perf_counter()
            group = list(islice(left, wanted))
            if not group:
                return
            each_s = (time.perf_counter() - begun) / len(group)
            fitting = int(_GROUP_S / max(each_s, 1e-9))
            if self._most is None and fitting > 1:
                self._look_at(group[0][1])
            wanted = max(min(fitting, 2 * wanted, self._most or 1), 1)
            yield group

    def _look_at(self, batch: Batch) -> None:
        self._first.append(batch)
        if len(self._first) == _MOST_IN_GROUP:
            addresses = [one.data_ptr() for seen in self._first for one in _tensors(seen)]
            self._most = _MOST_IN_GROUP if len(set(addresses)) == len(addresses) else 1
            self._first.clear()


_MOST_KEPT = 2**25  # bytes of a split on a rank


class Kept:
    """Numbered micro-batches of a first pass for those that follow, as many as fit into 32 MB.

    Each is a copy: a source may use its memory again. One that was written to meanwhile, which
    torch counts, is not given again, and no others are kept from then on.
    """

    def __init__(self) -> None:
        self._batches: dict[int, tuple[Batch, list[int]]] = {}
        self._left = _MOST_KEPT

    def get(self, number: int, fetch: Callable[[int], Batch]) -> Batch:
        """What `fetch` gives for a number, or gave. Raises what it raises."""
        if number in self._batches:
            batch, counts = self._batches[number]
            if counts == _write_counts(batch):
                return dict(batch)
            self._batches.clear()
            self._left = 0
        batch = fetch(number)
        self._add(number, batch)
        return batch

    def _add(self, number: int, batch: Batch) -> None:
        if self._left == 0 or not all(map(_may_be_kept, batch.values())):
            return
        self._left = max(self._left - sum(one.nbytes for one in batch.values()), 0)
        if self._left:
            copied = {name: one.clone() for name, one in batch.items()}
            self._batches[number] = copied, _write_counts(copied)


def _may_be_kept(value: Any) -> bool:
    return type(value) is Tensor and value.layout == torch.strided and not value.requires_grad


def _write_counts(batch: Batch) -> list[int]:
    return [one._version for one in batch.values()]


class _ByValue:
    """A tensor that goes through a pipe as it is, and is a tensor again at the other end."""

    def __init__(self, tensor: Tensor) -> None:
        self._array = tensor.numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.from_numpy, (self._array,)


# By shared memory, its receiver connects to the sender for each tensor: 5 waits a micro-batch
# instead of one. More than this is sooner copied once than four times.
_MOST_BY_VALUE = 2**19  # bytes
_BY_VALUE = {torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16}
_BY_VALUE |= {torch.int8, torch.uint8, torch.bool}


def packed(batch: Any) -> Any:
    """A micro-batch as a worker sends it."""
    return _map(batch, lambda one: _ByValue(one) if _is_plain(one) else one)


_PIPE_BYTES = 2**20  # what Linux lets a user have


def widen_pipe(end: Connection) -> None:
    """Let more than a micro-batch wait in a pipe, where the system can: of 64 KB, as they come, a
    sender and its receiver take turns in filling and emptying.
    """
    with suppress(AttributeError, OSError):
        fcntl.fcntl(end.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.nbytes <= _MOST_BY_VALUE
        and (tensor.device.type, tensor.layout) == ("cpu", torch.strided)
        and tensor.dtype in _BY_VALUE
        and tensor.is_contiguous()
        and not (tensor.requires_grad or tensor.is_neg())
    )


def _map(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """With its tensors changed, in lists, tuples and dicts too, such as the boxes of each image."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        changed = copy.copy(value)  # of its class
        changed.update((key, _map(item, change)) for key, item in value.items())
        return changed
    if isinstance(value, list | tuple) and not isinstance(value, PackedSequence):
        items = [_map(item, change) for item in value]
        named = hasattr(value, "_fields")  # a named tuple
        return type(value)(*items) if named else type(value)(items)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those that `_map` changes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple) and not isinstance(value, PackedSequence):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
