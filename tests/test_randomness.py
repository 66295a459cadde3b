"""Randomness by purpose, and the ambient generators' state."""

import contextlib
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAUROC

from harness.errors import CheckpointError
from harness.networks import ConvNet, Mlp
from harness.randomness import (
    capture_random,
    draws_nothing,
    generators_of,
    preserve_random,
    restore_random,
    seed_ambient,
    seed_for,
    seed_torch,
    seeding_for,
)
from harness.tasks import Classification, Joint, Regression, Supervised


def draw() -> list[float]:
    """From every ambient generator, the normal variates that NumPy and Python keep in pairs among
    them.
    """
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def test_a_seed_is_a_function_of_the_runs_seed_and_of_its_purpose() -> None:
    seeds = [
        seed_for(run, purpose, step, slot)
        for run in range(5)
        for purpose in ("forward", "update")
        for step in range(20)
        for slot in range(5)
    ]
    assert len(set(seeds)) == len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    # A change breaks the exact resumption of every run there is
    assert seed_for(7, "forward", 1, 2) == 5167520508008972724


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
    with preserve_random():
        expected = draw()
    with preserve_random():
        seed_ambient(99)
        draw()
    assert draw() == expected


def test_nor_does_it_if_it_fails() -> None:
    seed_ambient(2)
    with preserve_random():
        expected = draw()
    with contextlib.suppress(KeyError), preserve_random():
        draw()
        raise KeyError
    assert draw() == expected


@pytest.mark.parametrize(
    "before",
    [lambda: None, lambda: random.gauss(0, 1), np.random.randn, lambda: torch.randn(3), draw],
)
def test_captured_generators_go_on_as_if_nothing_had_happened(before: Callable[[], object]) -> None:
    seed_ambient(3)
    before()
    state = capture_random({})
    expected = draw()
    seed_ambient(4)
    before()
    restore_random({name: tensor.clone() for name, tensor in state.items()}, {})
    assert draw() == expected
    restore_random(state, {})
    assert draw() == expected


def test_capturing_draws_nothing_and_is_not_changed_by_later_draws() -> None:
    seed_ambient(5)
    expected = draw()
    seed_ambient(5)
    state = capture_random({})
    kept = {name: tensor.clone() for name, tensor in state.items()}
    assert draw() == expected
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())


def test_a_state_that_lacks_a_generator_is_refused_before_anything_is_changed() -> None:
    seed_ambient(6)
    state = capture_random({})
    del state["numpy.keys"]
    expected = capture_random({})
    with pytest.raises(
        CheckpointError, match=r"random state: holds .* where this process has .*numpy\.keys"
    ):
        restore_random(state, {})
    assert all(torch.equal(tensor, expected[name]) for name, tensor in capture_random({}).items())


@pytest.mark.parametrize("name", ["python.words", "numpy.keys", "torch.cpu"])
def test_a_damaged_state_is_refused(name: str) -> None:
    seed_ambient(7)
    state = capture_random({})
    state[name] = state[name][:-7]
    with pytest.raises(CheckpointError, match="random state: cannot be restored"):
        restore_random(state, {})


class Roller(torch.nn.Module):
    """A network that draws from generators of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.of_torch = torch.Generator().manual_seed(1)
        self.of_numpy = np.random.default_rng(2)
        self.of_python = random.Random(3)
        self.twister = np.random.Generator(np.random.MT19937(4))

    def roll(self) -> list[float]:
        self.of_python.gauss()
        drawn = [float(torch.rand((), generator=self.of_torch)), float(self.of_numpy.normal())]
        return [*drawn, self.of_python.gauss(), float(self.twister.normal())]


def test_generators_that_a_network_keeps_are_saved_and_restored_too() -> None:
    network = torch.nn.Sequential(Roller(), torch.nn.Linear(1, 1))
    own = generators_of(network=network)
    assert sorted(own) == ["0.of_numpy", "0.of_python", "0.of_torch", "0.twister"]
    network[0].roll()
    state = {name: tensor.clone() for name, tensor in capture_random(own).items()}
    expected = [network[0].roll() for _ in range(3)]
    restore_random(state, own)
    assert [network[0].roll() for _ in range(3)] == expected
    other = torch.nn.Sequential(Roller())
    restore_random(state, generators_of(network=other))
    assert other[0].roll() == expected[0]


class OfNumpy(torch.nn.Linear):
    """Draws as somebody's own network may."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * float(np.random.rand())


def noisy(x: torch.Tensor) -> torch.Tensor:
    return x * random.random()


def with_hook() -> torch.nn.Module:
    network = torch.nn.Linear(2, 2)
    network.register_forward_pre_hook(lambda module, given: (noisy(given[0]),))
    return network


def with_function() -> torch.nn.Module:
    return torch.nn.TransformerEncoderLayer(2, 1, 2, activation=noisy)


def patched() -> torch.nn.Module:
    network = torch.nn.Linear(2, 2)
    network.forward = noisy  # type: ignore[method-assign] # as wrappers do
    return network


class OwnTask(Classification):
    """A user's."""


NUMBERS = Classification("x", "label")


@pytest.mark.parametrize(
    ("network", "task"),
    [
        (torch.nn.Sequential(torch.nn.Dropout(), OfNumpy(2, 2)), NUMBERS),
        (with_hook(), NUMBERS),
        (with_function(), NUMBERS),
        (patched(), NUMBERS),
        (Mlp([2, 2]), Classification("x", "label", metrics={"own": MulticlassAUROC(2)})),
        (Mlp([2, 2]), object()),
        (Mlp([2, 2]), Supervised("x", "label", noisy, "none")),
        (Mlp([2, 2]), Joint({"own": OwnTask("x", "label"), "other": NUMBERS})),
    ],
)
def test_what_may_draw_from_any_generator_has_all_of_them_seeded(
    network: torch.nn.Module, task: object
) -> None:
    assert seeding_for(network, task) is seed_ambient


def test_what_draws_while_it_is_evaluated_is_seeded_for_each_micro_batch() -> None:
    assert draws_nothing(Mlp([2, 2], dropout=0.5), NUMBERS)
    assert draws_nothing(ConvNet(1, [2], 3), Joint({"one": NUMBERS, "other": NUMBERS}))
    noisy_layer = torch.nn.TransformerEncoderLayer(
        2, 1, 2, activation=torch.nn.functional.dropout, batch_first=True
    )
    loss = Supervised("x", "label", torch.nn.functional.dropout, "none")
    module_loss = Supervised("x", "label", torch.nn.Dropout(), "none")
    for network, task in [
        (torch.nn.FractionalMaxPool2d(2, 1), NUMBERS),
        (noisy_layer, NUMBERS),
        (patched(), NUMBERS),
        (Mlp([2, 2]), loss),
        (Mlp([2, 2]), module_loss),
        (Mlp([2, 2]), Joint({"one": NUMBERS, "other": loss})),
    ]:
        assert not draws_nothing(network.eval(), task)


def test_networks_of_torch_and_ours_have_its_generators_seeded_alone() -> None:
    known = [
        Mlp([2, 2], dropout=0.5),
        torch.nn.TransformerEncoderLayer(2, 1, 2),
        ConvNet(1, [2], 3),
    ]
    tasks = [
        NUMBERS,
        Classification("x", "label", class_weights="balanced"),
        Supervised("x", "label", torch.nn.functional.mse_loss, "none"),
        Joint({"one": NUMBERS, "other": Regression("x", "size")}),
    ]
    for task in tasks:
        assert seeding_for(known[0], task) is seed_torch
    for network in known:
        assert seeding_for(network, NUMBERS) is seed_torch
        states = []
        for seed in (seed_ambient, seed_torch):
            seed(5)
            states.append(torch.rand(3))
        assert states[0].equal(states[1])
