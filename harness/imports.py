"""Faster imports of large libraries."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Without garbage collection inside, and without one of what was made there at once afterwards.

    What an import makes stays; the collector walks it again and again while it grows, which is a
    fifth of the time that torch takes.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            # Together these put all objects into the oldest generation, unseen
            gc.freeze()
            gc.unfreeze()
        gc.enable()
