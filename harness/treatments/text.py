"""Characters to vocabulary indices."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError
from harness.treatments.numbers import Batch, numbers

_CODES = 0x110000  # of Unicode, 0 … 10FFFF


class Vocabulary:
    """Maps Unicode code points, as from `harness.sources.text.Characters`, to indices of a
    vocabulary learned from the training split.

    (B, T) int64 -> (B, T) int64 in [0, size): the `size` - 1 most frequent characters (in a tie,
    the first in Unicode) get 1, 2, … in Unicode order, and 0 stands for all others, in validation,
    test and prediction too. A smaller vocabulary leaves indices unused. `size` must match the
    network.
    """

    def __init__(self, size: int, key: str = "tokens") -> None:
        if size < 2:
            raise ConfigError(
                f"size: {size}: must be at least 2, one of them for unknown characters."
            )
        self.size = size
        self.key = key
        self._counts: Counter[int] = Counter()
        self._numbers: NDArray[np.int64] | None = None

    def observe(self, batch: Batch) -> None:
        """batch: as for `__call__`."""
        codes, counts = np.unique(self._codes(batch), return_counts=True)
        self._counts.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))

    def finish(self) -> None:
        """Raises DataError if there were no characters."""
        if not self._counts:
            raise DataError(
                f"{self.key}: no characters to learn a vocabulary from. Check the training split."
            )
        frequent = sorted(self._counts, key=lambda code: (-self._counts[code], code))
        self.restore(
            {"characters": "".join(chr(code) for code in sorted(frequent[: self.size - 1]))}
        )

    def state(self) -> dict[str, Any]:
        """{characters: those with the indices 1, 2, …}"""
        return {"characters": self.characters}

    def restore(self, state: Mapping[str, Any]) -> None:
        """state: as returned by `state()`."""
        self.characters: str = state["characters"]
        self._numbers = np.zeros(_CODES, dtype=np.int64)
        self._numbers[[ord(character) for character in self.characters]] = np.arange(
            1, len(self.characters) + 1
        )

    def __call__(self, batch: Batch) -> Batch:
        assert self._numbers is not None
        return {**batch, self.key: torch.from_numpy(self._numbers[self._codes(batch)])}

    def decode(self, column: str, values: NDArray[Any]) -> str | None:
        """The text of indices (T,), with the replacement character for unknown ones."""
        if column != self.key:
            return None
        return "".join(("\ufffd" + self.characters)[index] for index in values.tolist())

    def _codes(self, batch: Batch) -> NDArray[np.int64]:
        tokens = numbers(batch, self.key)
        if tokens.is_floating_point() or (
            tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < _CODES
        ):
            raise DataError(
                f"{self.key}: not Unicode code points. Read the text with "
                "harness.sources.text.Characters, or set key."
            )
        codes: NDArray[np.int64] = tokens.numpy().astype(np.int64)
        return codes
