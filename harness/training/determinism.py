"""Deterministic kernels: asked of torch, and the operations that have none, by name."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic


def require_determinism() -> None:
    """Ask torch for deterministic kernels, before anything runs on a device."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A property that its stubs lack. Filling memory finds bugs, costs time, and changes no bits.
    setattr(deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - see above
    torch.backends.cudnn.benchmark = False


@contextmanager
def record_nondeterminism(found: list[str]) -> Iterator[None]:
    """Add the names of operations that torch warns of as not deterministic to `found`; other
    warnings go on as they would.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        match = re.match(
            r"(\S+) does not have a deterministic implementation", str(warning.message)
        )
        if match is None:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        elif match[1] not in found:
            found.append(match[1])
