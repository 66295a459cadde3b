"""Notes that ranks leave for each other without a collective."""

from contextlib import suppress

import torch.distributed as dist


class Board:
    """Notes that ranks leave for each other without a collective, over a connection of its own: for
    another thread, and when collectives fail.

    No call raises: without the store no note is left and none is found. Where the store's machine
    is cut off, a call may last.
    """

    def __init__(self) -> None:
        """Raises RuntimeError or ValueError if the store is gone."""
        # The store of the default group has no public accessor (torch 2.15).
        self._store = dist.distributed_c10d._get_default_store().clone()

    def post(self, key: str, text: str) -> None:
        """Leave a note; the first one under a key stays."""
        with suppress(RuntimeError, ValueError):
            self._store.compare_set(f"fermarsi/{key}", "", text)

    def read(self, key: str) -> str | None:
        """A note, None if there is none."""
        with suppress(RuntimeError, ValueError):
            return (
                str(self._store.get(f"fermarsi/{key}").decode())
                if self._store.check([f"fermarsi/{key}"])
                else None
            )
        return None
