"""An agreement in every step that costs no wait."""

import torch
import torch.distributed as dist

from harness.ranks.ranks import Ranks


class Pulse:
    """An agreement that costs no wait: each step starts a maximum over ranks and reads the one that
    the step before started.

    A level that one rank raises at step k is returned on every rank by the same later call (k + 1).
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks.channel()
        self._heartbeat = ranks.heartbeat
        self._level = torch.zeros(1, dtype=torch.int64)
        self._work: dist.Work | None = None

    def beat(self, level: int) -> int:
        """Send this rank's level, return the highest that any rank sent one call earlier (at once
        if alone). Called by every rank.
        """
        if self._ranks.size == 1:
            return level
        agreed = self.read()
        self._level.fill_(level)
        self._work = self._ranks.start_maximum(self._level)
        return agreed

    def read(self) -> int:
        """Finish the exchange in flight and return its level, 0 if there is none.

        Called by every rank.
        """
        if self._work is None:
            return 0
        with self._heartbeat:
            self._work.wait()
        self._work = None
        return int(self._level)
