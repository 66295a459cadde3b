"""Which samples come when."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.sampling import Balance, Permutation, Sampling, fitting_world_sizes
from harness.errors import ConfigError

MASK = 2**64 - 1
SEEDS = st.integers(0, 2**63 - 1)


# -- the same in plain Python integers, cell by cell, read from the papers


def mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def keys(seed: int, purpose: str, count: int) -> list[int]:
    digest = hashlib.shake_256(f"{purpose}/{seed}".encode()).digest(8 * count)
    return [int.from_bytes(digest[8 * index : 8 * index + 8], "little") for index in range(count)]


def walked(position: int, size: int, round_keys: list[int]) -> int:
    """Black & Rogaway: encipher the cell number until it falls among the first `size` cells."""
    a = max(1, math.isqrt(size - 1) + 1)
    b = -(-size // a)
    cell = position
    while True:
        left, right = cell % a, cell // a
        for index, key in enumerate(round_keys):
            modulus = (a, b)[index % 2]
            left, right = right, (left + mix((right + key) & MASK)) % modulus
        cell = left + a * right
        assert 0 <= cell < a * b
        if cell < size:
            return cell


def chi_square(counts: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def drawn(draw: int, members: list[list[int]], seed: int) -> int:
    """The sample of a balanced draw: the classes in turn, each class's members all before any comes
    again.
    """
    number = draw % len(members)
    turn = draw // len(members)
    mine = members[number]
    base = keys(seed, "balance", 12)
    round_keys = [mix((mix((key + number) & MASK) + turn // len(mine)) & MASK) for key in base]
    return mine[walked(turn % len(mine), len(mine), round_keys)]


def plan(
    num_samples: int, num_slots: int, micro_size: int, seed: int = 7, balance: Balance | None = None
) -> Sampling:
    return Sampling(num_samples, num_slots * micro_size, micro_size, seed, balance)


# -- the order of an epoch


@given(st.integers(1, 3000), SEEDS, st.integers(0, 10**6))
def test_the_order_of_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    assert sorted(Permutation(size, seed, epoch)(np.arange(size)).tolist()) == list(range(size))


@given(st.integers(1, 10**12), SEEDS, st.integers(0, 1000), st.data())
def test_it_is_what_the_papers_describe(
    size: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    round_keys = keys(seed, f"order/{epoch}", 12)
    assert Permutation(size, seed, epoch)(np.array(positions)).tolist() == [
        walked(position, size, round_keys) for position in positions
    ]


@given(st.integers(1, 500), SEEDS)
def test_a_seek_equals_a_replay(size: int, seed: int) -> None:
    order = Permutation(size, seed, 3)
    replayed = order(np.arange(size)).tolist()
    assert [int(order(np.array([position]))[0]) for position in range(size)] == replayed


def test_nothing_is_asked_of_an_empty_list_of_positions() -> None:
    assert Permutation(10, 0, 0)(np.array([], dtype=np.int64)).tolist() == []


def test_seeds_and_epochs_give_orders_of_their_own() -> None:
    orders = {
        tuple(Permutation(50, seed, epoch)(np.arange(50)).tolist())
        for seed in range(20)
        for epoch in range(20)
    }
    assert len(orders) == 400


def test_the_positions_given_are_left_as_they_were() -> None:
    positions = np.arange(100)
    Permutation(100, 1, 1)(positions)
    assert positions.tolist() == list(range(100))


@pytest.mark.parametrize("size", [7, 16, 37])
def test_each_sample_is_as_likely_at_each_position_as_any_other(size: int) -> None:
    epochs = 4000
    counts = np.zeros((size, size), dtype=np.int64)
    for epoch in range(epochs):
        counts[np.arange(size), Permutation(size, 12345, epoch)(np.arange(size))] += 1
    # Rows and columns have fixed sums: (size - 1)^2 degrees of freedom, of which the sum is nearly
    # normal. Five standard deviations.
    freedom = (size - 1) ** 2
    assert abs(chi_square(counts) - freedom) < 5 * math.sqrt(2 * freedom)


def test_neighbours_in_the_source_are_not_neighbours_in_the_order() -> None:
    size, epochs = 24, 10_000
    follows = np.zeros((size, size), dtype=np.int64)
    for epoch in range(epochs):
        order = Permutation(size, 99, epoch)(np.arange(size))
        follows[order[:-1], order[1:]] += 1
    pairs = follows[~np.eye(size, dtype=bool)]
    freedom = pairs.size - 1
    assert abs(chi_square(pairs) - freedom) < 5 * math.sqrt(2 * freedom)


# -- batches, slots and ranks


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 7), st.integers(1, 4))
def test_each_sample_comes_once_an_epoch(
    num_samples: int, num_slots: int, micro_size: int, epochs: int
) -> None:
    sampling = plan(num_samples, num_slots, micro_size)
    steps = sampling.step_of_epoch(epochs)
    seen = np.concatenate(
        [sampling.samples(step, slot) for step in range(steps) for slot in range(num_slots)]
    )
    for epoch in range(epochs):
        assert sorted(seen[epoch * num_samples : (epoch + 1) * num_samples].tolist()) == list(
            range(num_samples)
        )
    # Every batch is full: what is left over belongs to the next epoch
    assert len(seen) == steps * sampling.size
    assert max(Counter(seen[epochs * num_samples :].tolist()).values(), default=0) <= -(
        -sampling.size // num_samples
    )


@given(st.integers(1, 500), st.integers(1, 12), st.integers(1, 6), SEEDS, st.integers(0, 10**6))
def test_every_world_size_trains_the_same_batches(
    num_samples: int, num_slots: int, micro_size: int, seed: int, step: int
) -> None:
    sampling = plan(num_samples, num_slots, micro_size, seed)
    whole = [sampling.samples(step, slot).tolist() for slot in range(num_slots)]
    seeds = [sampling.sample_seeds(step, slot).tolist() for slot in range(num_slots)]
    for num_ranks in fitting_world_sizes(num_slots):
        slots = [slot for rank in range(num_ranks) for slot in sampling.slots_of(rank, num_ranks)]
        assert slots == list(range(num_slots))
        assert [sampling.samples(step, slot).tolist() for slot in slots] == whole
        assert [sampling.sample_seeds(step, slot).tolist() for slot in slots] == seeds


@given(st.integers(1, 300), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), SEEDS)
def test_the_size_of_a_micro_batch_changes_only_where_a_batch_is_cut(
    num_samples: int, num_slots: int, micro_size: int, step: int, seed: int
) -> None:
    cut, whole = (
        plan(num_samples, num_slots, micro_size, seed),
        plan(num_samples, 1, num_slots * micro_size, seed),
    )
    assert (
        np.concatenate([cut.samples(step, slot) for slot in range(num_slots)]).tolist()
        == whole.samples(step, 0).tolist()
    )
    assert (
        np.concatenate([cut.sample_seeds(step, slot) for slot in range(num_slots)]).tolist()
        == whole.sample_seeds(step, 0).tolist()
    )


def test_positions_count_on_across_slots_steps_and_epochs() -> None:
    sampling = plan(num_samples=10, num_slots=3, micro_size=4)
    positions = [
        int(position)
        for step in range(4)
        for slot in range(3)
        for position in sampling.positions(step, slot)
    ]
    assert positions == list(range(48))


def test_a_position_of_a_long_training_is_reached_at_once() -> None:
    sampling = Sampling(num_samples=10**9 + 7, size=4096, micro_size=512, seed=1)
    samples = sampling.samples(step=10**12, slot=7)
    assert samples.shape == (512,)
    assert len(set(samples.tolist())) == 512
    assert samples.min() >= 0
    assert samples.max() < 10**9 + 7


@given(SEEDS, st.integers(0, 10**6))
def test_every_sample_of_every_epoch_has_its_own_seed(seed: int, step: int) -> None:
    sampling = plan(num_samples=10, num_slots=4, micro_size=16, seed=seed)
    seeds = np.concatenate([sampling.sample_seeds(step, slot) for slot in range(4)])
    assert seeds.dtype == np.uint64
    assert len(set(seeds.tolist())) == 64


def test_the_bits_of_the_seeds_are_fair() -> None:
    seeds = plan(num_samples=1000, num_slots=1, micro_size=4096).sample_seeds(0, 0)
    share = np.unpackbits(seeds.view(np.uint8)).reshape(4096, 64).mean(axis=0)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / math.sqrt(4096)


def test_orders_are_those_that_checkpoints_of_earlier_versions_rely_on() -> None:
    # A change of these numbers breaks the exact resumption of every run there is.
    sampling = Sampling(num_samples=12, size=6, micro_size=3, seed=7)
    orders = [sampling.samples(step, slot).tolist() for step in range(3) for slot in range(2)]
    assert orders == [[8, 4, 10], [2, 0, 11], [3, 5, 6], [7, 1, 9], [0, 5, 4], [6, 8, 3]]
    assert sampling.sample_seeds(1, 1).tolist() == [
        15111379685144918730,
        15599686385046650983,
        5945756174142771590,
    ]


# -- balanced draws

CLASSES = st.lists(st.sampled_from(["cat", "dog", "eel", "fox"]), min_size=1, max_size=60)


def members_of(classes: list[str]) -> list[list[int]]:
    return [
        [index for index, one in enumerate(classes) if one == name] for name in sorted(set(classes))
    ]


@given(CLASSES, st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), SEEDS)
def test_classes_and_the_members_of_each_come_equally_often(
    classes: list[str], num_slots: int, micro_size: int, epochs: int, seed: int
) -> None:
    sampling = plan(len(classes), num_slots, micro_size, seed, Balance.of(classes))
    seen = np.concatenate(
        [
            sampling.samples(step, slot)
            for step in range(sampling.step_of_epoch(epochs))
            for slot in range(num_slots)
        ]
    )
    counts = Counter(seen[: epochs * len(classes)].tolist())
    shares = [[counts[member] for member in members] for members in members_of(classes)]
    assert max(map(sum, shares)) - min(map(sum, shares)) <= 1
    assert all(max(of_class) - min(of_class) <= 1 for of_class in shares)
    one_epoch = Counter(
        classes[index]
        for index in seen[(epochs - 1) * len(classes) : epochs * len(classes)].tolist()
    )
    assert all(abs(one_epoch[name] - len(classes) / len(shares)) < 1 for name in set(classes))


@given(CLASSES, SEEDS, st.lists(st.integers(0, 10**15), min_size=1, max_size=8))
def test_balanced_draws_are_those_of_plain_integers(
    classes: list[str], seed: int, draws: list[int]
) -> None:
    members = members_of(classes)
    assert Balance.of(classes).samples(np.array(draws), seed).tolist() == [
        drawn(draw, members, seed) for draw in draws
    ]


@given(CLASSES, st.integers(1, 12), st.integers(1, 6), SEEDS, st.integers(0, 10**9))
def test_every_world_size_and_every_seek_finds_the_same_balanced_batches(
    classes: list[str], num_slots: int, micro_size: int, seed: int, step: int
) -> None:
    sampling = plan(len(classes), num_slots, micro_size, seed, Balance.of(classes))
    whole = (
        plan(len(classes), 1, num_slots * micro_size, seed, Balance.of(classes))
        .samples(step, 0)
        .tolist()
    )
    for num_ranks in fitting_world_sizes(num_slots):
        slots = [slot for rank in range(num_ranks) for slot in sampling.slots_of(rank, num_ranks)]
        assert np.concatenate([sampling.samples(step, slot) for slot in slots]).tolist() == whole


def test_balance_changes_neither_the_seeds_of_augmentation_nor_the_length_of_an_epoch() -> None:
    balanced, plain = plan(10, 2, 4, balance=Balance.of(["a"] * 9 + ["b"])), plan(10, 2, 4)
    assert balanced.sample_seeds(3, 1).tolist() == plain.sample_seeds(3, 1).tolist()
    assert balanced.step_of_epoch(5) == plain.step_of_epoch(5)


def test_the_members_of_a_class_come_in_another_order_each_time() -> None:
    balance = Balance.of(["a"] * 20 + ["b"] * 20)
    rounds = {
        tuple(balance.samples(np.arange(40 * turn, 40 * turn + 40), 5)[first::2].tolist())
        for turn in range(50)
        for first in (0, 1)
    }
    assert len(rounds) == 100


def test_balanced_orders_are_those_that_checkpoints_of_earlier_versions_rely_on() -> None:
    sampling = Sampling(
        num_samples=8, size=6, micro_size=3, seed=7, balance=Balance.of(list("aaaaaabc"))
    )
    orders = [sampling.samples(step, slot).tolist() for step in range(3) for slot in range(2)]
    assert orders == [[6, 7, 7], [1, 6, 3], [6, 4, 7], [2, 0, 6], [5, 6, 7], [7, 7, 6]]


# -- counting


@given(st.integers(1, 1000), st.integers(1, 300), st.integers(1, 50))
def test_an_epoch_ends_on_the_first_step_that_completes_it(
    num_samples: int, size: int, epoch: int
) -> None:
    sampling = Sampling(num_samples, size, size, 0)
    step = sampling.step_of_epoch(epoch)
    assert sampling.epochs_done(step) >= epoch
    assert sampling.epochs_done(step - 1) < epoch


@given(st.integers(1, 10**6), st.integers(1, 300))
def test_samples_are_seen_at_the_first_step_that_reaches_them(samples: int, size: int) -> None:
    step = Sampling(10, size, size, 0).steps_for_samples(samples)
    assert step * size >= samples > (step - 1) * size


@given(st.integers(1, 200))
def test_the_world_sizes_that_fit_are_the_divisors(num_slots: int) -> None:
    assert fitting_world_sizes(num_slots) == [
        size for size in range(1, num_slots + 1) if num_slots / size == num_slots // size
    ]


@given(st.integers(1, 64), st.integers(1, 80))
def test_a_world_size_that_does_not_fit_is_refused_with_those_that_do(
    num_slots: int, num_ranks: int
) -> None:
    sampling = plan(100, num_slots, 2)
    if num_ranks in fitting_world_sizes(num_slots):
        assert len(sampling.slots_of(0, num_ranks)) == num_slots // num_ranks
    else:
        with pytest.raises(ConfigError) as raised:
            sampling.slots_of(0, num_ranks)
        assert (
            f"Launch one of {', '.join(map(str, fitting_world_sizes(num_slots)))} processes"
            in str(raised.value)
        )


@pytest.mark.torture
def test_every_size_up_to_two_thousand_is_permuted_in_every_one_of_many_epochs() -> None:
    for size in range(1, 2001):
        for epoch in range(3):
            order = Permutation(size, size * 31, epoch)(np.arange(size))
            assert np.array_equal(np.sort(order), np.arange(size)), (size, epoch)
    for size in (10**6, 10**6 + 3, 2**20, 1009**2):
        assert np.array_equal(np.sort(Permutation(size, 5, 0)(np.arange(size))), np.arange(size)), (
            size
        )
