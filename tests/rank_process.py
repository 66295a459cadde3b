"""The processes of the pool (see tests/pool.py): one imports once and forks the others, which fork
themselves for each job, so that a job finds a clean process and may die in it.
"""

import ctypes
import faulthandler
import gc
import multiprocessing
import os
import pickle
import random
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import accelerate  # noqa: F401 - what jobs need is imported once, here
import numpy as np
import pytest  # noqa: F401
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.utils.data
import torchmetrics.classification  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1]))
import harness.training.launch  # noqa: F401

THREADS_LIMIT_S = 5.0
PR_SET_PDEATHSIG = 1


def main() -> None:
    """For each (connection, standard output, standard error) that comes: a process that serves."""
    die_with_parent()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that have ended
    control = socket.socket(fileno=int(sys.argv[1]))
    gc.collect()
    gc.freeze()  # what was imported need not be walked in each job, nor copied for it
    control.send(b"1")
    while (given := socket.recv_fds(control, 1, 3))[0]:
        if os.fork() == 0:
            control.close()
            serve(*given[1])
        for one in given[1]:
            os.close(one)


def serve(connected: int, out: int, err: int) -> NoReturn:
    """Tell the process id, and for each job: ("began", its process id), then ("ended", how: see
    `work`), or ("died", the exit code, negative for a signal).
    """
    die_with_parent()
    os.setsid()  # so that it can be ended with its own children
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor, standard in ((out, 1), (err, 2)):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    connection = Connection(connected)
    connection.send(os.getpid())
    while True:
        try:
            path, directory, job = connection.recv()
        except EOFError:
            os._exit(0)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            connection.close()
            os.close(reading)
            sys.path[:] = path
            os.chdir(directory)
            # Makes torch's pool of threads anew, which several threads of a backward pass would at
            # once: "Invalid thread pool!"
            torch.set_num_threads(torch.get_num_threads())
            work(job, writing)
        os.close(writing)
        connection.send(("began", child))
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        connection.send(
            ("ended", answer) if answer else ("died", os.waitstatus_to_exitcode(status))
        )


def work(job: bytes, writing: int) -> NoReturn:
    """Answer with (outcome, answer), pickled, and end the process.

    Nothing that a job leaves behind may need this process.
    """
    die_with_parent()
    os.setpgid(0, 0)  # so that it can be ended with what it started
    outcome, answer = attempt(job)
    left = stragglers()
    if left and outcome == "result":
        outcome, answer = "failure", {"summary": f"left behind after its end: {', '.join(left)}"}
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(pickle.dumps((outcome, answer)))
    os._exit(0)


def attempt(pickled: bytes) -> tuple[str, Any]:
    """Run one job: ("result", a value that pickles) or ("failure", what tests/pool.py's Failure
    holds).
    """
    try:
        job = pickle.loads(pickled)
        os.environ.update(job["env"])
        seed()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # as pyproject.toml says for pytest itself
            result = job["function"](*job["args"])
        pickle.dumps(result)
    except BaseException as error:  # noqa: BLE001 - see above
        # Whatever a test's function raises, SystemExit included, is its answer
        answer = {
            "summary": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
            "error": portable(error),
        }
        traceback.clear_frames(error.__traceback__)
        return "failure", answer
    return "result", result


def seed() -> None:
    """Every job draws the same numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def portable(error: BaseException) -> BaseException | None:
    """The error if it survives the way to the parent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - see above
        # An exception's own __init__ may raise anything when it is unpickled
        return None
    return error


def stragglers() -> list[str]:
    """Names of the threads and children that do not end; process groups are left, so that peers see
    the end of this rank.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()  # ends the workers of loaders that nothing refers to any more
    functools = sys.modules.get("torch.utils._functools")
    if (prefetching := getattr(functools, "_prefetch_executor", None)) is not None:
        prefetching.shutdown()  # torch.compile's, which ends with the interpreter
    compiling = sys.modules.get("torch._inductor.async_compile")
    if compiling is not None and compiling.AsyncCompile.pool.cache_info().currsize:
        compiling.AsyncCompile.pool().shutdown()
    deadline = time.monotonic() + THREADS_LIMIT_S
    threads = [
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.daemon
    ]
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    # Daemons end with their parent
    children = [child for child in multiprocessing.active_children() if not child.daemon]
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
    for child in multiprocessing.active_children():
        child.terminate()
    return [f"thread {thread.name}" for thread in threads if thread.is_alive()] + [
        f"process {child.name}" for child in children if child.is_alive()
    ]


def die_with_parent() -> None:
    """No orphan if pytest is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
