"""Whether an optimizer computes each element by itself: of a sharded network a rank has some rows
of each parameter, and where they end depends on the number of ranks.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness import components
from harness.errors import HarnessError
from harness.randomness import preserve_random
from harness.training.optimizer import build_optimizer
from harness.training.stepper import set_training

_SHAPE, _STEPS = (61, 17), 3
_CUTS = ((0, 61), (0, 13, 14, 40, 61))  # of rows: one rank, several


def depends_on_rows(spec: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> str:
    """Why an optimizer of a config gives other bits where a parameter is cut between rows, found by
    trying it on a small one; "" if it does not. The same on ranks with machines alike.
    """
    name = components.target_of(dict(spec))
    try:
        with preserve_random():
            whole, cut = (_states(spec, dtype, device, cuts) for cuts in _CUTS)
    except (HarnessError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        return (
            f"{name} could not be tried on rows of a parameter ({type(error).__name__}: {error}), "
            "of which each process has other ones"
        )
    alike = len(whole) == len(cut) and all(map(_same_bits, whole, cut))
    return "" if alike else f"{name} does not compute each element of a parameter by itself"


def _states(
    spec: Mapping[str, Any], dtype: torch.dtype, device: torch.device, cuts: Sequence[int]
) -> list[Tensor]:
    """The parameter and what is kept beside its elements, after some steps."""
    generator = torch.Generator().manual_seed(0)
    spans = list(itertools.pairwise(cuts))

    def drawn() -> list[Tensor]:
        values = torch.randn(_SHAPE, generator=generator).to(device, dtype)
        return [values[first:last].clone() for first, last in spans]

    network = nn.ParameterList(drawn())
    optimizer = build_optimizer(spec, network, {}, may_fuse=False)
    set_training(optimizer, training=True)
    for _ in range(_STEPS):
        for one, gradient in zip(network, drawn(), strict=True):
            one.grad = gradient
        optimizer.step()
    found = [one.detach() for one in network]
    kept = [optimizer.state[one] for one in network]
    names = [
        name
        for name, value in kept[0].items()
        if isinstance(value, Tensor) and value.shape == network[0].shape
    ]
    return [torch.cat(found), *(torch.cat([one[name] for one in kept]) for name in names)]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
