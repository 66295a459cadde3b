"""An average of the weights over the steps, to be evaluated and kept in their place."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harness.config.schema import EmaConfig
from harness.ranks.rows import local_of

# Prefix of the keys of averages that the model's tensors do not hold, next to the optimizer's state
AVERAGED = "ema_weight/"


class WeightAverage:
    """The exponential moving average a <- d a + (1 - d) w of trained weights w after each step
    (Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992, for weights
    that are forgotten). It begins with the weights after the first step.

    d of update n is `decay`, with `ramp` at most (1 + n) / (10 + n), as in TensorFlow's
    ExponentialMovingAverage: else the first weights would count for 1 / (1 - decay) steps. Averages
    of half-precision weights are kept in float32, in which (1 - d) w does not vanish.
    """

    def __init__(self, settings: EmaConfig) -> None:
        self.is_evaluated = settings.evaluate
        self.num_updates = 0
        self.tensors: list[Tensor] = []
        self._settings = settings

    def update(self, weights: Sequence[nn.Parameter]) -> None:
        """Take in the weights after a step; no host wait."""
        self.num_updates += 1
        wide = [_widened(one) for one in weights]
        if not self.tensors:
            self.tensors = [one.clone(memory_format=torch.preserve_format) for one in wide]
            return
        decay = self._settings.decay
        if self._settings.ramp:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(
            list(map(local_of, self.tensors)), list(map(local_of, wide)), 1 - decay
        )

    def restore(self, tensors: Sequence[Tensor], num_updates: int) -> None:
        """Go on from averages in the order of the weights."""
        self.tensors = [_widened(one).clone() for one in tensors]
        self.num_updates = num_updates


def _widened(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
