"""How ranks share a network."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch.utils import deterministic

from harness.errors import ConfigError
from harness.ranks.meeting import MEETING


def start_accelerator(precision: str, exactness: str, timeout_s: float) -> Accelerator:
    """The Accelerator of this process; joins the process group if the process was launched as one
    of several. Raises ConfigError.

    `timeout_s`: what the others are given to come, and later to answer.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError(
            "train.precision: fp16 needs a CUDA device and there is none. Use bf16 or no."
        )
    if exactness != "none":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True, warn_only=True)
        # A property that its stubs lack; for finding bugs: costs time and changes nothing that is
        # exact
        setattr(deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - see above
        torch.backends.cudnn.benchmark = False
    meeting = InitProcessGroupKwargs(init_method=MEETING, timeout=timedelta(seconds=timeout_s))
    return Accelerator(
        mixed_precision=precision,
        # The schedule is stepped by the loop, once a step on every rank
        step_scheduler_with_optimizer=False,
        rng_types=[],  # no synchronisation of generators: randomness is by purpose
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True), meeting],
    )
