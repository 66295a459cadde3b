"""What a training changes of its process, put back for what the process does next."""

import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.utils import deterministic
from torch.utils.data._utils import signal_handling

from harness.data.feed import end_workers
from harness.randomness import accelerator_module, preserve_random


@contextmanager
def isolated() -> Iterator[None]:
    """Afterwards this process has the environment, module path, random states, settings of torch,
    filters of warnings and handler of SIGCHLD that it had, and none of the workers and the shared
    state of Accelerate that were made inside; inside, no Accelerator is there yet.
    """
    with ExitStack() as stack:
        for keep in (_environment, _path, _torch, _loaders, _accelerate):
            stack.callback(keep())
        stack.enter_context(preserve_random())
        stack.enter_context(warnings.catch_warnings())
        stack.callback(gc.collect)  # networks and moments hold each other in cycles
        yield


def _environment() -> Callable[[], None]:
    before = dict(os.environ)

    def restore() -> None:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)

    return restore


def _path() -> Callable[[], None]:
    before = list(sys.path)
    # A config names modules of the working directory, as on the command line
    sys.path.append(str(Path.cwd()))

    def restore() -> None:
        sys.path[:] = before

    return restore


def _torch() -> Callable[[], None]:
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = getattr(deterministic, "fill_uninitialized_memory")  # noqa: B009 - its stubs lack it
    benchmark = torch.backends.cudnn.benchmark
    products = torch.get_float32_matmul_precision()
    threads = torch.get_num_threads()
    module = accelerator_module()
    device = None if module is None else module.current_device()

    def restore() -> None:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        setattr(deterministic, "fill_uninitialized_memory", fill)  # noqa: B010 - see above
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(products)
        torch.set_num_threads(threads)
        if module is not None:
            module.set_device(device)

    return restore


def _loaders() -> Callable[[], None]:
    """Torch's handler for the end of a worker, which it installs once, and the threads by which
    requests go to workers: each ends by itself, soon after its queue was closed.
    """
    others = set(threading.enumerate())
    installed = signal_handling._SIGCHLD_handler_set
    handler = signal.getsignal(signal.SIGCHLD)

    def restore() -> None:
        end_workers()
        for thread in set(threading.enumerate()) - others:
            if thread.name == "QueueFeederThread":
                thread.join(timeout=1.0)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)
            signal_handling._SIGCHLD_handler_set = installed

    return restore


def _accelerate() -> Callable[[], None]:
    """Its objects are one a process; those of a user's own Accelerator come back."""
    shared = [kind._shared_state for kind in (AcceleratorState, GradientState, PartialState)]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()

    def restore() -> None:
        for state, values in zip(shared, before, strict=True):
            state.clear()
            state.update(values)

    return restore
