"""A thread that does what a save leaves to do, one save after another."""

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Worker:
    """One thread of its own, begun with the first job and kept: to begin a thread, one waits until
    it runs, which takes many milliseconds where the cores are busy [measured].

    A daemon: a disk that hangs keeps no process from ending.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job, which raises nothing; none is under way."""
        assert self._idle.is_set()
        self._idle.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def wait(self, limit_s: float | None = None) -> bool:
        """Until no job is under way, `limit_s` at most, by default without end; whether none is."""
        return self._idle.wait(limit_s)

    def is_busy(self) -> bool:
        """Whether a job is under way."""
        return not self._idle.is_set()

    def close(self) -> None:
        """End the thread, once the job is done that is under way."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            finally:
                self._idle.set()
