"""Weights that make up for classes of unequal sizes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import DataError
from harness.tasks.labels import is_item
from harness.tasks.task import Batch, require_tensor


class BalancedWeights:
    """Learns how often each class is a target in the training split; class c weighs N / (C n_c), as
    scikit-learn's "balanced" has it.

    The mean of the weights over the split's N targets is 1, so that the loss keeps its scale. It
    learns like a treatment: micro-batches of the training split go through `observe`, then
    `finish`; `state` goes into a checkpoint and comes back by `restore`.
    """

    def __init__(self, target: str, ignored: int | None) -> None:
        self.target = target
        self.ignored = ignored
        self._counts: Counter[int] = Counter()

    def observe(self, batch: Batch) -> None:
        """Count the targets (B, ...) of a micro-batch."""
        require_tensor(batch, self.target, "task.target")
        targets = batch[self.target]
        labels, counts = targets[is_item(targets, self.ignored)].unique(return_counts=True)
        self._counts.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))

    def finish(self) -> None:
        """Raises DataError if there was no target."""
        if not self._counts:
            raise DataError(
                f"task.class_weights: balanced, but the training split has no {self.target!r} to "
                "count. Give samples with targets."
            )

    def state(self) -> dict[str, Any]:
        """How often each class occurred, by its number."""
        return {"counts": {str(label): count for label, count in sorted(self._counts.items())}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self._counts = Counter({int(label): count for label, count in state["counts"].items()})

    def weights(self, num_classes: int) -> Sequence[float]:
        """One per class.

        Raises DataError for a class without a target, whose weight would be infinite.
        """
        assert self._counts, "the training split has not been observed"
        absent = [label for label in range(num_classes) if self._counts[label] == 0]
        if absent:
            raise DataError(
                f"task.class_weights: balanced, but class {', '.join(map(str, absent))} of "
                f"{num_classes} does not occur in the training split. "
                "Add samples of it, give the network fewer outputs, or list the weights."
            )
        total = self._counts.total()
        return [total / (num_classes * self._counts[label]) for label in range(num_classes)]
