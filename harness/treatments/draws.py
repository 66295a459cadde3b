"""Random numbers for samples: pure functions of seed, treatment and purpose."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from harness.data.sampling import mix

Seeds = NDArray[np.uint64]


class Draws:
    """The random numbers of one treatment, e.g. `Draws("RandomFlip", salt=0)`; a different name or
    salt gives different numbers for the same samples.

    Two treatments with the same class and salt draw the same, which keeps an image and its mask
    aligned; give one of them another salt to make them differ.
    """

    def __init__(self, name: str, salt: int) -> None:
        self._name = f"{name}/{salt}"

    def uniform(self, seeds: Seeds, *purpose: str) -> NDArray[np.float64]:
        """seeds: (B,) -> (B,) in [0, 1), one number per purpose."""
        return (self.seeds(seeds, *purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def uniform_by_channel(self, seeds: Seeds, num_channels: int) -> NDArray[np.float64]:
        """seeds: (B,) -> (B, C) in [0, 1)."""
        drawn = [self.uniform(seeds, str(channel)) for channel in range(num_channels)]
        return np.stack(drawn, axis=1)

    def integers(
        self, seeds: Seeds, end: int | NDArray[np.int64], *purpose: str
    ) -> NDArray[np.int64]:
        """seeds: (B,) -> (B,) in [0, end); `end`: one for all, or (B,)."""
        return (self.uniform(seeds, *purpose) * end).astype(np.int64)

    def spans(
        self, seeds: Seeds, widths: NDArray[np.int64], length: int, *purpose: str
    ) -> NDArray[np.bool_]:
        """seeds, widths: (B,) -> (B, length): True in one span per sample, at a random position."""
        begins = self.integers(seeds, length - widths + 1, *purpose)[:, None]
        positions = np.arange(length)
        return (positions >= begins) & (positions < begins + widths[:, None])

    def seeds(self, seeds: Seeds, *purpose: str) -> Seeds:
        """seeds: (B,) -> (B,) derived seeds, for separate generators."""
        digest = hashlib.blake2b("/".join((self._name, *purpose)).encode(), digest_size=8).digest()
        return mix(mix(seeds ^ np.frombuffer(digest, dtype="<u8").astype(np.uint64)))
