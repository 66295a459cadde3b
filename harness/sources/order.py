"""Deterministic splits: the same on every machine and with every library version."""

import numpy as np
from numpy.typing import NDArray


def position_in_class(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """labels: (N,) -> (N,): how many samples of the same class came before each.

    Splitting by this number modulo k takes every k-th sample of each class: a stratified split that
    depends on the order of the data alone.
    """
    order = np.argsort(labels, kind="stable")
    _, begins, counts = np.unique(labels[order], return_index=True, return_counts=True)
    positions = np.empty(len(labels), dtype=np.int64)
    positions[order] = np.arange(len(labels)) - np.repeat(begins, counts)
    return positions
