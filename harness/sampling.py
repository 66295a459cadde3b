"""Which samples, in which slot, of which step: pure functions of (seed, epoch, position), with O(1) memory and seek.

The order of an epoch is a keyed permutation of 0 … N-1: a Feistel network (Luby & Rackoff, "How to construct pseudorandom
permutations from pseudorandom functions", SIAM J. Comput. 17, 1988) over a x b >= N cells, in its form for a domain of any size (Black & Rogaway,
"Ciphers with arbitrary finite domains", CT-RSA 2002, sections 3 and 4: the generalised Feistel cipher and cycle walking).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError

Integers = NDArray[np.int64]
_Words = NDArray[np.uint64]
_ROUNDS = 12  # with six, successive samples of splits below some hundred samples were measurably not independent


def mix(words: _Words) -> _Words:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 16)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _keys(seed: int, purpose: str, count: int) -> _Words:
    digest = hashlib.shake_256(f"{purpose}/{seed}".encode()).digest(8 * count)
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


@dataclass(frozen=True)
class Permutation:
    """A permutation of 0 … size-1 chosen by (seed, epoch)."""

    size: int
    seed: int
    epoch: int

    def __call__(self, positions: Integers) -> Integers:
        """positions: (n,) in [0, size) -> (n,) images, all different for different positions."""
        walked = positions.astype(np.uint64)
        outside = np.ones(walked.shape, dtype=bool)
        while outside.any():  # cycle walking: a x b < 2 N + 1, so that a step stays outside with probability below 1/2
            walked[outside] = self._scramble(walked[outside])
            outside = walked >= np.uint64(self.size)
        return walked.astype(np.int64)

    def _scramble(self, cells: _Words) -> _Words:
        a = np.uint64(max(1, int(np.ceil(np.sqrt(self.size)))))
        b = np.uint64(-(-self.size // int(a)))
        left, right = cells % a, cells // a
        keys = _keys(self.seed, f"order/{self.epoch}", _ROUNDS)
        for index, key in enumerate(keys):
            modulus = a if index % 2 == 0 else b
            left, right = right, (left + mix(right + key) % modulus) % modulus
        return left + a * right  # after an even number of rounds left is below a and right below b again


@dataclass(frozen=True)
class Sampling:
    """The plan of a training: `num_samples` samples in batches of `size` = num_slots x `micro_size`, the same on any number of ranks.

    Batch k holds the global positions [k * size, (k + 1) * size); an epoch is position // num_samples; batches run on across the end
    of an epoch, so that each is full and each sample comes exactly once an epoch.
    """

    num_samples: int
    size: int
    micro_size: int
    seed: int

    @property
    def num_slots(self) -> int:
        return self.size // self.micro_size

    def slots_of(self, rank: int, num_ranks: int) -> range:
        """The consecutive slots that a rank works on."""
        if self.num_slots % num_ranks:
            raise ConfigError(
                f"batch: {self.num_slots} slots (size {self.size} / micro_size {self.micro_size}) cannot be shared by {num_ranks} processes. "
                f"Launch one of {', '.join(map(str, fitting_world_sizes(self.num_slots)))} processes, or change batch.size or batch.micro_size."
            )
        share = self.num_slots // num_ranks
        return range(rank * share, (rank + 1) * share)

    def positions(self, step: int, slot: int) -> Integers:
        """Global positions (micro_size,) of a slot of the batch that step + 1 completes."""
        start = step * self.size + slot * self.micro_size
        return np.arange(start, start + self.micro_size, dtype=np.int64)

    def samples(self, step: int, slot: int) -> Integers:
        """Indices (micro_size,) into the source."""
        positions = self.positions(step, slot)
        epochs = positions // self.num_samples
        samples = np.empty_like(positions)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            samples[inside] = Permutation(self.num_samples, self.seed, int(epoch))(positions[inside] % self.num_samples)
        return samples

    def sample_seeds(self, step: int, slot: int) -> _Words:
        """Seeds (micro_size,) uint64 for augmentation: a function of the seed and the global position (hence of epoch and sample) alone."""
        key = _keys(self.seed, "augmentation", 1)
        return mix(mix(self.positions(step, slot).astype(np.uint64) + key) + key)

    def epochs_done(self, step: int) -> int:
        """Whole epochs completed after `step` steps."""
        return step * self.size // self.num_samples

    def step_of_epoch(self, epoch: int) -> int:
        """The first step that completes `epoch` epochs."""
        return -(-epoch * self.num_samples // self.size)

    def steps_for_samples(self, samples: int) -> int:
        """The first step after which at least `samples` samples were seen."""
        return -(-samples // self.size)


def fitting_world_sizes(num_slots: int) -> list[int]:
    """Numbers of processes that divide the slots evenly."""
    return [size for size in range(1, num_slots + 1) if num_slots % size == 0]
