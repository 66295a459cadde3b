"""What the jobs of test_slurm.py are made of beside the demo's own parts."""

import time
from typing import Any

import torch


class Unhurried(torch.optim.AdamW):
    """AdamW that rests before each step, so that a job can be disturbed in the middle of its
    training on any machine.
    """

    def __init__(self, params: Any, rest_s: float, **arguments: Any) -> None:
        super().__init__(params, **arguments)
        self.rest_s = rest_s

    def step(self, closure: Any = None) -> Any:
        time.sleep(self.rest_s)
        return super().step(closure)
