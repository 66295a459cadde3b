"""Copying tensors into host memory while the training goes on, until the next optimizer step.

Weights and moments change in optimizer steps alone, so that their copy may run under the next
forward and backward pass (J. Mohan et al., "CheckFreq: Frequent, Fine-Grained DNN Checkpointing",
FAST 2021). What relies on a "so" is checked: torch counts the writes to each tensor, and a copy
during which one was counted is not used.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from harness.checkpoint.format import bytes_of
from harness.checkpoint.pinned import pinned as pinned_memory

# Torch counts a write when it is done. Where the training's thread does not come to say that none
# is under way, as in a step that takes long or hangs, this is more than one takes.
_SETTLED_S = 5.0


@dataclass(frozen=True)
class Part:
    """A tensor, or some of its rows, and where its bytes go in the host memory.

    `whole`: what they are rows of; torch counts writes to a sharded one there alone.
    """

    name: str
    tensor: Tensor
    begin: int
    whole: Tensor

    def num_writes(self) -> int:
        """How many writes to it torch has counted."""
        return self.tensor._version + self.whole._version


class HostMemory:
    """Memory that is filled again at each save; pinned where tensors come from a GPU."""

    def __init__(self) -> None:
        self._is_pinned = False
        # Why pinned memory is not as it should be
        self.trouble: str | None = None
        self._use(torch.empty(0, dtype=torch.uint8))

    def reserve(self, size_bytes: int, pinned: bool) -> None:
        """Grow to at least this many bytes."""
        if self.octets.numel() >= size_bytes and (self._is_pinned or not pinned):
            return
        self._use(torch.empty(0, dtype=torch.uint8))  # given back before more is taken
        if pinned:
            memory, self.trouble = pinned_memory(size_bytes)
        else:
            memory = torch.empty(size_bytes, dtype=torch.uint8)
        self._use(memory)
        self._is_pinned = pinned

    def _use(self, memory: Tensor) -> None:
        self.octets, self._array, self.bytes = memory, memory.numpy(), bytes_of(memory)

    def fill(self, part: Part) -> None:
        """Copy one part; from a GPU, begin to. Others run meanwhile: the GIL is released."""
        tensor, begin = part.tensor, part.begin
        end = begin + tensor.nbytes
        if (
            tensor.device.type == "cpu"
            and tensor.is_contiguous()
            and not (tensor.is_conj() or tensor.is_neg())
        ):
            # One plain memcpy: torch shares each tensor among its threads, which takes many times
            # longer where data workers use the cores [measured].
            self._array[begin:end] = tensor.reshape(-1).view(torch.uint8).numpy()
        else:
            self.octets[begin:end].view(tensor.dtype).view(tensor.shape).copy_(
                tensor, non_blocking=True
            )


class Copy:
    """Parts that are being copied: those of each file in turn, `ready` when they are there."""

    def __init__(self, memory: HostMemory, files: Sequence[Sequence[Part]]) -> None:
        self._memory = memory
        self._files = files
        self._parts = [part for parts in files for part in parts]
        self._counts = [part.num_writes() for part in self._parts]
        self.ready: list[Future[None]] = [Future() for _ in files]
        self._rejoin: Callable[[], object] | None = None
        self._finished = threading.Event()
        self._changed: list[str] = []
        self.held_s = 0.0

    def start(self, executor: Executor) -> None:
        """Begin. The last that a save does before the training goes on: a thread that wakes up
        wants the interpreter, and where the cores are busy whoever gave it away gets it back late
        [measured].
        """
        if any(part.tensor.device.type != "cpu" for part in self._parts):
            steps = self._start_on_device()
        else:
            steps = [partial(_fill, self._memory, parts) for parts in self._files]
        executor.submit(_take_turns, steps, self.ready)

    def finish(self) -> None:
        """By the training's thread, before it changes what is copied: the host waits for the copy,
        or a GPU does.
        """
        if self._finished.is_set():
            return
        began = time.monotonic()
        if self._rejoin is None:
            wait(self.ready)
        else:
            self._rejoin()
        self._changed = self._written_to()
        self.held_s += time.monotonic() - began
        self._finished.set()

    def find_changes(self) -> list[str]:
        """The names of what may have changed while it was copied. By another thread, once all is
        `ready`: it waits for the training's, but not long.
        """
        if not self._finished.wait(_SETTLED_S):
            found = self._written_to()
            # Else the optimizer's own writes may be among them
            if not self._finished.is_set():
                return found
        return self._changed

    def _written_to(self) -> list[str]:
        return [
            part.name
            for part, count in zip(self._parts, self._counts, strict=True)
            if part.num_writes() != count
        ]

    def _start_on_device(self) -> list[Callable[[], None]]:
        """On a stream of its own, after the device's work so far; the waits of the files."""
        here = torch.accelerator.current_stream()
        aside = torch.Stream(here.device)
        aside.wait_stream(here)
        ends = []
        with aside:
            for parts in self._files:
                _fill(self._memory, parts)
                ends.append(aside.record_event())
        self._rejoin = lambda: torch.accelerator.current_stream().wait_event(ends[-1])
        return [end.synchronize for end in ends]


def _fill(memory: HostMemory, parts: Sequence[Part]) -> None:
    for part in parts:
        memory.fill(part)


def _take_turns(steps: Sequence[Callable[[], None]], ends: Sequence[Future[None]]) -> None:
    for step, end in zip(steps, ends, strict=True):
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits for it
            end.set_exception(error)
        else:
            end.set_result(None)
