"""Detection of ranks that drift apart: all hold the same parameters, buffers and moments, or the
run ends with the name of what differs.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from harness.checkpoint.state import optimizer_tensors
from harness.errors import RankError
from harness.ranks.ranks import Ranks
from harness.training.average import AVERAGED
from harness.training.engine import Engine
from harness.training.optimizer import parameter_names
from harness.training.parallel import find_differing
from harness.training.run import Run
from harness.wording import some


def check_agreement(run: Run) -> None:
    """Compare the training's state between ranks. Called by every rank; the host waits.

    Raises RankError.
    """
    run.progress.agreed = True
    if run.ranks.size == 1:
        return
    where = f"step {run.step:,}"
    compare(dict(state_of(run.engine)), run.ranks, run.engine.device, where)


def compare(tensors: Mapping[str, Tensor], ranks: Ranks, device: torch.device, where: str) -> None:
    """Compare a sum over the bits of each tensor, 8 bytes a tensor, between ranks: it finds
    another value anywhere, but not another order of the same values.

    Called by every rank; the host waits. Raises RankError.
    """
    names = find_differing(tensors, ranks, device)
    if names:
        raise RankError(
            f"{where}: {some(names)}: not the same on all ranks: something sets them from a rank's "
            "own data, such as an initialisation in the first forward pass. Compute it before the "
            "training, or from values that all ranks share."
        )


def state_of(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """What all ranks have alike: parameters, buffers, moments and averages by name."""
    yield from engine.network.named_parameters()
    yield from engine.network.named_buffers()
    names = parameter_names(engine.network)
    yield from optimizer_tensors(engine.optimizer, names)[0].items()
    if engine.stepper.average is not None:
        averages = engine.stepper.average.tensors
        owners = [names[one] for one in engine.stepper.parameters()]
        yield from ((f"{AVERAGED}{name}", one) for name, one in zip(owners, averages, strict=False))
