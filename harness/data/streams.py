"""A stream, a source without a length, read as a source by position.

Every process reads the same stream and gives the positions it is asked for, so no sample comes on
two ranks, and what comes does not depend on how many ranks or workers there are. Between its own
positions a process goes on by `seek` if the stream has it, else by reading and dropping.
"""

import copy
import hashlib
import json
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
import torch.utils.data._utils.worker as torch_worker
from torch import Tensor

from harness.data.sampling import Integers
from harness.data.source import can_seek, has_state
from harness.errors import DataError, HarnessError

_COMPARED = 4  # samples: of a shuffle buffer one alone may be the same by chance


class InOrder:
    """The order of a stream: position by position."""

    def samples(self, positions: Integers, seed: int) -> Integers:
        """positions: (n,) -> the same."""
        return positions


@dataclass(frozen=True)
class Mark:
    """Where a stream can be read on from: `state`, what its `state_dict` gave before the sample at
    `position` of the pass that began at `begin`; `digests` of some samples from there on.
    """

    position: int
    begin: int
    state: Any
    digests: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return dict(vars(self))


class StreamSource:
    """The first `num_samples` samples of a stream as a source; with `repeats` more can be read, and
    a stream that ends begins again. Raises DataError.
    """

    order = InOrder()

    def __init__(
        self, stream: Any, num_samples: int, where: str, *, repeats: bool, inner: bool = False
    ) -> None:
        if not isinstance(stream, Iterable) or isinstance(stream, Iterator):
            raise DataError(
                f"{where}: a {type(stream).__name__} has no length, and no __iter__ that begins "
                "anew each time it is called. Give it one of them; a generator becomes a class "
                "whose __iter__ is that generator."
            )
        self.sources = {"stream": stream}
        self._stream: Any = stream
        self._num_samples = num_samples
        self._where, self._repeats = where, repeats
        self._seeks = can_seek(stream)
        self._saves = not self._seeks and has_state(stream)
        # Draws from other streams, whose marks it gives and takes back by `restore`
        self._nests = self._seeks and hasattr(stream, "inner_marks")
        # A stream within another is read sample by sample, and marked when that asks
        self._inner = inner
        self._settled: Mark | None = None
        # A mark, and the digests of the samples behind it so far
        self._pending: tuple[Mark, list[str]] | None = None
        start = Mark(0, 0, self._state())
        self._marks = {"start": start}
        self.mark: Mark | None = None  # of the samples that were read last
        self._forget()

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """B positions -> B samples"""
        read: dict[int, Any] = {}
        mark = None
        for position in sorted(set(indices)):
            if position != self._position or self._process != os.getpid():
                self._go_to(position)
            if self._saves and not read and not self._inner:
                mark = self._here()
            if self._nests and not read:
                self.mark = Mark(position, 0, self._stream.inner_marks())
            read[position] = self._next()
            # Where a pass ended before the first sample, the state would end it again
            if len(read) == 1 and mark is not None and self._begin != mark.begin:
                mark = None
        if mark is not None:
            self._keep(mark, read)
        return [read[position] for position in indices]

    def restore(self, mark: Mapping[str, Any]) -> None:
        """Go on from a mark of an earlier launch, if the stream gives the same samples there as it
        did then.
        """
        if self._nests:
            self._stream.restore(mark["state"])
            return
        self._marks["restored"] = Mark(**mark)
        self._go_to(self._marks["restored"].position)

    def settled_mark(self) -> Mark | None:
        """A mark at or before the position, of a stream within another, once the samples behind it
        are known; it begins another.
        """
        if self._process != os.getpid() or self._samples is None:
            return self._marks.get("restored")
        if self._nests:
            return Mark(self._position, 0, self._stream.inner_marks())
        if self._saves and self._pending is None and (here := self._here()) is not None:
            self._pending = here, []
        settled = self._settled or self._marks.get("restored")
        return settled if settled is not None and settled.position <= self._position else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_samples": None, "_process": 0}

    def _forget(self) -> None:
        self._samples: Iterator[Any] | None = None
        # Read to compare them with those of a mark, and not yet given; where the pass of each began
        self._ahead: deque[tuple[Any, int]] = deque()
        self._compared: Mark | None = None
        self._pending = None
        self._process, self._position, self._begin = 0, -1, 0

    def _go_to(self, position: int) -> None:
        # A worker of a loader has its copy, and what both read on from, such as a file, is one
        if self._process != os.getpid():
            self._forget()
            self._process = os.getpid()
            # Streams share themselves out by it, and here each worker reads all of it
            torch_worker._worker_info = None
        if self._seeks:
            self._stream.seek(position)
            self._samples, self._position = iter(self._stream), position
            return
        behind = [mark for mark in self._marks.values() if mark.position <= position]
        best = max(behind, key=lambda mark: mark.position)
        if self._samples is None or not best.position <= self._position <= position:
            self._load(best)
        while self._position < position:
            self._next()

    def _load(self, mark: Mark) -> None:
        """Begin to read from a mark, or from the start if that gives other samples now."""
        self._ahead.clear()
        self._pending = None
        if self._saves:
            self._stream.load_state_dict(copy.deepcopy(mark.state))
        self._samples, self._position, self._begin = iter(self._stream), mark.position, mark.begin
        found = [(self._next(), self._begin) for _ in mark.digests]
        if [digest_of(sample) for sample, _ in found] == list(mark.digests):
            self._position, self._begin = mark.position, mark.begin
            self._ahead.extend(found)
            self._compared = mark
            return
        warnings.warn(
            f"{self._where}: from its saved state the stream continues with other samples than it "
            f"gave from position {mark.position:,} on; it is read again from its beginning, which "
            "takes longer. Its state_dict is incomplete (a shuffle buffer?).",
            stacklevel=2,
        )
        self._marks, self._settled = {"start": self._marks["start"]}, None
        self._load(self._marks["start"])

    def _next(self) -> Any:
        """The next sample, whose digest the pending mark gets."""
        sample = self._read()
        if self._pending is not None:
            mark, digests = self._pending
            digests.append(digest_of(sample))
            if len(digests) == _COMPARED:
                self._pending = None
                self._settled = Mark(mark.position, mark.begin, mark.state, digests)
                self._keep_mark(self._settled)
        return sample

    def _read(self) -> Any:
        assert self._samples is not None
        if self._ahead:
            sample, self._begin = self._ahead.popleft()
            self._position += 1
            return sample
        try:
            sample = next(self._samples)
        except StopIteration:
            self._begin_again()
            return self._read()
        except HarnessError:
            raise
        except Exception as error:
            raise DataError(
                f"{self._where}: {type(error).__name__} while reading sample {self._position:,} "
                f"of the stream: {error}"
            ) from error
        self._position += 1
        return sample

    def _begin_again(self) -> None:
        ended = f"{self._where}: the stream ends after {self._position - self._begin:,} samples"
        if self._position == self._begin:
            raise DataError(f"{ended} of a pass. Give a stream that has samples.")
        if self._seeks:
            raise DataError(
                f"{ended}, and one with `seek` must go on, e.g. from its first sample again."
            )
        if not self._repeats:
            raise DataError(
                f"{ended}, and samples asks for {self._num_samples:,}. Set it to that at most."
            )
        position, start = self._position, self._marks["start"]
        self._load(Mark(position, position, start.state))

    def _state(self) -> Any:
        if not self._saves:
            return None
        state = copy.deepcopy(self._stream.state_dict())
        try:
            kept = json.loads(json.dumps(state)) == state
        except (TypeError, ValueError):
            kept = False
        if not kept:
            raise DataError(
                f"{self._where}: state_dict() of a {type(self._stream).__name__} returns what JSON "
                "cannot hold. Return numbers, texts, lists and dicts with texts as keys."
            )
        return state

    def _here(self) -> Mark | None:
        """A mark of this position; None where the stream itself is further on."""
        if not self._ahead:
            return Mark(self._position, self._begin, self._state())
        compared = self._compared
        if compared is None or compared.position != self._position:
            return None
        return compared

    def _keep(self, mark: Mark, read: Mapping[int, Any]) -> None:
        positions = range(mark.position, mark.position + _COMPARED)
        digests = [digest_of(read[at]) for at in takewhile(read.__contains__, positions)]
        self.mark = Mark(mark.position, mark.begin, mark.state, digests)
        self._keep_mark(self.mark)

    def _keep_mark(self, mark: Mark) -> None:
        furthest = self._marks.get("furthest", self._marks["start"])
        self._marks["last"] = mark
        self._marks["furthest"] = max(mark, furthest, key=lambda mark: mark.position)


def digest_of(sample: Any) -> str:
    """A digest of a sample's names and values."""
    found = hashlib.blake2b(digest_size=16)
    items = sample.items() if isinstance(sample, Mapping) else [("", sample)]
    for name, value in items:
        _add(found, name, value)
    return found.hexdigest()


def _add(found: Any, name: str, value: Any) -> None:
    if isinstance(value, Tensor):  # of any type, also one that numpy does not have
        kind = f"{name} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        stored = value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
    else:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError):  # parts of several lengths, or such tensors
            for number, part in enumerate(value):
                _add(found, f"{name}.{number}", part)
            return
        kind = f"{name} {array.dtype} {array.shape}"
        stored = repr(value).encode() if array.dtype.kind == "O" else array.tobytes()
    found.update(kind.encode())
    found.update(stored)
