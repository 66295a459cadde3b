"""One launch of a run in a process of its own, which saves and leaves when the process that started
it asks or ends, however that ends.
"""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from harness.checkpoint.read import step_names
from harness.errors import CheckpointError
from harness.interrupt import DEPENDENT_CLI
from harness.rundir.lease import holder
from harness.rundir.outcome import INTERRUPTED

# For a launch that an ended sweep has left behind to save and leave
LEFT_BEHIND_S = 120.0
POLL_S = 0.05
# What every training imports sooner or later, seconds of it
PRELOADED = ["harness.training.launch", "harness.tasks", "harness.networks", "torch._dynamo"]
_ERROR = re.compile(r"[\w.]*Error: ")


@dataclass(frozen=True, eq=False)
class Place:
    """What one launch at a time runs on: so many processes, on the CPU or on these GPUs (all if
    None).
    """

    processes: int = 1
    cpu: bool = False
    gpus: Sequence[str] | None = None


class Launched:
    """A launch of a config in a process of its own.

    It is forked from a server that has imported torch already, sees nothing of this process's
    terminal, and writes its console into `log`.
    """

    def __init__(self, config: Path, overrides: Sequence[str], log: Path, place: Place) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        log.parent.mkdir(parents=True, exist_ok=True)
        theirs, self._asking = context.Pipe(duplex=False)
        arguments = (str(config.absolute()), tuple(overrides), str(log.absolute()), place, theirs)
        here = (os.getcwd(), dict(os.environ))
        self._log, self._begin = log, log.stat().st_size if log.exists() else 0
        self._process = context.Process(target=_run, args=(*arguments, *here))
        self._process.start()
        theirs.close()
        self.asked = False  # to leave

    def ask_to_leave(self) -> None:
        """Ask it to save and leave; harmless if it was asked, or has ended."""
        self.asked = True
        self._asking.close()

    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that killed it."""
        return self._process.exitcode

    def wait(self) -> None:
        """Until it has ended."""
        self._process.join()
        self._asking.close()

    def error(self) -> str:
        """The message with which it ended, "" without one."""
        with self._log.open("rb") as file:
            file.seek(self._begin)
            lines = file.read().decode(errors="replace").splitlines()
        found = [
            index for index, line in enumerate(lines) if "Error: " in line.split(" ", 2)[0] + " "
        ]
        return " ".join(lines[found[-1] :]) if found else ""


def is_cut_off(code: int | None) -> bool:
    """Whether an exit code is that of a launch that was interrupted, or killed by a signal, so that
    another one goes on; of several processes, 128 and the signal.
    """
    return code is not None and (code == INTERRUPTED or code < 0 or code > 128)


def newest_step(directory: Path) -> int:
    """The step from which a run in this directory would go on; 0 before its first checkpoint, and
    for a directory that cannot be read, of which its launch tells.
    """
    with suppress(CheckpointError):
        return max((step for step, _ in step_names(directory / "checkpoints")), default=0)
    return 0


def no_further(code: int | None, step: int, log: Path) -> str:
    """Why a launch that was cut off is not repeated: it got no further than the one before."""
    how = "interrupted" if code == INTERRUPTED else "killed"
    return (
        f"it was {how} (exit code {code}) without getting further than step {step:,}, where it "
        f"began. See what ended it in {log}."
    )


def await_leaving(directory: Path, check_leave: Callable[[], None]) -> None:
    """Wait for a launch of the run in this directory that an ended sweep has left behind: it was
    asked to leave by that, and saves.
    """
    deadline = time.monotonic() + LEFT_BEHIND_S
    while holder(directory)[1] and time.monotonic() < deadline:
        check_leave()
        time.sleep(POLL_S)


def _run(
    config: str,
    overrides: Sequence[str],
    log: str,
    place: Place,
    asked: Connection,
    directory: str,
    environment: Mapping[str, str],
) -> None:
    """The process of a launch."""
    os.setsid()  # Ctrl-C is for the process that started it
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    if place.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(place.gpus)
    if place.cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if place.processes > 1:
        options = ["--processes", str(place.processes), *(["--cpu"] if place.cpu else [])]
        program = [sys.executable, "-c", DEPENDENT_CLI, "launch"]
        with subprocess.Popen([*program, config, *overrides, *options]) as launcher:
            _watch(asked, launcher.pid)
        code = launcher.returncode
        sys.exit(code if code >= 0 else 128 - code)
    _watch(asked, os.getpid())
    from harness.training.launch import launch, leave_process

    leave_process(launch(Path(config), overrides))


def _watch(asked: Connection, process: int) -> None:
    """Pass on, from a thread, that the process at the other end asks, or has ended."""

    def pass_on() -> None:
        with suppress(EOFError, OSError):
            asked.recv_bytes()
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)

    threading.Thread(target=pass_on, name="fermarsi-asked", daemon=True).start()
