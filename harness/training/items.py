"""How many items a step's batch has, over all slots and ranks: what its mean loss is a mean of."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harness.data.source import Batch
from harness.errors import ConfigError
from harness.ranks.ranks import Ranks
from harness.tasks.task import Task


class Count:
    """The number of items of a batch, which may still be on its way from the other ranks."""

    def __init__(
        self, number: Tensor, averaged_over: int, finish: Callable[[], Tensor] | None = None
    ) -> None:
        """averaged_over: the ranks that the sum of gradients is divided by; finish: gives `number`
        once it has come.
        """
        self._number = number
        self._averaged_over = averaged_over
        self._finish = finish
        self._weights: dict[torch.dtype, Tensor] = {}

    def number(self) -> Tensor:
        """A scalar int64 tensor on the device; no host wait on a GPU."""
        if self._finish is not None:
            self._number, self._finish = self._finish(), None
        return self._number

    def weight(self, dtype: torch.dtype) -> Tensor:
        """What to weigh the gradient of a micro-batch's loss sum by, so that the ranks' gradients
        come to that of the mean over all items: DDP averages over ranks where their sum is needed.

        A scalar of `dtype`, of the caller's own: autograd may keep what it is given as the gradient
        of a parameter, which is then added to and scaled in place.
        """
        if dtype not in self._weights:
            # A batch whose targets are all ignored has no gradient
            divisor = self.number().clamp(min=1).to(torch.promote_types(dtype, torch.float32))
            self._weights[dtype] = (self._averaged_over / divisor).to(dtype)
        return self._weights[dtype].clone()


class Items:
    """Counts the items of each step's batch: once for all steps where the task says that all have
    the same number.
    """

    def __init__(
        self, task: Task, ranks: Ranks, device: torch.device, num_slots: int, averaged_over: int
    ) -> None:
        """num_slots: of all ranks; averaged_over: as `Count` has it."""
        self._task = task
        self._ranks = ranks
        self._device = device
        self._num_slots = num_slots
        self._averaged_over = averaged_over
        self._each: int | None = None  # of each micro-batch
        self._always: Count | None = None

    def agree(self, batch: Batch) -> None:
        """Find out whether all micro-batches have equally many items. Called by every rank, before
        the first step.
        """
        found = self._task.num_items(batch)
        each = self._ranks.gather(found if isinstance(found, int) else None)
        self._each = each[0] if len(set(each)) == 1 else None
        if self._each is not None:
            total = torch.full((), self._each * self._num_slots, dtype=torch.int64)
            self._always = Count(total.to(self._device), self._averaged_over)

    def of(self, batches: Sequence[Batch]) -> Count:
        """The number of items of the batch that these micro-batches of this rank, still on the CPU,
        are part of.

        Called by every rank. Raises ConfigError.
        """
        found = [self._task.num_items(batch) for batch in batches]
        if self._always is not None:
            if any(one != self._each for one in found):
                raise ConfigError(
                    f"task: {type(self._task).__name__}.num_items returned the int {self._each} "
                    f"before the first step, and now {found}: an int says that every micro-batch "
                    "has the same number. Return a tensor."
                )
            return self._always
        here = [torch.as_tensor(one).to(self._device, non_blocking=True) for one in found]
        number = torch.stack(here).sum() if len(here) > 1 else here[0].clone()
        return Count(number, self._averaged_over, self._ranks.start_sum(number))


def total(counts: Sequence[Tensor | int]) -> int:
    """The sum of what a task counted. The host waits for what is on the device."""
    known = sum(one for one in counts if isinstance(one, int))
    counted = [one for one in counts if isinstance(one, Tensor)]
    return known + (int(torch.stack(counted).sum()) if counted else 0)
