"""Notes that ranks leave for each other without a collective."""

from collections.abc import Sequence
from contextlib import suppress

import torch.distributed as dist


def report_of(rank: int) -> str:
    """The key of a rank's report of where it is, which changes while its watch is alive."""
    return f"watch/{rank}"


class Board:
    """Notes that ranks exchange without a collective, over a separate connection: for use by
    another thread, and when collectives fail. No call raises: if the store is gone, nothing is
    written and nothing is found. If its machine is cut off, a call may block.
    """

    def __init__(self) -> None:
        """Raises RuntimeError or ValueError if the store is gone."""
        # The store of the default group has no public accessor (torch 2.15).
        self._store = dist.distributed_c10d._get_default_store().clone()

    def post(self, key: str, text: str) -> None:
        """Leave a note; the first one under a key stays."""
        with suppress(RuntimeError, ValueError):
            self._store.compare_set(f"fermarsi/{key}", "", text)

    def put(self, key: str, text: str) -> None:
        """Leave a note; the last one under a key stays."""
        with suppress(RuntimeError, ValueError):
            self._store.set(f"fermarsi/{key}", text)

    def append(self, key: str, text: str) -> None:
        """Add to the end of a note."""
        with suppress(RuntimeError, ValueError):
            # Torch's types lack it
            self._store.append(f"fermarsi/{key}", text)  # type: ignore[attr-defined] # see above

    def swap(self, key: str, before: str, text: str) -> bool:
        """Leave a note instead of the one that is known, "" for none; whether it was there."""
        with suppress(RuntimeError, ValueError):
            found = self._store.compare_set(f"fermarsi/{key}", before, text)
            return bool(found.decode() == text)
        return False

    def read_all(self, keys: Sequence[str]) -> list[str] | None:
        """Several notes at once, None unless all are there."""
        full = [f"fermarsi/{key}" for key in keys]
        with suppress(RuntimeError, ValueError):
            if self._store.check(full):
                return [one.decode() for one in self._store.multi_get(full)]
        return None

    def read(self, key: str) -> str | None:
        """A note, None if there is none."""
        with suppress(RuntimeError, ValueError):
            return (
                str(self._store.get(f"fermarsi/{key}").decode())
                if self._store.check([f"fermarsi/{key}"])
                else None
            )
        return None
