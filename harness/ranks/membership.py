"""A process that may be put together with others again and again, as they come and go: what
`fermarsi launch --min-processes` starts.

All words go through the store of the launch, which no training process holds.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from harness.ranks.generations import Generation
from harness.ranks.sockets import are_made, cut_sockets

STORE, MEMBER, HEARD = "FERMARSI_STORE", "FERMARSI_MEMBER", "FERMARSI_GENERATION"
TIMEOUT_S = 30.0  # for an answer of the store
POLL_S = 0.25
MEETING_S = 3.0  # for a meeting to end by itself that another will not come to
GIVE_UP_S = 1.0  # for collectives to notice by themselves that a member is gone
_READY, _FINAL, _OVER, _BEGUN = "ready", "final", "over", "begun"


def is_member(environment: Mapping[str, str]) -> bool:
    """Whether this process was started to be one of a number that may change."""
    return STORE in environment


def machine_of(environment: Mapping[str, str] = os.environ) -> str:
    """This process's machine, as its launch numbers them; the same for all of other launches."""
    return environment.get(MEMBER, "").partition(".")[0]


@dataclass(frozen=True)
class Place:
    """A process's part in a generation; `goes_on`: whether one before it has begun the training."""

    generation: int
    rank: int
    size: int
    host: str
    port: int
    goes_on: bool

    def environment(self) -> dict[str, str]:
        """What a launcher would set."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "MASTER_ADDR": self.host,
            "MASTER_PORT": str(self.port),
            # The store is there already, and each generation has its own keys
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(self.generation),
        }


class Membership:
    """This process among those of its launch. Raises ConnectionError where the store is gone."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        host, _, port = environment[STORE].rpartition(":")
        self.member = environment[MEMBER]
        self.has_trained = False  # in the last generation: what it says of the end counts
        self._host, self._port = host, int(port)
        self._seen = int(environment.get(HEARD, "0"))
        self._store = connect(host, int(port))
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def wait(self, check: Callable[[], None]) -> Place | None:
        """Say that this process is ready, and wait until it has a place in a generation; None once
        the training is over.

        check: called several times a second; what it raises is raised.
        """
        self.has_trained = False
        with _connected():
            while True:
                append_note(self._store, _READY, f"{self.member}:{self._seen} ")
                generation = self._next(check)
                if generation is None:
                    return None
                self._seen = generation.number
                if self.member in generation.members:
                    self.has_trained = True
                    rank = generation.members.index(self.member)
                    size = len(generation.members)
                    goes_on = bool(self._store.check([_BEGUN]))
                    return Place(generation.number, rank, size, self._host, self._port, goes_on)

    def _next(self, check: Callable[[], None]) -> Generation | None:
        key = f"generation/{self._seen + 1}"
        while not self._store.check([key]):
            check()
            if self._store.check([_OVER]):
                return None
            time.sleep(POLL_S / 5)
        return Generation.from_json(json.loads(self._store.get(key)))

    def begin(self) -> None:
        """Tell that the training is under way: from here on it goes on where it stands."""
        with _connected():
            self._store.set(_BEGUN, "1")

    def is_growth_due(self) -> bool:
        """Whether more processes could train than do; not where the store is gone."""
        with suppress(RuntimeError, ValueError):
            return bool(self._store.check([f"grow/{self._seen}"]))
        return False

    def finish(self, code: int) -> None:
        """Tell that this process ends by itself, with the code of the training: without it, its end
        is a loss. One that only waited tells nothing, since the others may go on.
        """
        if not self.has_trained:
            return
        with suppress(RuntimeError, ValueError):
            append_note(self._store, _FINAL, f"{self.member}:{code} ")

    def __enter__(self) -> "Membership":
        """While a generation trains: where a member is gone, and a collective does not notice, it
        is made to fail.
        """
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="fermarsi-membership", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        assert self._thread is not None
        self._thread.join()

    def _look(self) -> None:
        link, key = connect(self._host, self._port), f"broken/{self._seen}"
        with suppress(RuntimeError, ValueError):  # the store is gone, or this machine is cut off
            while not link.check([key]):
                if self._over.wait(POLL_S):
                    return
        meeting_s = 0.0
        while not self._over.wait(GIVE_UP_S):
            if not are_made():
                abort_groups()
                continue
            # It waits for one that is gone, and nothing wakes it: gloo crashes where its store
            # fails (torch 2.15)
            meeting_s += GIVE_UP_S
            if meeting_s >= MEETING_S:
                print(
                    "a process was lost while all met: this one is started again", file=sys.stderr
                )
                sys.stderr.flush()
                os._exit(1)


def connect(host: str, port: int) -> TCPStore:
    """A connection of its own to a launch's store. Raises ConnectionError."""
    with _connected():
        return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=TIMEOUT_S))


def append_note(store: TCPStore, key: str, text: str) -> None:
    """Add to the end of a note that several may write."""
    store.append(key, text)  # type: ignore[attr-defined] # torch's types lack it


def abort_groups() -> None:
    """Let all collectives of this process fail that wait for others."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        with suppress(RuntimeError):
            dist.distributed_c10d._abort_process_group()
    cut_sockets(int(os.environ["MASTER_PORT"]))


@contextmanager
def _connected() -> Iterator[None]:
    """Inside, an error of the store is a ConnectionError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(f"the store of the launch is gone: {error}") from error
