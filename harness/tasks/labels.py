"""Targets that are numbers of classes or tokens: checked, counted, and turned into a loss."""

import torch
from torch import Tensor, nn

from harness.errors import ConfigError, DataError
from harness.tasks.task import sum_loss, widen


def check_labels(
    labels: Tensor, name: str, count: int | None, ignored: int | None, what: str, of: str
) -> None:
    """Whether labels are integers in [0, count), the ignored ones aside.

    `count` is None before the network's first forward pass.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(
            f"{name}: {labels.dtype} where {what} numbers are needed{_example(labels)}. To predict "
            "numbers use harness.tasks.Regression; else convert them to integers with a treatment."
        )
    wide = labels if labels.dtype == torch.int64 else labels.long()
    if wide.numel() and count is not None:
        low, high = map(int, wide.aminmax())
        if low >= 0 and high < count:  # as nearly always, and found in a tenth of the time
            return
    bad = is_item(wide, ignored) & (
        (wide < 0) | (wide >= (count if count is not None else torch.iinfo(torch.int64).max))
    )
    if bad.any():
        first = int(wide[bad][0])
        allowed = "below 0" if count is None or first < 0 else f"outside of 0 … {count - 1}"
        raise DataError(
            f"{name}: {what} {first} is {allowed} ({int(bad.sum())} of {bad.numel()} in this "
            "micro-batch). "
            f"Number them from 0, give the network more {of}, or ignore them with "
            "task.ignore_index."
        )


def _example(labels: Tensor) -> str:
    """One that is no whole number, if there is one."""
    broken = labels[labels % 1 != 0] if labels.is_floating_point() else labels[:0]
    return f", e.g. {float(broken.flatten()[0]):g}" if broken.numel() else ""


def is_item(targets: Tensor, ignored: int | None) -> Tensor:
    """Which targets are items: bool of the targets' shape."""
    return torch.ones_like(targets, dtype=torch.bool) if ignored is None else targets != ignored


def check_label_smoothing(value: float) -> None:
    """Raise ConfigError for an invalid label smoothing."""
    if not 0 <= value < 1:
        raise ConfigError(f"label_smoothing: {value}: must be at least 0 and below 1.")


def cross_entropy_sum(
    logits: Tensor,
    targets: Tensor,
    ignored: int | None,
    label_smoothing: float,
    weights: Tensor | None = None,
    parts: int | None = None,
) -> Tensor:
    """The sum of the cross entropies of all items, a scalar, or those of as many parts.

    logits: (B, C, ...); targets: (B, ...) int64; weights: (C,), one a class.
    """
    wide = widen(logits)
    return sum_loss(
        nn.functional.cross_entropy,
        wide,
        targets,
        parts,
        weight=None if weights is None else weights.to(wide.dtype),
        label_smoothing=label_smoothing,
        ignore_index=-100 if ignored is None else ignored,
    )
