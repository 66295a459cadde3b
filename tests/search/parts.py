"""Slow data, so that a sweep can be killed in the middle of a trial."""

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from tests.resume.parts import Blobs


class SlowBlobs(Blobs):
    """Each micro-batch takes `delay_s`."""

    def __init__(self, count: int, seed: int = 0, delay_s: float = 0.0) -> None:
        super().__init__(count, seed)
        self.delay_s = delay_s

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        time.sleep(self.delay_s)
        return super().__getitems__(indices)


class CutOff(Blobs):
    """The process that makes it gets a signal."""

    def __init__(self, count: int, by: str = "TERM") -> None:
        super().__init__(count)
        os.kill(os.getpid(), signal.Signals[f"SIG{by}"])
