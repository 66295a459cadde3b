"""Random numbers by purpose: each is a function of the run's seed and of what it is for, never of what was drawn before.

Before each forward pass the ambient generators (Python, NumPy, torch on every device) are seeded by (seed, step, slot), so that dropout and any
randomness inside a network are the same on any number of ranks and after any interruption.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from harness.errors import CheckpointError


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


def capture_ambient() -> dict[str, torch.Tensor]:
    """The ambient generators of this process as tensors: Python, NumPy (legacy), torch on the CPU and on its own device. The host waits."""
    version, words, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    assert (version, legacy["bit_generator"]) == (3, "MT19937")
    state = {
        "python.words": torch.tensor(words, dtype=torch.int64),  # 624 words and the position among them
        "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy.keys": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
        "numpy.position": torch.tensor([legacy["state"]["pos"], legacy["has_gauss"]], dtype=torch.int64),
        "numpy.gauss": torch.tensor([legacy["gauss"]], dtype=torch.float64),
        "torch.cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["torch.cuda"] = torch.cuda.get_rng_state()
    return state


def restore_ambient(state: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `capture_ambient`. Raises CheckpointError if a generator's state is missing or does not fit."""
    wanted = set(capture_ambient())
    if set(state) != wanted:
        raise CheckpointError(
            f"random state: holds {sorted(state)} where this process has {sorted(wanted)}. Resume on the kind of device that wrote the checkpoint."
        )
    try:
        gauss = state["python.gauss"].tolist()
        random.setstate((3, tuple(state["python.words"].tolist()), gauss[0] if gauss else None))
        position, has_gauss = state["numpy.position"].tolist()
        keys = state["numpy.keys"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, position, has_gauss, float(state["numpy.gauss"][0])))
        torch.set_rng_state(state["torch.cpu"])
        if "torch.cuda" in state:
            torch.cuda.set_rng_state(state["torch.cuda"])
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"random state: cannot be restored: {error}. Resume from another checkpoint.") from error
