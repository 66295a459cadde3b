"""Real handwritten digits that need no download: they come with scikit-learn."""

from typing import Any, Literal, get_args

import numpy as np

from harness.errors import require_choice
from harness.sources.order import position_in_class
from harness.sources.source import BatchSource, as_texts

Split = Literal["train", "val", "test"]


class Digits(BatchSource):
    """1,797 handwritten digits: the test part of E. Alpaydin & C. Kaynak, "Optical recognition of
    handwritten digits", UCI, 1998.

    A sample: `image` (1, 8, 8) float32 in [0, 1], `label` int64 in 0 … 9. Of each class, in
    order, every fifth digit belongs to "test" and the one before it to "val": train 1,085, val
    357, test 355. Raises ConfigError for any other split.
    """

    def __init__(self, split: Split) -> None:
        require_choice("split", split, get_args(Split))
        # Loaded when used
        from sklearn.datasets import load_digits

        found = load_digits()
        fifth = position_in_class(found.target) % 5
        mine = fifth == 4 if split == "test" else fifth == 3 if split == "val" else fifth < 3
        # Counts of 0 … 16 ink cells
        self._images = (found.images[mine, None] / 16).astype(np.float32)
        self._labels = found.target[mine].astype(np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def known(self) -> dict[str, list[str]]:
        """{label: (N,) texts}"""
        return {"label": as_texts(self._labels)}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{image: (B, 1, 8, 8), label: (B,)}"""
        return {"image": self._images[indices], "label": self._labels[indices]}
