"""Digits of which some have a wrong label."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.sources.digits import Digits, Split
from harness.sources.source import BatchSource, as_texts


class WrongDigits(BatchSource):
    """Digits of which every twentieth, drawn by `seed`, has the label of another; `is_wrong` (N,)
    says which.
    """

    def __init__(self, splits: Sequence[Split], seed: int) -> None:
        parts = [of.__getitems__([*range(len(of))]) for of in map(Digits, splits)]
        self._columns = {
            name: np.concatenate([part[name] for part in parts]) for name in ("image", "label")
        }
        draw = np.random.default_rng(seed)
        labels = self._columns["label"]
        self.is_wrong = np.zeros(len(labels), np.bool_)
        self.is_wrong[draw.choice(len(labels), len(labels) // 20, replace=False)] = True
        moved = draw.integers(1, 10, len(labels)) * self.is_wrong
        self._columns["label"] = (labels + moved) % 10

    def __len__(self) -> int:
        return len(self.is_wrong)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        return {name: values[indices] for name, values in self._columns.items()}

    def known(self) -> Mapping[str, Sequence[str]]:
        return {"label": as_texts(self._columns["label"])}
