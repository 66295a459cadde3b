"""Signals become a flag that the loop reads once a step; nothing else happens inside a handler."""

import ctypes
import signal
import sys
from types import FrameType
from typing import Any

PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interruption:
    """While entered, SIGTERM, SIGINT and SIGUSR1 only set `signal_name`; a second SIGINT ends the process as Python would.

    Must be entered in the main thread.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._keyboard = 0

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: one that was installed from C

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._keyboard += number == signal.SIGINT
        if self._keyboard > 1:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name


def ignore_signals() -> None:
    """For DataLoader workers: the signals that ask a run to save must not kill them first."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def die_with_parent() -> None:
    """For DataLoader workers: end by SIGKILL when the process that started this one ends. Linux only; elsewhere they notice within seconds."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
