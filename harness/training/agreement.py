"""Ranks that drift apart are found: each holds the same parameters, buffers and moments, or the run
ends with the name of what differs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from harness.checkpoint.state import optimizer_tensors
from harness.errors import RankError
from harness.training.optimizer import parameter_names
from harness.training.run import Run
from harness.wording import some

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_agreement(run: Run) -> None:
    """Compare a sum over the bits of each tensor of the training's state, 8 bytes a tensor, between
    ranks; another value in any place is found, another order of the same values is not.

    Called by every rank; the host waits. Raises RankError.
    """
    run.progress.agreed = True
    if run.ranks.size == 1:
        return
    names, tensors = zip(*_state(run), strict=True)
    sums = torch.stack([bit_sum(tensor).to(run.engine.device) for tensor in tensors]).cpu()
    for rank, other in enumerate(run.ranks.gather_rows(sums)):
        if torch.equal(other, sums):
            continue
        alike = other == sums if other.shape == sums.shape else torch.zeros(len(sums)).bool()
        differing = [name for name, same in zip(names, alike.tolist(), strict=True) if not same]
        raise RankError(
            f"step {run.step:,}: {some(differing)}: not the same on ranks {run.ranks.rank} and "
            f"{rank}: something sets them from a rank's own data, such as an initialisation in the "
            "first forward pass. Compute it before the training, or agree on it over ranks."
        )


def bit_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bits read as whole numbers, modulo 2^64; a scalar on its device."""
    flat = tensor.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    return flat.contiguous().view(_INTEGERS[flat.element_size()]).sum(dtype=torch.int64)


def _state(run: Run) -> Iterator[tuple[str, Tensor]]:
    network = run.engine.network
    yield from network.named_parameters()
    yield from network.named_buffers()
    yield from optimizer_tensors(run.engine.optimizer, parameter_names(network))[0].items()
