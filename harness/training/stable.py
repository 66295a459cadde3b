"""What optimizer steps alone change, so that a save may copy it under the next step's passes."""

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from harness.data.code import attributes_used
from harness.training.optimizer import parameter_names

# Ways to a tensor's memory along which torch counts no writes
_UNCOUNTED = frozenset({"data", "data_ptr", "numpy", "untyped_storage"})


def writes_are_counted(specs: Iterable[Any]) -> bool:
    """Whether torch counts what code of the user's writes to tensors, as far as its text tells."""
    return not _UNCOUNTED & attributes_used(list(specs))


def write_counts(network: nn.Module) -> dict[str, int]:
    """How often each parameter was written to, by name."""
    return {name: one._version for name, one in network.named_parameters()}


def stable_tensors(
    network: nn.Module,
    optimizer: Optimizer,
    optimizer_keys: Iterable[str],
    changed_in_passes: Collection[str],
) -> dict[str, set[str]]:
    """The names, by role in a checkpoint, of weights and moments that stay as they are until the
    next optimizer step.

    Neither buffers nor frozen weights, which a network may move by itself, as averages of others.
    """
    names = parameter_names(network)
    trained = {names[one] for group in optimizer.param_groups for one in group["params"]}
    owners = {names[one] for one in optimizer.state if one in names}
    return {
        "model": trained.difference(changed_in_passes),
        "optimizer": {key for key in optimizer_keys if key.partition("/")[2] in owners},
    }
