"""Networks: shapes, gradients, and what their sources say of them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness import components
from harness.errors import ConfigError
from harness.networks.attention import Gpt, TransformerEncoder
from harness.networks.blocks import Mlp, Norm, norm_layer
from harness.networks.clips import ClipNet
from harness.networks.combine import Chain, Fuse, Parallel
from harness.networks.images import ConvNet, ResNet
from harness.networks.series import Recurrent, Tcn

NORMS: list[Norm] = ["none", "batch", "group", "layer"]
IMAGES, SERIES, CLIPS = (
    torch.randn(4, 3, 12, 10),
    torch.randn(4, 3, 17),
    torch.randn(4, 3, 6, 12, 10),
)

ENCODERS: list[tuple[Callable[[int | None], nn.Module], Tensor, int]] = [
    *[
        (lambda out, norm=norm: ConvNet(3, [8, 12], out, depth=2, norm=norm), IMAGES, 12)
        for norm in NORMS
    ],
    *[
        (lambda out, norm=norm: ResNet(3, [8, 12, 16], out, depth=1, norm=norm), IMAGES, 16)
        for norm in NORMS
    ],
    *[
        (lambda out, norm=norm: Tcn(3, [8, 8, 12], out, norm=norm, dropout=0.1), SERIES, 12)
        for norm in NORMS
    ],
    (lambda out: Recurrent(3, 6, out), SERIES, 6),
    (
        lambda out: Recurrent(3, 6, out, cell="lstm", num_layers=2, both_ways=True, dropout=0.1),
        SERIES,
        12,
    ),
    (
        lambda out: TransformerEncoder(3, 8, out, max_length=20, depth=2, num_heads=2, dropout=0.1),
        SERIES,
        8,
    ),
    (lambda out: ClipNet(3, [8, 16], out), CLIPS, 16),
    (lambda out: ClipNet(3, [8, 16], out, factorised=False), CLIPS, 16),
]


@pytest.mark.parametrize(("make", "x", "features"), ENCODERS)
def test_a_network_gives_its_outputs_or_its_features_and_trains_every_parameter(
    make: Any, x: Tensor, features: int
) -> None:
    assert make(None)(x).shape == (4, features)
    network = make(5)
    assert network(x).shape == (4, 5)
    network(x).square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in network.parameters()
    )


@pytest.mark.parametrize(("make", "x"), [(make, x) for make, x, _ in ENCODERS])
def test_in_an_evaluation_a_sample_is_judged_by_itself(make: Any, x: Tensor) -> None:
    network = make(5).eval()
    with torch.no_grad():
        assert torch.allclose(network(x)[1:2], network(x[1:2]), atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(6, 12), (6, 12, 5), (6, 12, 5, 4), (6, 12, 2, 3, 4)])
def test_a_norm_takes_any_number_of_axes(norm: Norm, shape: tuple[int, ...]) -> None:
    assert norm_layer(norm, 12, len(shape) - 2)(torch.randn(shape)).shape == shape


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("channels", [7, 12, 32])
def test_group_and_layer_norms_look_at_one_sample_at_a_time(norm: Norm, channels: int) -> None:
    layer, x = norm_layer(norm, channels, 1).train(), torch.randn(5, channels, 9)
    assert torch.allclose(layer(x)[2:3], layer(x[2:3]))


def test_a_perceptron_flattens_and_is_named_plainly() -> None:
    network = Mlp([64, 32, 16, 10], activation="GELU", dropout=0.2, norm="layer")
    assert network(torch.randn(3, 1, 8, 8)).shape == (3, 10)
    assert (
        sum(parameter.numel() for parameter in Mlp([64, 32, 10]).parameters())
        == 64 * 32 + 32 + 32 * 10 + 10
    )
    assert [type(layer).__name__ for layer in Mlp([4, 3, 2])] == [
        "Flatten",
        "Linear",
        "ReLU",
        "Linear",
    ]
    assert Mlp([4, 2])(torch.zeros(2, 4)).shape == (2, 2)


def test_places_go_to_a_head_that_takes_them_apart() -> None:
    network = Chain(encoder=ConvNet(3, [4, 8], None, pool=False), head=Mlp([8 * 3 * 2, 5]))
    assert network[0](IMAGES).shape == (4, 8, 3, 2)
    assert network(IMAGES).shape == (4, 5)


def test_resnet_20_has_the_size_of_its_paper() -> None:
    network = ResNet(3, [16, 32, 64], 10, depth=3, norm="batch")
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert 0.27e6 < sum(parameter.numel() for parameter in network.parameters()) < 0.28e6
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len([layer for layer in layers if getattr(layer, "kernel_size", (3,))[0] == 3]) == 20


def test_a_factorised_clip_network_has_about_as_many_parameters() -> None:
    plain, factorised = (
        sum(p.numel() for p in ClipNet(3, [32, 64, 128], 10, factorised=one).parameters())
        for one in (False, True)
    )
    assert factorised == pytest.approx(plain, rel=0.05)


def test_a_recurrent_network_reads_to_the_end_in_both_directions() -> None:
    network, x = Recurrent(3, 4, None, both_ways=True), torch.randn(2, 3, 9)
    first, last = x.clone(), x.clone()
    first[:, :, 0] += 1
    last[:, :, -1] += 1
    for changed in (first, last):
        assert (network(changed) != network(x)).any(0).all()


def test_a_language_model_does_not_look_ahead() -> None:
    network = Gpt(vocabulary=11, context=8, dim=12, depth=2, num_heads=3).eval()
    tokens = torch.randint(0, 11, (2, 8))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    logits = network(tokens)
    assert logits.shape == (2, 8, 11)
    assert torch.allclose(logits[:, :5], network(changed)[:, :5], atol=1e-6)
    assert not torch.allclose(logits[:, 5:], network(changed)[:, 5:], atol=1e-3)


def test_a_language_model_begins_as_gpt_2_does() -> None:
    network = Gpt(vocabulary=101, context=64, dim=96, depth=8, num_heads=4)
    assert network.head.weight is network.embedding.weight
    assert Gpt(5, 4, 8, 1, 2, tied=False).head.weight.shape == (5, 8)
    weights = dict(network.named_parameters())
    assert float(weights["embedding.weight"].detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(weights["blocks.0.attention_out.weight"].detach().std()) == pytest.approx(
        0.02 / math.sqrt(16), rel=0.05
    )
    assert float(weights["blocks.0.mlp_out.weight"].detach().std()) == pytest.approx(
        0.02 / math.sqrt(16), rel=0.05
    )
    assert all(not parameter.any() for name, parameter in weights.items() if name.endswith("bias"))
    loss = nn.functional.cross_entropy(
        network(torch.randint(0, 101, (4, 64))).flatten(0, 1), torch.randint(0, 101, (256,))
    )
    assert float(loss.detach()) == pytest.approx(math.log(101), rel=0.05)


def test_a_chain_names_its_parts_parameters() -> None:
    chain = Chain(encoder=ConvNet(1, [4], None), head=nn.Linear(4, 3))
    assert chain(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert {name.split(".")[0] for name, _ in chain.named_parameters()} == {"encoder", "head"}


@pytest.mark.parametrize(
    ("how", "features", "width"), [("concat", None, 14), ("sum", None, 7), ("attend", 7, 7)]
)
def test_inputs_meet(how: Any, features: int | None, width: int) -> None:
    encoders = {"image": ConvNet(3, [4], 7), "sound": Tcn(3, [4], 7)}
    network = Fuse(encoders, head=nn.Linear(width, 5), how=how, features=features)
    outputs = network({"image": IMAGES, "sound": SERIES})
    assert outputs.shape == (4, 5)
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_attention_weights_sum_to_one() -> None:
    network = Fuse({"a": nn.Identity(), "b": nn.Identity()}, how="attend", features=6)
    same = torch.randn(3, 6)
    assert torch.allclose(network({"a": same, "b": same}), same, atol=1e-6)


def test_heads_side_by_side_give_a_dict() -> None:
    outputs = Chain(
        encoder=Mlp([4, 6]), heads=Parallel(kind=nn.Linear(6, 3), size=nn.Linear(6, 1))
    )(torch.randn(2, 4))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "kind": (2, 3),
        "size": (2, 1),
    }


def test_networks_are_put_together_in_a_config() -> None:
    spec = {
        "_target_": "harness.networks.Chain",
        "fused": {
            "_target_": "harness.networks.Fuse",
            "encoders": {
                "image": {
                    "_target_": "harness.networks.ResNet",
                    "in_channels": 3,
                    "widths": [4, 8],
                    "depth": 1,
                    "out_features": None,
                },
                "sound": {
                    "_target_": "harness.networks.Chain",
                    "patches": {
                        "_target_": "torch.nn.Conv1d",
                        "in_channels": 3,
                        "out_channels": 6,
                        "kernel_size": 4,
                        "stride": 4,
                    },
                    "encoder": {
                        "_target_": "harness.networks.TransformerEncoder",
                        "in_channels": 6,
                        "dim": 8,
                        "max_length": 4,
                        "out_features": None,
                    },
                },
            },
            "how": "sum",
        },
        "heads": {
            "_target_": "harness.networks.Parallel",
            "kind": {"_target_": "harness.networks.Mlp", "dims": [8, 4, 3]},
        },
    }
    assert components.check(spec, "network") == []
    assert components.build(spec, "network")({"image": IMAGES, "sound": SERIES})["kind"].shape == (
        4,
        3,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mlp([4]), r"^dims: \[4\]: give at least the numbers of inputs and outputs"),
        (
            lambda: Mlp([4, 3, 2], activation="Relu"),
            r"^activation: 'Relu' is not an activation of torch\.nn\. Give a name such as ReLU",
        ),
        (
            lambda: Mlp([4, 3, 2], activation="Linear"),
            r"^activation: 'Linear' is not an activation",
        ),
        (
            lambda: ConvNet(1, [4], 2, norm="instance"),
            r"^norm: 'instance' is not one of none, batch, group, layer",
        ),  # type: ignore[arg-type]
        (lambda: ConvNet(1, [4], 2, pool=False), r"^pool: false gives a map, not features"),
        (lambda: Tcn(1, [4], 2, kernel=2), r"^kernel: 2: must be odd"),
        (lambda: Recurrent(1, 4, 2, cell="rnn"), r"^cell: 'rnn' is neither gru nor lstm"),  # type: ignore[arg-type]
        (lambda: Gpt(5, 4, 10, 1, 4), r"^num_heads: 4: dim 10"),
        (lambda: Fuse({}), r"^encoders: none"),
        (
            lambda: Fuse({"a": nn.Identity()}, how="max"),
            r"^how: 'max' is not one of concat, sum, attend",
        ),  # type: ignore[arg-type]
        (
            lambda: Fuse({"a": nn.Identity()}, how="attend"),
            r"^features: the number of features of each encoder is for how: attend",
        ),
        (lambda: Chain(), r"a Chain needs at least one module"),
        (lambda: Parallel(), r"a Parallel needs at least one head"),
    ],
)
def test_a_mistake_in_a_networks_settings_is_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
