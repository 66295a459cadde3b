"""Running statistics of batch normalisation, in the order of slots over all ranks: what they are
does not depend on how the slots are spread.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.ranks.ranks import Ranks

_KEYS = ("running_mean", "running_var", "num_batches_tracked")


class RunningStatistics:
    """Those of a network's batch normalisation.

    Each slot's forward pass begins with those of the step's beginning. From what it makes of them
    follows what it adds, whatever their momentum is; the slots' are added in order by `update`, in
    float64.
    """

    def __init__(self, network: nn.Module, ranks: Ranks) -> None:
        self._ranks = ranks
        self.modules = [
            one
            for one in network.modules()
            if isinstance(one, _BatchNorm) and keeps_statistics(one)
        ]
        self._before: list[Tensor] = []
        self._rows: list[Tensor] = []  # a slot each
        self._constants: tuple[Tensor, Tensor, Tensor] | None = None

    def owns(self, module: nn.Module, key: str) -> bool:
        """Whether a buffer is one of these."""
        return key in _KEYS and any(one is module for one in self.modules)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Around one slot's forward and backward pass, which may run the forward pass again."""
        if not self._rows:
            self._before = [one.clone() for one in self._buffers()]
        yield
        buffers = self._buffers()
        self._rows.append(_row(buffers))
        torch._foreach_copy_(buffers, self._before)

    def update(self) -> None:
        """After a step: what the slots of all ranks add to them, in order. Called by every rank; no
        host wait on a GPU.
        """
        if not self._rows:
            return
        rows, self._rows = self._ranks.gather_alike(torch.stack(self._rows)), []
        before = _row(self._before)
        owner, decay, cumulates = self._constant(before.device)
        num_values, count = len(owner), before[len(owner) :]
        value, old = before[:num_values], before[:num_values]
        old_count = now = count[owner]
        for row in rows.unbind():  # the slots, in order
            calls = row[num_values:][owner] - old_count
            kept = decay**calls
            moved = kept * value + (row[:num_values] - kept * old)
            # Without a momentum: the mean of all batches so far
            added = row[:num_values] * (old_count + calls) - old * old_count
            mean = (value * now + added) / (now + calls).clamp(min=1)
            value = torch.where(calls == 0, value, torch.where(cumulates, mean, moved))
            now = now + calls
            count = count + (row[num_values:] - before[num_values:])
        buffers = self._buffers()
        sizes = [one.numel() for one in buffers]
        values = torch.split(torch.cat([value, count]), sizes)
        for buffer, found in zip(buffers, values, strict=True):
            buffer.copy_(found.view_as(buffer))

    def _buffers(self) -> list[Tensor]:
        """Means and variances of all modules, then the numbers of their batches."""
        keys = [(one, key) for one in self.modules for key in _KEYS[:2]]
        keys += [(one, _KEYS[2]) for one in self.modules]
        return [tensor for one, key in keys if (tensor := one._buffers[key]) is not None]

    def _constant(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """For each value (n,): its module's index, what a batch leaves of it, and whether it is a
        mean of all batches.
        """
        if self._constants is None:
            sizes = torch.tensor([2 * one.num_features for one in self.modules])
            owner = torch.arange(len(sizes)).repeat_interleave(sizes)
            momenta = [one.momentum for one in self.modules]
            decay = torch.tensor([1.0 - (one or 0.0) for one in momenta], dtype=torch.float64)
            cumulates = torch.tensor([one is None for one in momenta])
            self._constants = (
                owner.to(device),
                decay[owner].to(device),
                cumulates[owner].to(device),
            )
        return self._constants


def keeps_statistics(module: _BatchNorm) -> bool:
    """Whether it has running statistics, of its own rank's batches."""
    return not isinstance(module, nn.SyncBatchNorm) and all(
        module._buffers.get(key) is not None for key in _KEYS
    )


def _row(buffers: list[Tensor]) -> Tensor:
    return torch.cat([one.reshape(-1).double() for one in buffers])
