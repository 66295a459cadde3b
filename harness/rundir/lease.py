"""One launch at a time in a run directory, on any file system that creates files exclusively.

`<run>/lease/` holds a file named by the holder's fencing number, the highest there. Taking the
lease is creating the next number, which only one process can do; whoever finds a higher number than
its own is fenced out, even if it was suspended meanwhile. Clocks are never compared: a holder that
is not in this machine's process table is alive if its file, which a thread rewrites, changes while
being watched. No lock is used, because shared file systems differ in their locks.
"""

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.bounded import read_json
from harness.durable import replace_file
from harness.errors import CheckpointError, ConfigError
from harness.rundir.links import refuse_links

_NUMBER = re.compile(r"[0-9]{8,18}")
MAX_NUMBER = 10**12
MAX_BEAT_S = 60.0
# Of a lease that was being written when its process died
_TEMPORARY = re.compile(r"\.[0-9]{8,18}-[0-9a-f]{8}")


class Lease:
    """Held by rank 0 of a launch from `take` to `release`.

    `message`: what to report of the previous launch, or None.
    """

    def __init__(self, directory: Path, *, beat_s: float = 5.0, watch_s: float = 30.0) -> None:
        """`beat_s`: how often the holder renews its file; `watch_s`: how long another launch
        watches for that.
        """
        self._directory = directory / "lease"
        self._run = directory
        self._beat_s = beat_s
        self._watch_s = watch_s
        self._number = 0
        self._holder: dict[str, Any] = {}
        self._released = threading.Event()
        self._thread: threading.Thread | None = None
        self.message: str | None = None

    def take(self, check_leave: Callable[[], None] = lambda: None) -> int:
        """Hold the run directory; returns the number of launches so far, this one included. Raises
        ConfigError if another launch holds it.

        May wait for `watch_s` if the previous launch ran elsewhere and did not end in order;
        `check_leave` is called while it waits. Creates the directory.
        """
        refuse_links(self._run)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            while not self._number:
                last = self._last()
                if last >= MAX_NUMBER:
                    raise ConfigError(
                        f"{self._directory}: holds a lease numbered {last}, which no launch wrote. "
                        "Remove it."
                    )
                if last:
                    self.message = self._inspect(last, check_leave)
                self._create(last + 1)
        except OSError as error:
            raise ConfigError(
                f"{self._run}: {error.strerror}. Make the run directory writable or choose another "
                "run.dir."
            ) from error
        self._thread = threading.Thread(target=self._beat, name="fermarsi-lease", daemon=True)
        self._thread.start()
        return self._number

    def check(self) -> None:
        """Raise CheckpointError unless this launch still holds the lease."""
        try:
            last = self._last()
            token = self._read(self._number).get("token")
        except OSError as error:
            raise CheckpointError(
                f"{self._directory}: {error.strerror}: this launch cannot confirm that it holds "
                "the run."
            ) from error
        if last > self._number:
            raise CheckpointError(
                f"{self._run}: launch {last} has taken over the run from this one, launch "
                f"{self._number}. This launch writes nothing more."
            )
        if token != self._holder.get("token"):
            raise CheckpointError(
                f"{self._directory}: the lease of this launch has been removed. Do not touch "
                "that directory while a run trains."
            )

    def release(self) -> None:
        """Release the directory, if it was taken here, so that the next launch need not wait."""
        if self._thread is None:
            return
        self._released.set()
        self._thread.join()
        self._thread = None
        # Fenced out, or the directory is gone: nothing to give back
        with suppress(OSError, CheckpointError):
            self.check()
            self._write({**self._holder, "released": True})

    def _create(self, number: int) -> None:
        """Become the holder, unless another process is faster: then nothing happens."""
        holder = {
            "number": number,
            "token": secrets.token_hex(8),
            "beat": 0,
            "beat_s": self._beat_s,
            "released": False,
            **_this_process(),
        }
        try:
            descriptor = os.open(self._path(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return
        with os.fdopen(descriptor, "w") as file:
            file.write(_encode(holder))
            file.flush()
            os.fsync(file.fileno())
        if self._last() != number:  # others came, went and cleared up since we looked
            return
        self._number, self._holder = number, holder
        for name in os.listdir(self._directory):
            earlier = _NUMBER.fullmatch(name) and int(name) < number
            if earlier or _TEMPORARY.fullmatch(name):  # no other file of anybody's
                (self._directory / name).unlink(missing_ok=True)

    def _inspect(self, number: int, check_leave: Callable[[], None]) -> str | None:
        """Return once launch `number` is over, with a message if it did not end in order.

        Raises ConfigError if it lives.
        """
        before = self._read(number)
        if before.get("released"):
            return None
        who = f"{before.get('host', 'an unknown host')}, process {before.get('pid', 'unknown')}"
        lives = _lives(before)
        if lives is None:
            lives = self._changes(number, before, check_leave)
        if lives:
            raise ConfigError(
                f"{self._run}: launch {number} holds this run and is alive ({who}). Stop it first, "
                "or choose another run.dir."
            )
        return f"{self._run}: took over from launch {number} ({who}), which did not end in order."

    def _changes(
        self, number: int, before: Mapping[str, Any], check_leave: Callable[[], None]
    ) -> bool:
        """Watch a lease for changes."""
        # The holder may beat slower than this process would.
        beat_s = before.get("beat_s")
        beat_s = min(beat_s, MAX_BEAT_S) if isinstance(beat_s, int | float) else 0.0
        deadline = time.monotonic() + max(self._watch_s, 3 * beat_s)
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._watch_s / 10))
            check_leave()
            now = self._read(number)
            if now.get("released"):
                return False
            if self._last() != number:  # another was quicker and is looked at next
                return False
            if now != before:
                return True
        return False

    def _beat(self) -> None:
        while not self._released.wait(self._beat_s):
            self._holder["beat"] += 1
            with suppress(OSError):  # a full or failing disk: saves fail too, and say so
                if self._read(self._number).get("token") != self._holder["token"]:
                    return  # fenced out; `check` says so
                self._write(self._holder)

    def _write(self, holder: Mapping[str, Any]) -> None:
        """Replace this launch's own file; harmless if it has been fenced out, since lower numbers
        are ignored.
        """
        replace_file(self._path(self._number), _encode(holder), sync=False)

    def _read(self, number: int) -> dict[str, Any]:
        """A lease, {} if it is gone or was never completed."""
        try:
            return _holder(self._path(number))
        except (FileNotFoundError, ValueError):
            return {}

    def _last(self) -> int:
        return _last_number(self._directory)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08}"


def holder(run: Path) -> tuple[str | None, bool | None]:
    """(who holds a run, whether it is alive); None if unknown: nobody, or a process of another
    machine. Never waits.
    """
    try:
        number = _last_number(run / "lease")
        found = _holder(run / "lease" / f"{number:08}")
    except (OSError, ValueError):
        return None, False
    if found.get("released"):
        return None, False
    return f"launch {number} on {found.get('host')}, process {found.get('pid')}", _lives(found)


def _last_number(directory: Path) -> int:
    numbers = (int(name) for name in os.listdir(directory) if _NUMBER.fullmatch(name))
    return max(numbers, default=0)


def _holder(path: Path) -> dict[str, Any]:
    """The content of a lease. Raises OSError, and ValueError for anything else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError("no lease")
    return found


def _encode(holder: Mapping[str, Any]) -> str:
    return json.dumps(holder, sort_keys=True) + "\n"


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "started": _start_of(pid),
        "machine": _machine(),
    }


def _lives(holder: Mapping[str, Any]) -> bool | None:
    """Whether the process that wrote a lease is alive; None if this machine's process table cannot
    tell.
    """
    machine = _machine()
    if machine is None or holder.get("machine") != machine:
        return None
    pid, started = holder.get("pid"), holder.get("started")
    return started is not None and type(pid) is int and _start_of(pid) == started


def _machine() -> str | None:
    """Names a process table: the boot of a machine and the namespace of its process ids.

    None where there is no /proc.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_of(pid: int) -> str | None:
    """When a process started, in ticks since boot; None if it is gone or waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
