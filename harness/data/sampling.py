"""Which samples, in which slot, of which step: pure functions of (seed, epoch, position), with O(1)
memory and seek.

The order of an epoch is a keyed permutation of 0 … N-1: a Feistel network (Luby & Rackoff, "How to
construct pseudorandom permutations from pseudorandom functions", SIAM J. Comput. 17, 1988) over a x
b >= N cells, in its form for a domain of any size (Black & Rogaway, "Ciphers with arbitrary finite
domains", CT-RSA 2002, sections 3 and 4: the generalised Feistel cipher and cycle walking).
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError

Integers = NDArray[np.int64]


_Words = NDArray[np.uint64]


_CHUNK = 16384  # positions whose images are found at a time


# With six, successive samples of splits below some hundred samples were measurably not independent
_ROUNDS = 12


def mix(words: _Words) -> _Words:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014, figure 16).
    """
    words = words ^ (words >> np.uint64(30))  # a new array, changed in place from here on
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


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
        size, keys = np.uint64(self.size), _keys(self.seed, f"order/{self.epoch}", _ROUNDS)
        walked = _scramble(positions.astype(np.uint64), size, keys)
        # Cycle walking: a x b < 2 N + 1, so that a step stays outside with probability below 1/2
        while (outside := walked >= size).any():
            walked[outside] = _scramble(walked[outside], size, keys)
        return walked.astype(np.int64)


def _permute_ascending(permutation: Permutation, positions: Integers) -> Integers:
    """Images of ascending positions, from whole chunks: numpy takes about as long for a chunk as
    for a micro-batch.
    """
    first, last = int(positions[0]) // _CHUNK, int(positions[-1]) // _CHUNK
    images: Integers = np.concatenate(
        [_chunk(permutation, number) for number in range(first, last + 1)]
    )[positions - first * _CHUNK]
    return images


@functools.lru_cache(maxsize=4)
def _chunk(permutation: Permutation, number: int) -> Integers:
    return permutation(
        np.arange(number * _CHUNK, min((number + 1) * _CHUNK, permutation.size), dtype=np.int64)
    )


def _scramble(cells: _Words, sizes: Any, keys: _Words) -> _Words:
    """One step of the cycle among the a x b cells.

    cells: (n,); sizes: one or (n,); keys: (rounds,) or (rounds, n).
    """
    a = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    b = (sizes + a - np.uint64(1)) // a
    left, right = cells % a, cells // a
    for index, key in enumerate(keys):
        modulus = a if index % 2 == 0 else b
        left, right = right, _modulo(left + _modulo(mix(right + key), modulus), modulus)
    scrambled: _Words = left + a * right
    return scrambled  # after an even number of rounds left is below a and right below b again


def _modulo(words: _Words, modulus: Any) -> _Words:
    """words % modulus: numpy divides by one number many times faster than it takes remainders."""
    rest: _Words = words - words // modulus * modulus
    return rest


def turns(purpose: str, seed: int, groups: Integers, counts: Integers, sizes: Integers) -> Integers:
    """The member that comes at each turn of a group: all of them before any comes again, each time
    in another order.

    groups, counts, sizes: (n,) the groups, how many turns each has had before, and its number of
    members -> (n,) members, from 0 in each group.
    """
    rounds = (counts // sizes).astype(np.uint64)
    keys = mix(mix(_keys(seed, purpose, _ROUNDS)[:, None] + groups.astype(np.uint64)) + rounds)
    limits = sizes.astype(np.uint64)
    cells = _scramble((counts % sizes).astype(np.uint64), limits, keys)
    while (outside := cells >= limits).any():
        cells = np.where(outside, _scramble(cells, limits, keys), cells)
    return cells.astype(np.int64)


class Order(Protocol):
    """An order that a source gives to its own samples in training."""

    def samples(self, positions: Integers, seed: int) -> Integers:
        """positions: (n,) of samples in the training, over all epochs -> (n,) their indices."""
        ...


@dataclass(frozen=True, eq=False)
class Balance:
    """Draws that give each of C classes the same share, however many of the N samples it has.

    Draw g of a training goes to class g mod C, which has had g // C draws before it. They go
    through all members of the class before any comes again, each time in another order. So after
    any number of whole epochs the classes' draws differ by at most one, and so do those of the
    members of a class. `members`: (N,) samples, class after class; `begins`, `counts`: (C,).
    """

    members: Integers
    begins: Integers
    counts: Integers

    @classmethod
    def of(cls, classes: Sequence[str]) -> "Balance":
        """classes: (N,), what each sample belongs to; classes take their turns in the order of
        their names.
        """
        _, numbers, counts = np.unique(
            np.array(classes, dtype=np.str_), return_inverse=True, return_counts=True
        )
        return cls(
            np.argsort(numbers, kind="stable").astype(np.int64),
            np.cumsum(counts) - counts,
            counts.astype(np.int64),
        )

    def samples(self, draws: Integers, seed: int) -> Integers:
        """draws: (n,) -> (n,) samples."""
        classes, counts = draws % len(self.counts), draws // len(self.counts)
        cells = turns("balance", seed, classes, counts, self.counts[classes])
        drawn: Integers = self.members[self.begins[classes] + cells]
        return drawn


@dataclass(frozen=True)
class Sampling:
    """The plan of a training: `num_samples` samples in batches of `size` = num_slots x
    `micro_size`, the same on any number of ranks.

    Batch k holds the global positions [k * size, (k + 1) * size); an epoch is position //
    num_samples; batches run on across the end of an epoch, so that each is full and each sample
    comes exactly once an epoch. With a `balance` an epoch is as long, and what comes in it is drawn
    class by class; with an `order`, by that.
    """

    num_samples: int
    size: int
    micro_size: int
    seed: int
    balance: Balance | None = None
    order: Order | None = None

    @property
    def num_slots(self) -> int:
        return self.size // self.micro_size

    def slots_of(self, rank: int, num_ranks: int) -> range:
        """The consecutive slots that a rank works on. Raises ConfigError."""
        share = slots_a_rank(self.size, self.micro_size, num_ranks)
        return range(rank * share, (rank + 1) * share)

    def positions(self, step: int, slot: int) -> Integers:
        """Global positions (micro_size,) of a slot of the batch that step + 1 completes."""
        start = step * self.size + slot * self.micro_size
        return np.arange(start, start + self.micro_size, dtype=np.int64)

    def samples(self, step: int, slot: int) -> Integers:
        """Indices (micro_size,) into the source."""
        if self.order is not None:
            return self.order.samples(self.positions(step, slot), self.seed)
        begin = step * self.size + slot * self.micro_size
        epoch, first = divmod(begin, self.num_samples)
        number, offset = divmod(first, _CHUNK)
        within = offset + self.micro_size <= min(_CHUNK, self.num_samples - number * _CHUNK)
        if self.balance is None and within:  # of one epoch and one chunk, as nearly all are
            chunk = _chunk(Permutation(self.num_samples, self.seed, epoch), number)
            return chunk[offset : offset + self.micro_size].copy()
        positions = self.positions(step, slot)
        epochs = positions // self.num_samples
        samples = np.empty_like(positions)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            inside = epochs == epoch
            samples[inside] = _permute_ascending(
                Permutation(self.num_samples, self.seed, epoch),
                positions[inside] - epoch * self.num_samples,
            )
        return (
            samples
            if self.balance is None
            else self.balance.samples(epochs * self.num_samples + samples, self.seed)
        )

    def sample_seeds(self, step: int, slot: int) -> _Words:
        """Seeds (micro_size,) uint64 for augmentation: a function of the seed and the global
        position (hence of epoch and sample) alone.
        """
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


def slots_a_rank(size: int, micro_size: int, num_ranks: int) -> int:
    """How many micro-batches of each batch a rank works on. Raises ConfigError for a number of
    ranks that does not divide them.
    """
    num_slots = size // micro_size
    if num_slots % num_ranks:
        raise ConfigError(
            f"batch: {num_slots} slots (size {size} / micro_size {micro_size}) cannot be divided "
            f"among {num_ranks} processes. Launch one of "
            f"{', '.join(map(str, fitting_world_sizes(num_slots)))} processes, or change "
            "batch.size or batch.micro_size."
        )
    return num_slots // num_ranks


def fitting_world_sizes(num_slots: int) -> list[int]:
    """Numbers of processes that divide the slots evenly."""
    return [size for size in range(1, num_slots + 1) if num_slots % size == 0]
