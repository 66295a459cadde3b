"""The contract of sources and treatments."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

Batch = dict[str, Any]


Treatment = Callable[..., Batch]


@runtime_checkable
class Source(Protocol):
    """Where samples come from; may also have `__getitems__(indices) -> batch of arrays (B, ...) |
    list of samples`, which is faster.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


def takes_seeds(treatment: Treatment) -> bool:
    """Whether a treatment draws: what it is given then is a seed for each sample."""
    return "seeds" in inspect.signature(treatment).parameters
