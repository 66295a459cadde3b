"""A rank that stands still somewhere: STUCK="place:rank:how", see `maybe_stand_still`; LEAST_S: how
long any phase may last at least, instead of ten seconds.
"""

import ctypes
import os
import pdb  # noqa: T100 - that one may stand still in it is what is tested
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.ranks import standstill, watch
from harness.stopping.controller import StopController
from harness.tasks.classification import Classification
from harness.tracking.tracker import Tracker
from tests.resume.parts import Blobs

FROM = 30  # times that a place is passed before


class _Grad(torch.autograd.Function):
    """Passes everything on, and the gradient through a place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        maybe_stand_still("backward")
        return grads[0]


_counts: dict[str, int] = {}


def maybe_stand_still(place: str) -> None:
    """After FROM passes: `sleep`, `gil` (asleep with the interpreter's lock), `stop` (SIGSTOP, once
    the others have heard that it is here),
    `debugger` (for six seconds), `collective` (one that the others do not come to), `slow` (5 ms
    each time), or seconds.
    """
    _counts[place] = _counts.get(place, 0) + 1
    where, rank, how = os.environ.get("STUCK", "::").split(":")
    if place != where or rank not in ("all", os.environ.get("RANK", "0")):
        return
    if how == "slow":
        time.sleep(0.005)
    elif _counts[place] == FROM:
        stand_still(how)


def stand_still(how: str) -> None:
    if how == "sleep":
        time.sleep(1000)
    elif how == "gil":
        ctypes.PyDLL(None).sleep(1000)
    elif how == "stop":
        time.sleep(2.5 * watch.PERIOD_S)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "debugger":
        reading, writing = os.pipe()
        threading.Timer(6.0, os.write, [writing, b"continue\n"]).start()
        with os.fdopen(reading) as keys, open(os.devnull, "w") as screen:
            debugger = pdb.Pdb(stdin=keys, stdout=screen, nosigint=True)
            debugger.set_trace()
    elif how == "collective":
        dist.all_reduce(
            torch.zeros(1), group=dist.new_group([0, 1], use_local_synchronization=True)
        )
    else:
        time.sleep(float(how))


def before(owner: type, method: str, place: str) -> None:
    """Make a method of the harness a place, where no part of a user is called."""
    original = getattr(owner, method)

    def called(*args: Any, **options: Any) -> Any:
        maybe_stand_still(place)
        return original(*args, **options)

    setattr(owner, method, called)


# Places: log and verdict, on rank 0
before(Tracker, "train", "log")
before(StopController, "judge", "verdict")


class Net(nn.Linear):
    """Places: forward, evaluation, backward, save. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        least_s = float(os.environ.get("LEAST_S", standstill.LEAST_S))
        standstill.LEAST_S = watch.LEAST_S = least_s

    def forward(self, x: Tensor) -> Tensor:
        maybe_stand_still("forward" if self.training else "evaluation")
        y: Tensor = _Grad.apply(super().forward(x))
        return y

    def state_dict(self, *args: Any, **options: Any) -> Any:
        maybe_stand_still("save")
        return super().state_dict(*args, **options)


class Points(Blobs):
    """Place: data."""

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        maybe_stand_still("data")
        return super().__getitems__(indices)


class Sgd(torch.optim.SGD):
    """Place: step."""

    def step(self, closure: Any = None) -> Any:
        maybe_stand_still("step")
        return super().step(closure)


class Task(Classification):
    """Place: metrics, in the values of a split."""

    def values(self, computed: Mapping[str, Tensor]) -> Mapping[str, float]:
        maybe_stand_still("metrics")
        return super().values(computed)
