"""`harness/train.py` as these tests need it: python -m tests.gpu.launch CONFIG [key=value ...].

BACKEND: the backend of the process group, e.g. gloo for two ranks on one GPU. SYNC=error: from the
second step of a launch on, whatever makes the host wait inside of `train_step` raises.
"""

import functools
import os
import sys
from pathlib import Path

import torch

import harness.training.loop as loop
import harness.training.parallel as parallel
from harness.training.launch import launch

if backend := os.environ.get("BACKEND"):
    parallel.InitProcessGroupKwargs = functools.partial(  # type: ignore[misc,assignment]
        parallel.InitProcessGroupKwargs, backend=backend
    )

if os.environ.get("SYNC"):
    step, steps = loop.train_step, iter(range(10**9))

    def watched(run: loop.Run) -> None:
        """A step without host waits; in the first, when kernels are loaded, they are allowed."""
        if next(steps):
            torch.cuda.set_sync_debug_mode(os.environ["SYNC"])
        try:
            step(run)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    loop.train_step = watched

sys.exit(launch(Path(sys.argv[1]), sys.argv[2:]))
