"""Requests to save and leave become a flag that the loop reads once a step; nothing else happens
inside a signal handler. Sources: SIGTERM, SIGINT, SIGUSR1; a file PREEMPT in the run directory; the
end of the launcher; another rank that was asked.
"""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from harness.errors import LeavingError

PR_SET_PDEATHSIG = 1
# For python -c: a `fermarsi` that saves and leaves when the process that started it is killed
DEPENDENT_CLI = """import signal
from harness.interrupt import die_with_parent
die_with_parent(signal.SIGTERM)
from harness.cli import main
main()
"""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PREEMPT = "PREEMPT"
GROWS = "more processes are ready"  # why a launch leaves at the end of an interval
# What torch's agent gives its workers between SIGTERM and SIGKILL, unless PET_SHUTDOWN_TIMEOUT says
# otherwise
AGENT_GRACE_S = 30.0
POLL_S = 1.0
# A process that was asked to leave waits so long for the others to come before it leaves alone
JOIN_S = 10.0
# A second Ctrl-C waits so long for the main thread to come out of what runs no handlers
NOW_S = 5.0
_NOTE = "leave"
# As early as can be: a launcher may die while torch is being imported
_IMPORTED = (os.getpid(), os.getppid())


class Notes(Protocol):
    """Where ranks leave words for each other: harness.ranks.Board."""

    def post(self, key: str, text: str) -> None: ...

    def read(self, key: str) -> str | None: ...


class Interruption:
    """While entered, `cause` is None until something asks to leave, and then says what; a second
    SIGINT ends the process as Python would.

    Threads hear of signals where the main thread is inside of a collective and runs no handlers,
    look once a second for the file, the launcher and the word of another rank, and pass the word
    on. Until `join`, it is a flag as well, but the process leaves alone if it cannot join within
    JOIN_S. Outside of the main thread, which alone may ask for signals, none is heard of.

    `at_interval`: asked on rank 0 at the end of each interval, whether to leave there; None on all
    ranks where nothing asks. `goes_on`: whether it follows another launch of this process, so that
    a file PREEMPT that is there already is meant for it.

    owns_process: whether the process is there for this launch alone, and may be ended by it.
    """

    def __init__(self, *, owns_process: bool = True) -> None:
        self.cause: str | None = None
        self.at_interval: Callable[[], bool] | None = None
        self.goes_on = False
        self._owns_process = owns_process
        self._asked_at = 0.0
        self._asked = threading.Event()
        self._over = threading.Event()
        self._joined = False
        self._meeting: tuple[float, str] | None = None  # when it is given up, and what is said then
        self._file: Path | None = None
        self._launcher = _launcher()
        self._before: dict[signal.Signals, Any] = {}
        self._keyboard = 0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Interruption":
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        if threading.current_thread() is threading.main_thread():
            self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._start(self._watch)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            # None: one that was installed from C
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
        self._over.set()
        self._asked.set()
        os.write(self._writing, b"\0")
        self._threads[0].join()
        for end in (self._reading, self._writing):
            os.close(end)

    def give_up_after(self, limit_s: float, message: str) -> None:
        """End this process with exit code 1 if it has not joined the others by then: torch would
        wait forever for a peer that does not answer.
        """
        self._meeting = time.monotonic() + limit_s, message

    def join(self, notes: Notes | None, rank: int) -> None:
        """From now on this process leaves together with others; `notes`: where they learn of it,
        None for a single rank.
        """
        self._joined = True
        if notes is not None:
            self._start(self._exchange, notes, rank)

    def look_for(self, file: Path) -> None:
        """Treat this file as a request, checked once a second. Rank 0 only."""
        self._file = file

    def ask(self, cause: str) -> None:
        """Ask this launch to leave; the first cause stays, but for one to go on with more."""
        if self.cause in (None, GROWS):
            self._asked_at = time.monotonic()
            self.cause = cause
            self._asked.set()

    def check(self) -> None:
        """Raise LeavingError if something asked to leave. Costs nothing; inside `ranks.decide` or
        `ranks.together` all ranks raise it.
        """
        if self.cause is not None:
            raise LeavingError(self.cause)

    def age_s(self) -> float:
        """Seconds since something asked to leave, 0 if nothing did."""
        return 0.0 if self.cause is None else time.monotonic() - self._asked_at

    def stay_deaf(self) -> None:
        """Once this launch is about to end the process: SIGTERM and SIGUSR1, which may come twice,
        do nothing any more, even when it is left.
        """
        self._before |= {signal.SIGTERM: signal.SIG_IGN, signal.SIGUSR1: signal.SIG_IGN}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._keyboard += number == signal.SIGINT
        if self._keyboard > 1:
            raise KeyboardInterrupt
        self.ask(f"{signal.Signals(number).name} came")

    # -- in threads

    def _start(self, work: Any, *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, name="fermarsi-interruption", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self) -> None:
        """Signals at once, everything else once a second."""
        keyboard = 0
        while not self._over.is_set():
            for number in (
                os.read(self._reading, 64)
                if select.select([self._reading], [], [], POLL_S)[0]
                else b""
            ):
                if number in SIGNALS:
                    self.ask(f"{signal.Signals(number).name} came")
                keyboard += number == signal.SIGINT
            if keyboard > 1 and not self._over.wait(NOW_S):
                self._end(
                    "interrupted twice: leaving at once; launch again to resume from the last "
                    "checkpoint",
                    130,
                )
            if self._launcher is not None and os.getppid() != self._launcher:
                self.ask("the launcher ended")
            with suppress(OSError):  # a file system that does not answer now may do so in a second
                if self._file is not None and self._file.exists():
                    self.ask(f"a file {self._file.name} came")
            if (
                not self._joined
                and self._meeting is not None
                and time.monotonic() > self._meeting[0]
            ):
                self._end(self._meeting[1], 1)
            if not self._joined and self.age_s() > JOIN_S:
                self._end(
                    f"{self.cause}, and the other processes of this launch did not: nothing was "
                    "begun",
                    0 if under_agent(os.environ) else 75,
                )

    def _exchange(self, notes: Notes, rank: int) -> None:
        """Watch for a request seen by another rank, and pass on one of this rank."""
        while not self._asked.wait(POLL_S):
            word = notes.read(_NOTE)
            if word is not None:
                self.ask(word)
        if self.cause not in (None, GROWS):  # of that, all know
            notes.post(_NOTE, f"{self.cause} (rank {rank})")

    def _end(self, message: str, code: int) -> None:
        if self._owns_process:
            print(message, file=sys.stderr, flush=True)
            os._exit(code)


def granted_s(configured: float | None, cause: str, environment: Mapping[str, str]) -> float | None:
    """Seconds from the request to the kill: as configured; else, after a signal, what torch's agent
    gives; None if nothing is known.
    """
    if configured is not None or not cause.startswith("SIG") or not under_agent(environment):
        return configured
    try:
        return float(environment.get("PET_SHUTDOWN_TIMEOUT", AGENT_GRACE_S))
    except ValueError:
        return AGENT_GRACE_S


def under_agent(environment: Mapping[str, str]) -> bool:
    """Whether torch's elastic agent started this process."""
    return "TORCHELASTIC_RUN_ID" in environment


def ignore_signals() -> None:
    """For DataLoader workers: the signals that ask a run to save must not kill them first."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)  # a fork writes into its parent's pipe


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Get this signal when the process that started this one ends. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def _launcher() -> int | None:
    """The process id of `accelerate launch` or torchrun, if it started this process: once it ends,
    nothing waits for this process. A shell is not a launcher: what it started with nohup outlives
    it.
    """
    # The one-process launcher sets no other mark
    marks = ("ACCELERATE_MIXED_PRECISION", "FERMARSI_MEMBER")
    if not under_agent(os.environ) and not any(one in os.environ for one in marks):
        return None
    return _IMPORTED[1] if os.getpid() == _IMPORTED[0] else os.getppid()
