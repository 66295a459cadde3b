"""Optimizers and networks come back exactly, or not at all."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from harness.checkpoint.read import LoadedState
from harness.checkpoint.state import optimizer_tensors, restore_network, restore_optimizer
from harness.errors import CheckpointError
from tests.checkpoint.examples import assert_same, loaded_from, same_bits, snapshot, store_in

Build = Callable[[nn.Module], Optimizer]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False))


def plain(kind: type[Optimizer], **options: Any) -> Build:
    return lambda net: kind(net.parameters(), **options)


def matrices(net: nn.Module) -> list[Tensor]:
    return [parameter for parameter in net.parameters() if parameter.ndim == 2]


def frozen(net: nn.Module) -> Optimizer:
    next(net.parameters()).requires_grad_(False)
    return Adam(net.parameters(), lr=0.1)


def grouped(net: nn.Module) -> Optimizer:
    decay, rest = matrices(net), [parameter for parameter in net.parameters() if parameter.ndim < 2]
    return AdamW(
        [{"params": rest, "lr": 0.1 + 0.2, "weight_decay": 0.0, "name": "rest"}, {"params": decay}],
        lr=1e-3,
        betas=(0.8, 0.95),
    )


BUILDS: dict[str, Build] = {
    "SGD without momentum": plain(SGD, lr=0.1),
    "SGD with momentum": plain(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "SGD fused": plain(SGD, lr=0.1, momentum=0.9, fused=True),
    "Adam": plain(Adam, lr=0.1),
    "Adam amsgrad": plain(Adam, lr=0.1, amsgrad=True, foreach=True),
    "Adam fused": plain(Adam, lr=0.1, fused=True),
    "Adam with tensors as hyper-parameters": plain(
        Adam, lr=torch.tensor(0.1, dtype=torch.float64), foreach=False
    ),
    "AdamW maximize": plain(AdamW, lr=0.1, maximize=True),
    "AdamW in groups": grouped,
    "a frozen parameter": frozen,
    "Muon": lambda net: torch.optim.Muon(matrices(net), lr=0.1),
    **{
        name: plain(getattr(torch.optim, name), lr=0.1)
        for name in (
            "Adadelta",
            "Adafactor",
            "Adagrad",
            "Adamax",
            "ASGD",
            "LBFGS",
            "NAdam",
            "RAdam",
            "RMSprop",
            "Rprop",
        )
    },
}


def train(net: nn.Module, optimizer: Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        x = torch.randn(8, 5)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def names_of(net: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in net.named_parameters()}


def through_disk(directory: Path, net: nn.Module, optimizer: Optimizer) -> LoadedState:
    tensors, rest = optimizer_tensors(optimizer, names_of(net))
    store = store_in(directory)
    store.save(
        snapshot(1, model=net.state_dict(), optimizer=tensors, trainer={"optimizer": rest}), None
    )
    store.close()
    (report,) = store.reports()
    assert report.error is None
    return loaded_from(directory / "step-00000001")


def restore(net: nn.Module, optimizer: Optimizer, loaded: LoadedState) -> None:
    restore_network(net, loaded)
    restore_optimizer(optimizer, names_of(net), loaded.optimizer, loaded.trainer["optimizer"])


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        yield type(value)
        for item in value:
            yield from leaves(item)
    else:
        yield value


def assert_same_state(one: Optimizer, other: Optimizer) -> None:
    mine, its = list(leaves(one.state_dict())), list(leaves(other.state_dict()))
    assert len(mine) == len(its)
    for left, right in zip(mine, its, strict=True):
        if isinstance(left, Tensor):
            assert (left.dtype, left.shape, left.device, left.stride()) == (
                right.dtype,
                right.shape,
                right.device,
                right.stride(),
            )
            assert same_bits(left, right)
        else:
            assert type(left) is type(right)
            assert left == right


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("steps", [0, 3])
def test_an_optimizer_goes_on_as_if_nothing_had_happened(
    name: str, steps: int, tmp_path: Path
) -> None:
    build = BUILDS[name]
    net = network()
    optimizer = build(net)
    train(net, optimizer, 0, steps)
    loaded = through_disk(tmp_path, net, optimizer)
    other = network()
    resumed = build(other)
    train(other, resumed, 50, 51)  # whatever it held is replaced
    restore(other, resumed, loaded)
    assert_same_state(resumed, optimizer)
    train(net, optimizer, steps, steps + 3)
    train(other, resumed, steps, steps + 3)
    assert_same(other.state_dict(), net.state_dict())
    assert_same_state(resumed, optimizer)


def test_moments_keep_a_dtype_that_is_not_their_parameters(tmp_path: Path) -> None:
    net = network().bfloat16()
    optimizer = Adagrad(net.parameters())
    for values in optimizer.state.values():
        values["sum"] = torch.full_like(values["sum"], 1 / 3, dtype=torch.float32)
    loaded = through_disk(tmp_path, net, optimizer)
    other = Adagrad(net.parameters())
    restore(net, other, loaded)
    assert {values["sum"].dtype for values in other.state.values()} == {torch.float32}
    assert_same_state(other, optimizer)


def test_a_state_that_is_no_tensor_and_one_that_no_parameter_owns(tmp_path: Path) -> None:
    net = network()
    optimizer = SGD(net.parameters(), lr=0.1)
    first = next(net.parameters())
    optimizer.state[first] = {
        "history": [torch.ones(2), (torch.zeros(3), 0.1)],
        "nothing": None,
        "count": 3,
        "names": {"a": torch.tensor(True)},
    }
    optimizer.state["all"] = {"scale": torch.tensor(2.0), "label": "x"}
    loaded = through_disk(tmp_path, net, optimizer)
    other = SGD(net.parameters(), lr=0.1)
    restore(net, other, loaded)
    assert_same_state(other, optimizer)


def test_moments_get_their_parameters_strides() -> None:
    net = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    optimizer = Adam(net.parameters())
    net(torch.randn(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    tensors, rest = optimizer_tensors(optimizer, names_of(net))
    other = Adam(net.parameters())
    restore_optimizer(
        other,
        names_of(net),
        {
            key: tensor.clone(memory_format=torch.contiguous_format)
            for key, tensor in tensors.items()
        },
        rest,
    )
    assert_same_state(other, optimizer)


def test_a_schedule_goes_on_with_restored_groups(tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, Optimizer, OneCycleLR]:
        net = network()
        optimizer = Adam(net.parameters(), lr=torch.tensor(0.1))
        return net, optimizer, OneCycleLR(optimizer, 0.3, total_steps=9)

    net, optimizer, schedule = build()
    train(net, optimizer, 0, 1)
    schedule.step()
    other_net, other, other_schedule = build()
    restore(other_net, other, through_disk(tmp_path, net, optimizer))
    other_schedule.load_state_dict(schedule.state_dict())
    schedule.step()
    other_schedule.step()
    assert_same_state(other, optimizer)


def test_keys_are_by_state_and_parameter_name() -> None:
    net = network()
    optimizer = Adam(net.parameters())
    train(net, optimizer, 0, 1)
    tensors, rest = optimizer_tensors(optimizer, names_of(net))
    assert {"exp_avg/0.weight", "exp_avg_sq/2.weight", "step/1.bias"} < tensors.keys()
    assert rest["groups"][0]["params"] == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"]


class Extra(SGD):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "more": 1}


def test_what_cannot_be_stored_is_refused() -> None:
    net = network()
    with pytest.raises(CheckpointError, match=r"Extra also keeps \['more'\]"):
        optimizer_tensors(Extra(net.parameters()), names_of(net))
    with pytest.raises(
        CheckpointError,
        match=r"group 0 has a parameter of shape \(4, 5\) that is not the network's",
    ):
        optimizer_tensors(SGD(net.parameters()), {})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (plain(AdamW), "the checkpoint has the state of Adam, this is AdamW"),
        (
            lambda net: Adam([{"params": [parameter]} for parameter in net.parameters()]),
            "1 parameter groups in the checkpoint, 5 here",
        ),
        (
            lambda net: Adam(matrices(net)),
            r"parameter group 0: not in the checkpoint: nothing; only in the checkpoint: 0\.bias, "
            r"1\.bias, 1\.weight",
        ),
        (
            lambda net: Adam([{"params": net.parameters(), "new": 1}]),
            r"the checkpoint lacks \['new'\]",
        ),
    ],
)
def test_another_optimizer_is_refused_and_left_as_it_is(build: Build, message: str) -> None:
    net = network()
    optimizer = Adam(net.parameters(), lr=0.5)
    train(net, optimizer, 0, 1)
    tensors, rest = optimizer_tensors(optimizer, names_of(net))
    other = build(net)
    with pytest.raises(CheckpointError, match=message):
        restore_optimizer(other, names_of(net), tensors, rest)
    assert not other.state
    assert other.param_groups[0]["lr"] == 0.001


def test_a_missing_or_unknown_moment_is_refused() -> None:
    net = network()
    optimizer = Adam(net.parameters())
    train(net, optimizer, 0, 1)
    tensors, rest = optimizer_tensors(optimizer, names_of(net))
    with pytest.raises(
        CheckpointError,
        match=r"not in the checkpoint: exp_avg/0\.bias; only in the checkpoint: more",
    ):
        restore_optimizer(
            optimizer,
            names_of(net),
            {key: value for key, value in tensors.items() if key != "exp_avg/0.bias"}
            | {"more": torch.ones(1)},
            rest,
        )


class Tied(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def loaded_of(net: nn.Module, tmp_path: Path) -> LoadedState:
    return through_disk(tmp_path, net, SGD(net.parameters(), lr=0.1))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    net = Tied()
    loaded = loaded_of(net, tmp_path)
    assert list(loaded.manifest.model) == ["embed.weight"]
    assert loaded.manifest.aliases == {"head.weight": "embed.weight"}
    other = Tied()
    restore_network(other, loaded)
    assert other.head.weight is other.embed.weight
    assert_same(other.state_dict(), net.state_dict())
    restore_network(Tied(tied=False), loaded)


def test_weights_that_differ_are_not_put_into_tied_ones(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"head\.weight is tied to embed\.weight, and in the checkpoint they differ",
    ):
        restore_network(Tied(), loaded_of(Tied(tied=False), tmp_path))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            nn.Linear(5, 4, bias=False),
            "not in the checkpoint: nothing; only in the checkpoint: bias",
        ),
        (
            nn.Sequential(nn.Linear(5, 4)),
            r"not in the checkpoint: 0\.bias, 0\.weight; only in the checkpoint: bias, weight",
        ),
        (
            nn.Linear(4, 4),
            r"weight is torch\.float32 \(4, 4\), in the checkpoint torch\.float32 \(4, 5\)",
        ),
        (
            nn.Linear(5, 4).double(),
            r"weight is torch\.float64 \(4, 5\), in the checkpoint torch\.float32 \(4, 5\)",
        ),
    ],
)
def test_another_network_is_refused_and_left_as_it_is(
    other: nn.Module, message: str, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        restore_network(other, loaded_of(nn.Linear(5, 4), tmp_path))
    assert_same(other.state_dict(), before)


def test_a_network_keeps_its_own_memory(tmp_path: Path) -> None:
    net = network()
    loaded = loaded_of(net, tmp_path)
    other = network()
    places = [tensor.data_ptr() for tensor in other.state_dict().values()]
    restore_network(other, loaded)
    assert [tensor.data_ptr() for tensor in other.state_dict().values()] == places
