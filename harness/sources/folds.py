"""Folds of a source, for predictions on samples that a network has not learned from."""

from typing import Any

import numpy as np

from harness.errors import ConfigError
from harness.sources.mixtures import Subset


class Fold(Subset):
    """Of `folds` shares of a source, drawn at random but the same each time: the one numbered
    `fold`, from 0, if `held_out`, else all others.

    Raises ConfigError.
    """

    def __init__(self, source: Any, fold: int, folds: int, held_out: bool = False) -> None:
        count = len(source)
        if not 0 <= fold < folds <= count or folds < 2:
            raise ConfigError(
                f"fold, folds: {fold} of {folds}: give at least two folds, at most as many as the "
                f"source has samples ({count}), and 0 <= fold < folds."
            )
        number_of = np.random.default_rng(0).permutation(count) % folds
        rows = np.flatnonzero((number_of == fold) == held_out)
        super().__init__(source, indices=rows.tolist())
        self.rows = rows
