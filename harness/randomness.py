"""Random numbers by purpose: each is a function of the run's seed and of what it is for, never of what was drawn before.

Before each forward pass the ambient generators (Python, NumPy, torch on every device) are seeded by (seed, step, slot), so that dropout and any
randomness inside a network are the same on any number of ranks and after any interruption.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for a purpose, e.g. `seed_for(7, "forward", step, slot)`."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_ambient(seed: int) -> None:
    """Seed the generators that code uses without naming one: Python's, NumPy's and torch's on every device."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)


@contextmanager
def preserved() -> Iterator[None]:
    """Whatever is drawn inside leaves no trace in the ambient generators."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
