"""Parts of a training in whose midst something asks it to leave: ASK="moment:count:rank:how,...",
see `ask`.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import get_worker_info

from harness.checkpoint import write
from harness.tasks.classification import Classification
from tests.resume.parts import Blobs, Mortal, Storm
from tests.training.optimizer_parts import Typed

_counts: dict[str, int] = {}


def ask(moment: str) -> None:
    """Do what ASK says of the `count`-th such moment of a launch on this rank: send itself a
    signal, or leave a file in RUN_DIR.

    `how`: a signal's name, or +seconds and a signal's name for one that comes later, wherever the
    process is then; or PREEMPT, or STOP.
    """
    count = _counts[moment] = _counts.get(moment, 0) + 1
    for one in filter(None, os.environ.get("ASK", "").split(",")):
        when, number, rank, how = one.split(":")
        if (when, int(number)) == (moment, count) and rank in ("all", os.environ.get("RANK", "0")):
            after_s, _, name = how.rpartition("+")
            if not name.startswith("SIG"):
                (Path(os.environ["RUN_DIR"]) / name).touch()
                time.sleep(1.5)  # rank 0 looks once a second
            elif after_s:
                threading.Timer(
                    float(after_s), os.kill, [os.getpid(), signal.Signals[name]]
                ).start()
            else:
                os.kill(os.getpid(), signal.Signals[name])


class Restless(Storm):
    """Moments: `built`, `forward` (in training; the first two are the trial and the warm-up, then
    one a slot), `evaluated` (the first two are the probe and the trial).
    """

    def __init__(self, width: int = 400) -> None:
        super().__init__(width)
        ask("built")

    def forward(self, x: Tensor) -> Tensor:
        ask("forward" if self.training else "evaluated")
        return super().forward(x)


class Told(Classification):
    """Moment: `begun`, before the data are prepared."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        ask("begun")


class Slow(Blobs):
    """Points that take their time: DELAY_S a micro-batch."""

    def __getitems__(self, indices: list[int]) -> Any:
        time.sleep(float(os.environ.get("DELAY_S", "0")))
        return super().__getitems__(indices)


class SlowSaver(Mortal):
    """AdamW in a process whose saves take SAVE_S from here on; moment: `stepped`."""

    def __init__(self, params: Any, lr: float, **options: Any) -> None:
        super().__init__(params, lr, **options)
        commit = write.commit

        def slowly(*args: Any) -> None:
            time.sleep(float(os.environ.get("SAVE_S", "0")))
            commit(*args)

        write.commit = slowly

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        ask("stepped")
        return result


class Stuck(Blobs):
    """One sample never comes, on the rank STUCK_RANK (default: on each)."""

    def __init__(self, count: int, seed: int = 0, stuck_at: int = 5) -> None:
        super().__init__(count, seed)
        self.stuck_at = stuck_at

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        mine = os.environ.get("STUCK_RANK") in (None, os.environ.get("RANK", "0"))
        if mine and self.stuck_at in indices and get_worker_info() is not None:
            time.sleep(1000)
        return super().__getitems__(indices)


class SlowInWorkers(Blobs):
    """A data worker takes 1.2 s for a micro-batch."""

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        if get_worker_info() is not None:
            time.sleep(1.2)
        return super().__getitems__(indices)


class SlowForward(nn.Linear):
    """Takes its time. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.05)
        return super().forward(x)


class FailsOnRank1(Typed):
    """Rank 1 fails in its sixth forward of a step."""

    def forward(self, x: Tensor) -> Tensor:
        _counts["forward"] = _counts.get("forward", 0) + self.training
        if _counts["forward"] == 6 and os.environ.get("RANK") == "1":
            raise ValueError("rank 1 cannot")
        return super().forward(x)
