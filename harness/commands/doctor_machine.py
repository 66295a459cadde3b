"""What `fermarsi doctor` finds out about the machine: disk, limits, shared memory, clock, ports."""

import os
import resource
import shutil
import socket
import tempfile
import time
from pathlib import Path

from harness.commands.finding import Finding

_PROBE_BYTES = 32 * 2**20
_SLOW_BYTES_S = 20e6
_FULL_BYTES = 5e9
_SHARED_BYTES = 2**30
_OPEN_FILES = 4096
_LOCKED_BYTES = 2**26  # InfiniBand registers what it sends
_CLOCK_S = 5.0
_AGENT_PORT = 29400  # of `fermarsi launch` on several machines


def examine_machine(directory: Path) -> list[Finding]:
    """What does not need torch; files are tried in `directory`."""
    return [
        *_disk(directory),
        _shared_memory(Path("/dev/shm")),
        _open_files(),
        _locked_memory(),
        _name(),
        _port(_AGENT_PORT),
    ]


def _disk(directory: Path) -> list[Finding]:
    """Space, how fast bytes become durable (a lower bound for a save), and the file server's
    clock.
    """
    above = directory.resolve()
    while not above.is_dir():
        above = above.parent
    try:
        with tempfile.NamedTemporaryFile(dir=above) as file:
            begun = time.monotonic()
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
            rate = _PROBE_BYTES / (time.monotonic() - begun)
            os.utime(file.name)
            behind_s = abs(os.stat(file.name).st_mtime - time.time())
    except OSError as error:
        to_do = "set run.dir to a writable directory"
        return [Finding("disk", f"{above}: {error.strerror}", to_do, good=False)]
    free = shutil.disk_usage(above).free
    to_do = ""
    if free < _FULL_BYTES:
        to_do = (
            "free some: a checkpoint holds the weights and the optimizer's moments, in all about "
            "three times the weights with Adam, one or two with SGD; see checkpoint.keep_last"
        )
    elif rate < _SLOW_BYTES_S:
        to_do = "saves will take long: set run.dir to a faster disk, or checkpoint.every: auto"
    found = f"{above}: {free / 1e9:.0f} GB free, write + fsync {rate / 1e6:.0f} MB/s"
    late = behind_s > _CLOCK_S or time.time() < os.stat(__file__).st_mtime - 86_400
    clock = Finding(
        "clock",
        f"{behind_s:.1f} s between this machine and its disk",
        "set the clocks (chrony, ntpd): leases of runs and times of records depend on them"
        if late
        else "",
    )
    return [Finding("disk", found, to_do), clock]


def _shared_memory(path: Path) -> Finding:
    """Through which data workers deliver."""
    if not path.is_dir():
        return Finding("shared memory", f"no {path}", "mount it, or set data.num_workers: 0")
    free = shutil.disk_usage(path).free
    few = free < _SHARED_BYTES
    to_do = "docker run --shm-size=8g (or --ipc=host), or set data.num_workers: 0" if few else ""
    return Finding("shared memory", f"{free / 2**30:.1f} GiB free", to_do)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft not in (resource.RLIM_INFINITY,) and soft < _OPEN_FILES
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    return Finding("open files", _limit(soft), f"ulimit -n {wanted}" if few else "")


def _locked_memory(adapters: Path = Path("/sys/class/infiniband")) -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    few = soft != resource.RLIM_INFINITY and soft < _LOCKED_BYTES
    to_do = "ulimit -l unlimited (docker run --ulimit memlock=-1), for NCCL over InfiniBand"
    return Finding(
        "locked memory", _limit(soft, " bytes"), to_do if few and adapters.is_dir() else ""
    )


def _limit(value: int, unit: str = "") -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}{unit}"


def _name() -> Finding:
    """Whether this machine finds itself, as gloo does."""
    name = socket.gethostname()
    begun = time.monotonic()
    try:
        address = socket.getaddrinfo(name, None)[0][4][0]
    except OSError:
        to_do = f"add {name} to /etc/hosts, or set GLOO_SOCKET_IFNAME (lo on one machine)"
        return Finding("own name", f"{name} is not known here", to_do)
    waited_s = time.monotonic() - begun
    slow = (
        f"add {name} to /etc/hosts: each process waits for the name server" if waited_s > 1 else ""
    )
    return Finding("own name", f"{name} is {address}, found in {waited_s:.2f} s", slow)


def _port(port: int) -> Finding:
    try:
        with socket.socket() as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(("", port))
    except OSError as error:
        to_do = "on several machines give another: fermarsi launch --head HOST:PORT"
        return Finding(f"port {port}", str(error.strerror), to_do)
    return Finding(f"port {port}", "free")
