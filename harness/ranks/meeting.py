"""How the processes of a launch join and leave."""

import os
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

MEETING = "fermarsi://"  # for init_process_group: see `_meet`


def _meet(url: str, **options: Any) -> Iterator[tuple[PrefixStore, int, int]]:
    """Like env://, but each restart by an elastic agent uses its own keys: the store outlives the
    workers, and with accelerate's default, a static rendezvous, it survives a restart, so that new
    workers would find the addresses of dead ones (torch 2.15).
    """
    for store, rank, size in rendezvous("env://", **options):
        yield (
            PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store),
            rank,
            size,
        )


# Torch has no types there
register_rendezvous_handler("fermarsi", _meet)  # type: ignore[no-untyped-call] # see above


# By which gloo, NCCL, the store and sockets report a rank that is gone or silent (torch 2.15, from
# the strings of its libraries); in lower case
_LOST = (
    "/gloo/",
    "nccl",
    "connection",
    "broken pipe",
    "pair closure",
    "by peer",
    "remote peer",
    "socket timeout",
    "socket closed",
    "connectfullmesh failed",
    "client socket has timed out",
    "failed to connect",
    "timed out waiting",
    "timed out in monitoredbarrier",
    "timed out connecting",
    "timeout waiting for key",
    "wait timeout",
    "waitforinput",
    "operation timed out",
    "[c10d]",
)


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective raised this exception because another rank is gone or silent."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST)


LAZY_FROM = 64  # ranks


def connect_lazily(size: int) -> None:
    """Let gloo connect many ranks when they first speak to each other: each of several groups would
    else hold a connection to every rank, 3,000 of a thousand ranks, where collectives use log2 of
    them. Few ranks connect at once: of those that do so later one may wait for ever for another
    that died before (github.com/pytorch/gloo/issues/520).
    """
    if size >= LAZY_FROM:
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")


def has_joined() -> bool:
    """Whether this process is in a process group, which an end in order would take from under the
    threads of its library: now and then with an abort (torch 2.15).
    """
    return dist.is_initialized()


def leave() -> None:
    """Take the process group down at the end of a launch; never waits for the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()
