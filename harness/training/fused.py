"""Adam and AdamW by their fused kernel, called directly.

`torch.optim` (2.15) looks for its kernel, sorts the parameters by device and type and gathers the
moments anew at each step: for a small network that takes three times as long as the kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from harness.ranks.rows import is_sharded

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_UNUSUAL = ("amsgrad", "capturable", "differentiable")


@dataclass(frozen=True)
class _Group:
    """A parameter group with what the kernel takes, in the order of its parameters."""

    options: dict[str, Any]
    parameters: list[Tensor]
    moments: list[list[Tensor]]


class FusedAdam:
    """Does what the optimizer's own step does, to the bit, with the optimizer's own state."""

    def __init__(self, optimizer: Optimizer, groups: Sequence[_Group]) -> None:
        self._optimizer = optimizer
        self._groups = groups
        self._state = optimizer.state

    @classmethod
    def of(cls, optimizer: Optimizer) -> "FusedAdam | None":
        """None for any other optimizer, for one that has not made its first step, and for one whose
        parameters are shared by rows.
        """
        if type(optimizer) not in (Adam, AdamW):
            return None
        groups = []
        for options in optimizer.param_groups:
            parameters: list[Tensor] = options["params"]
            states = [optimizer.state.get(one, {}) for one in parameters]
            if (
                not options["fused"]
                or any(options[name] for name in _UNUSUAL)
                or any(not set(_MOMENTS) <= state.keys() for state in states)
                or any(map(is_sharded, parameters))
                or len({(one.device, one.dtype) for one in parameters}) != 1
            ):
                return None
            moments = [[state[name] for state in states] for name in _MOMENTS]
            groups.append(_Group(options, parameters, moments))
        return cls(optimizer, groups)

    @torch.no_grad()
    def step(self) -> bool:
        """Whether the step was made; False where it is the optimizer's own turn: something asked to
        be called with it, its state is another, a group has been added, a parameter has no
        gradient, or a rate or beta is a tensor.
        """
        own: Any = self._optimizer
        gradients = [
            [gradient for one in group.parameters if (gradient := one.grad) is not None]
            for group in self._groups
        ]
        if (
            own._optimizer_step_pre_hooks
            or own._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or not _is_plain(vars(own).get("step"))
            or own.state is not self._state
            or len(own.param_groups) != len(self._groups)
            or any(_has_tensors(one.options) for one in self._groups)
            or list(map(len, gradients)) != [len(one.parameters) for one in self._groups]
        ):
            return False
        for group, given in zip(self._groups, gradients, strict=True):
            options, (means, squares, steps) = group.options, group.moments
            beta1, beta2 = options["betas"]
            torch._foreach_add_(steps, 1)
            decoupled = options["decoupled_weight_decay"]
            (torch._fused_adamw_ if decoupled else torch._fused_adam_)(
                group.parameters,
                given,
                means,
                squares,
                [],
                steps,
                amsgrad=False,
                lr=options["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=options["weight_decay"],
                eps=options["eps"],
                maximize=options["maximize"],
            )
        return True


def _is_plain(step: Any) -> bool:
    """Whether `step` is the class's own, at most wrapped by a schedule of torch's."""
    return step is None or hasattr(step, "_wrapped_by_lr_sched")


def _has_tensors(options: dict[str, Any]) -> bool:
    return any(isinstance(one, Tensor) for one in (options["lr"], *options["betas"]))
