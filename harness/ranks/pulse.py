"""An agreement between steps that costs no wait."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from harness.ranks.ranks import Ranks

WITHIN_S = 0.25  # how long a level may wait for the message that carries it
MOST_CALLS = 4  # between two messages: steps may become a thousand times slower meanwhile
MOST_FAST = (
    16  # where calls ten times slower would still fit: a message costs as much as such a step
)
LEARNING = 16  # messages after which there may be one call more between two


class Pulse:
    """An agreement that costs no wait: now and then a call starts a maximum over ranks, and the
    next call reads it.

    A level that one rank raises is returned on every rank by the same later call: the next one
    where calls take longer than `within_s`, else at most so many calls later as fit into that time
    on the slowest rank: 4 at most, or 16 if so many would fit even if each took ten times as long.
    The ranks agree on that number with each message; it begins with one and grows slowly, for the
    first steps say little of those that follow.
    """

    def __init__(
        self,
        ranks: Ranks,
        within_s: float = WITHIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ranks = ranks.channel()
        self._heartbeat = ranks.heartbeat
        self._within_us = int(within_s * 1e6)
        self._clock = clock
        self._message = torch.zeros(2, dtype=torch.int64)  # a level; microseconds a call
        self._work: dist.Work | None = None
        self._level = 0  # since the last message
        self._every = 1
        self._num_read = 0
        self._calls = 0  # since then
        self._sent_s = clock()

    def beat(self, level: int) -> int:
        """Take this rank's level; return the highest that any rank had when the last message
        started, 0 if it was read before (at once if alone). Called by every rank.
        """
        if self._ranks.size == 1:
            return level
        self._level = max(self._level, level)
        self._calls += 1
        agreed = self.read()
        if self._calls >= self._every:
            self._send()
        return agreed

    def read(self) -> int:
        """Finish the pending exchange and return its level, 0 if there is none.

        Called by every rank.
        """
        if self._work is None:
            return 0
        with self._heartbeat:
            self._work.wait()
        self._work = None
        level, each_us = self._message.tolist()
        self._num_read += 1
        fitting = self._within_us // max(each_us, 1)
        fast = min(fitting // 10, MOST_FAST)
        known = 1 + self._num_read // LEARNING
        self._every = max(min(fitting, known, max(fast, MOST_CALLS)), 1)
        return int(level)

    def _send(self) -> None:
        now = self._clock()
        each_us = int((now - self._sent_s) * 1e6) // self._calls
        self._message = torch.tensor([self._level, each_us])
        self._work = self._ranks.start_maximum(self._message)
        self._level, self._calls, self._sent_s = 0, 0, now
