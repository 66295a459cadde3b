"""Randomness by purpose, and the ambient generators' state."""

import contextlib
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import CheckpointError
from harness.randomness import capture_ambient, preserved, restore_ambient, seed_ambient, seed_for


def draw() -> list[float]:
    """From every ambient generator, the normal variates that NumPy and Python keep in pairs among them."""
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(())), float(torch.randn(()))]


def test_a_seed_is_a_function_of_the_runs_seed_and_of_its_purpose() -> None:
    seeds = [seed_for(run, purpose, step, slot) for run in range(5) for purpose in ("forward", "update") for step in range(20) for slot in range(5)]
    assert len(set(seeds)) == len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(7, "forward", 1, 2) == 5167520508008972724  # a change breaks the exact resumption of every run there is


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_numbers_side_by_side_are_not_taken_for_one(step: int, slot: int) -> None:
    assert seed_for(7, "forward", step, slot) != seed_for(7, "forward", int(f"{step}{slot}"))


@given(st.integers(0, 2**63 - 1))
def test_a_seed_settles_every_ambient_generator(seed: int) -> None:
    seed_ambient(seed)
    first = draw()
    draw()
    seed_ambient(seed)
    assert draw() == first


def test_what_is_drawn_inside_leaves_no_trace() -> None:
    seed_ambient(1)
    draw()
    with preserved():
        expected = draw()
    with preserved():
        seed_ambient(99)
        draw()
    assert draw() == expected


def test_nor_does_it_if_it_fails() -> None:
    seed_ambient(2)
    with preserved():
        expected = draw()
    with contextlib.suppress(KeyError), preserved():
        draw()
        raise KeyError
    assert draw() == expected


@pytest.mark.parametrize("before", [lambda: None, lambda: random.gauss(0, 1), np.random.randn, lambda: torch.randn(3), draw])
def test_captured_generators_go_on_as_if_nothing_had_happened(before: Callable[[], object]) -> None:
    seed_ambient(3)
    before()
    state = capture_ambient()
    expected = draw()
    seed_ambient(4)
    before()
    restore_ambient({name: tensor.clone() for name, tensor in state.items()})
    assert draw() == expected
    restore_ambient(state)
    assert draw() == expected


def test_capturing_draws_nothing_and_is_not_changed_by_later_draws() -> None:
    seed_ambient(5)
    expected = draw()
    seed_ambient(5)
    state = capture_ambient()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    assert draw() == expected
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())


def test_a_state_that_lacks_a_generator_is_refused_before_anything_is_changed() -> None:
    seed_ambient(6)
    state = capture_ambient()
    del state["numpy.keys"]
    expected = capture_ambient()
    with pytest.raises(CheckpointError, match=r"random state: holds .* where this process has .*numpy\.keys"):
        restore_ambient(state)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in capture_ambient().items())


@pytest.mark.parametrize("name", ["python.words", "torch.cpu"])
def test_a_damaged_state_is_refused(name: str) -> None:
    seed_ambient(7)
    state = capture_ambient()
    state[name] = state[name][:-7]
    with pytest.raises(CheckpointError, match="random state: cannot be restored"):
        restore_ambient(state)
