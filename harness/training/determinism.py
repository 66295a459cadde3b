"""Deterministic kernels: asked of torch, and the operations that have none, by name.

Torch is asked strictly first. Where it only warns, attention keeps a backward pass that adds up in
any order although it has an exact one, so warnings alone are the second choice.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic

from harness.ranks.ranks import Ranks
from harness.wording import first_line

# Fixed, as torchtitan and Megatron-LM do: NCCL otherwise chooses an algorithm, and with it an order
# of additions, by size, topology and what its tuner measured.
NCCL = {
    "NCCL_ALGO": "Ring",
    "NCCL_PROTO": "Simple",
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_COLLNET_ENABLE": "0",
}
# Torch's own sentences (2.15), from ATen/Context.cpp and the attention kernels. What is neither is
# known by the word alone.
_SENTENCES = (
    re.compile(r"(\S+) does not have a deterministic implementation"),
    re.compile(r"((?:Flash|Memory Efficient|cuDNN) [Aa]ttention) defaults to a non-deterministic"),
    re.compile(r"(cuDNN SDPA) is not deterministic"),
    re.compile(r"operation is not deterministic because it uses (CuBLAS)"),
)
_QUIET = r"(?s).*does not have a deterministic implementation|.*non-deterministic algorithm"
_WORD = re.compile(
    r"\bnon-?determinis\w+|not (?:be )?determinis\w+|determinis\w+ [\w ]*not supported"
    r"|Deterministic behavior was enabled|indeterminis\w+",
    re.IGNORECASE,
)


def require_determinism() -> None:
    """Ask torch for deterministic kernels, before anything runs on a device, and NCCL for a fixed
    order of additions, unless the user has set its variables, before the process group starts.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    if torch.cuda.device_count():  # by NVML: starts no context
        for name, value in NCCL.items():
            os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True, warn_only=True)  # strictly from `settle` on
    # A property that its stubs lack. Filling memory finds bugs, costs time, and changes no bits.
    setattr(deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - see above
    torch.backends.cudnn.benchmark = False


def is_strict() -> bool:
    """Whether an operation without a deterministic kernel raises."""
    return (
        torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled()
    )


def settle(ranks: Ranks, work: Callable[[], None], found: list[str]) -> None:
    """Find out whether all of a step has deterministic kernels: stay strict if it has; else let
    torch warn, and add the names of the operations to `found`.

    work: what a step and an evaluation do, without collectives. Called by every rank; all stay
    strict or none does.
    """
    if not torch.are_deterministic_algorithms_enabled():
        ranks.together(work)
        return
    torch.use_deterministic_algorithms(True)

    def attempt() -> str | None:
        try:
            work()
        except RuntimeError as error:
            name = operation_in(str(error))
            if name is None:
                raise
            return name
        return None

    refused = [name for name in ranks.gather(ranks.together(attempt)) if name is not None]
    if not refused:
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Reported once, by name; not at each step.
    warnings.filterwarnings("ignore", _QUIET)
    mine: list[str] = []
    with record_nondeterminism(mine):
        ranks.together(work)
    for names in ranks.gather(mine):
        found += [name for name in names if name not in found]
    found += [name for name in refused if name not in found]


def settle_in_step(ranks: Ranks, work: Callable[[], None], found: list[str]) -> None:
    """As `settle`, for work with collectives, which is the same on all ranks and fails on all or on
    none: it is done once, with warnings, because what an error leaves of a pass cannot be repeated.
    """
    if not torch.are_deterministic_algorithms_enabled():
        ranks.together(work)
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    mine: list[str] = []
    with warnings.catch_warnings(), record_nondeterminism(mine):
        warnings.filterwarnings("ignore", _QUIET)
        ranks.together(work)
    for names in ranks.gather(mine):
        found += [name for name in names if name not in found]
    if found:
        warnings.filterwarnings("ignore", _QUIET)
    else:
        torch.use_deterministic_algorithms(True)


def operation_in(message: str) -> str | None:
    """The operation that a warning or an error of torch calls non-deterministic; None if it is
    about something else.
    """
    for sentence in _SENTENCES:
        if match := sentence.search(message):
            return match[1]
    return message.strip().splitlines()[0][:120] if _WORD.search(message) else None


@contextmanager
def record_nondeterminism(found: list[str]) -> Iterator[None]:
    """Add the names of operations that torch warns of as not deterministic to `found`; other
    warnings go on as they would.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        name = operation_in(str(warning.message))
        if name is None:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        elif name not in found:
            found.append(name)


def explain(error: RuntimeError, step: int | None) -> str | None:
    """A message for an operation that did not occur before the first step and has no deterministic
    kernel; None if the error is another one.
    """
    name = operation_in(str(error))
    if name is None or not is_strict():
        return None
    where = "before the first step" if step is None else f"step {step:,}"
    return (
        f"{where}: {name} has no deterministic kernel, and did not occur in the trial before the "
        f"first step ({first_line(error)}). Set run.exactness: none from the start of a run, or "
        "use another operation."
    )
