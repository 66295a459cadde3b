"""Components by dotted path."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from harness import components
from harness.errors import ConfigError, DataError

MODULE = """
import os
from abc import ABC, abstractmethod
from harness.errors import DataError

CALLS = []
NUMBER = 3

class Net:
    def __init__(self, width, depth=2, *, bias=True):
        CALLS.append(width)
        self.width, self.depth, self.bias = width, depth, bias

    @classmethod
    def small(cls, depth=1):
        return cls(1, depth)

class Anything:
    def __init__(self, **arguments):
        self.arguments = arguments

class Optimizer:
    def __init__(self, params, lr=0.1):
        self.params, self.lr = params, lr

class Unfinished(ABC):
    @abstractmethod
    def run(self): ...

def by_position(value, /): ...

def refuse(value):
    raise ValueError(f"{value} is too much")

def no_data():
    raise DataError("no such file: a.csv.")
"""


@pytest.fixture(scope="module", autouse=True)
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "parts_pkg").mkdir()
    (folder / "parts_pkg" / "__init__.py").write_text("def nets(): ...\n")
    (folder / "parts_pkg" / "nets.py").write_text(MODULE)
    (folder / "parts_pkg" / "needy.py").write_text("import not_there_at_all\n")
    (folder / "parts_pkg" / "broken.py").write_text("1 / 0\n")
    (folder / "parts_pkg" / "script.py").write_text("raise SystemExit(3)\n")
    (folder / "parts_pkg" / "layers.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    try:
        import parts_pkg.layers as parts

        yield parts
    finally:
        sys.path.remove(str(folder))


def layers(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"parts_pkg.layers.{name}", **arguments}


# -- building


def test_a_component_is_its_target_called_with_its_arguments(parts: Any) -> None:
    net = components.build(layers("Net", width=3, bias=False), "network")
    assert isinstance(net, parts.Net)
    assert (net.width, net.depth, net.bias) == (3, 2, False)


def test_a_colon_says_where_the_module_ends(parts: Any) -> None:
    assert isinstance(
        components.build({"_target_": "parts_pkg.layers:Net", "width": 3}, "network"), parts.Net
    )
    assert (
        components.build({"_target_": "parts_pkg.layers:Net.small", "depth": 4}, "network").depth
        == 4
    )
    assert components.build({"_target_": "parts_pkg.layers.Net.small"}, "network").width == 1
    # here the package has an attribute of the module's name, which only the colon tells apart
    assert components.build({"_target_": "parts_pkg.nets:Anything"}, "network").arguments == {}


def test_components_are_built_inside_arguments_lists_and_mappings(parts: Any) -> None:
    inner = layers("Net", width=1)
    built = components.build(
        layers("Anything", one=inner, several=[inner, 2], named={"a": inner, "b": None}), "network"
    ).arguments
    assert isinstance(built["one"], parts.Net)
    assert isinstance(built["several"][0], parts.Net)
    assert built["several"][1] == 2
    assert isinstance(built["named"]["a"], parts.Net)
    assert built["named"]["b"] is None


def test_what_the_harness_gives_reaches_the_outermost_component_alone() -> None:
    optimizer = components.build(
        layers("Optimizer", lr=layers("Net", width=1)), "optimizer", params=[1, 2]
    )
    assert optimizer.params == [1, 2]
    assert optimizer.lr.width == 1


def test_building_leaves_the_spec_as_it_was() -> None:
    spec = layers("Anything", values=[1, {"a": 2}])
    components.build(spec, "network").arguments["values"][1]["a"] = 3
    assert spec == layers("Anything", values=[1, {"a": 2}])


def test_what_a_target_raises_names_the_place_and_the_component() -> None:
    with pytest.raises(ConfigError) as caught:
        components.build(layers("Anything", inner=[layers("refuse", value=9)]), "network")
    assert str(caught.value).startswith(
        "network.inner[0]: parts_pkg.layers.refuse cannot be built: ValueError: 9 is too much ("
    )
    assert "layers.py:" in str(caught.value)


def test_an_error_of_ours_keeps_its_type_and_gains_the_place() -> None:
    with pytest.raises(DataError, match=r"^data\.train\.source: no such file: a\.csv\.$"):
        components.build(layers("no_data"), "data.train.source")


def test_building_what_does_not_fit_says_all_that_does_not() -> None:
    with pytest.raises(ConfigError) as caught:
        components.build(layers("Net", wdith=3), "network")
    assert str(caught.value).splitlines() == [
        "network.wdith: parts_pkg.layers.Net has no argument of this name. Did you mean width?",
        "network: parts_pkg.layers.Net needs width. Give it next to _target_.",
    ]


# -- checking


def test_checking_calls_nothing(parts: Any) -> None:
    parts.CALLS.clear()
    assert components.check(layers("Anything", inner=layers("Net", width=1)), "network") == []
    assert parts.CALLS == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_pakage.Net", "there is no module no_such_pakage."),
        ("parts_pgk.layers.Net", "there is no module parts_pgk. Did you mean parts_pkg?"),
        ("parts_pkg.layrs.Net", "the module parts_pkg has no layrs. Did you mean layers?"),
        ("parts_pkg.layrs:Net", "the module parts_pkg has no layrs. Did you mean layers?"),
        ("parts_pkg.layers.Nett", "the module parts_pkg.layers has no Nett. Did you mean Net?"),
        (
            "parts_pkg.layers:anything",
            "the module parts_pkg.layers has no anything. Did you mean Anything?",
        ),
        (
            "parts_pkg.layers.Net.smal",
            "the type parts_pkg.layers.Net has no smal. Did you mean small?",
        ),
        (
            "parts_pkg.needy.Net",
            "parts_pkg.needy cannot be imported: it needs not_there_at_all, which is not "
            "installed.",
        ),
        (
            "parts_pkg.broken.Net",
            "parts_pkg.broken cannot be imported: ZeroDivisionError: division by zero.",
        ),
        ("parts_pkg.script.Net", "parts_pkg.script cannot be imported: SystemExit: 3."),
        ("parts_pkg.layers", "parts_pkg.layers is a module, not a class or function."),
        (
            "parts_pkg.layers.NUMBER",
            "parts_pkg.layers.NUMBER is a value of type int, not a class or function.",
        ),
        ("parts_pkg.layers.Unfinished", "parts_pkg.layers.Unfinished is abstract"),
        (
            "parts_pkg.layers.by_position",
            "parts_pkg.layers.by_position takes value only by position.",
        ),
        ("Net", "'Net' is not a dotted path. Write pkg.mod.Name or pkg.mod:Name."),
        ("parts_pkg..Net", "'parts_pkg..Net' is not a dotted path."),
        ("parts_pkg:layers:Net", "'parts_pkg:layers:Net' is not a dotted path."),
        ("parts_pkg.layers.Net()", "'parts_pkg.layers.Net()' is not a dotted path."),
        (3, "3 is not a dotted path."),
        (None, "None is not a dotted path."),
    ],
)
def test_a_target_that_cannot_be_called_is_named_with_the_part_that_is_wrong(
    target: Any, message: str
) -> None:
    (problem,) = components.check({"_target_": target}, "network")
    assert problem.startswith(f"network._target_: {message}")


@pytest.mark.parametrize("spec", [None, 3, "parts_pkg.layers.Net", [], {}, {"width": 3}])
def test_what_has_no_target_is_no_component(spec: Any) -> None:
    (problem,) = components.check(spec, "network")
    assert problem == (
        f"network: {spec!r} is not a component. Give a mapping with _target_: pkg.mod.Name and "
        "its arguments."
    )


def test_arguments_must_bind_to_the_signature() -> None:
    assert components.check(layers("Net", width=1, depth=1, bias=False), "network") == []
    assert components.check(layers("Anything", whatever=1), "network") == []
    assert components.check(layers("Net"), "network") == [
        "network: parts_pkg.layers.Net needs width. Give it next to _target_."
    ]
    assert components.check(layers("Net", width=1, xyz=2), "network") == [
        "network.xyz: parts_pkg.layers.Net has no argument of this name. It takes bias, depth, "
        "width."
    ]


def test_special_keys_other_than_target_are_refused_even_by_what_takes_anything() -> None:
    (problem,) = components.check(layers("Anything", _partial_=True), "network")
    assert problem.startswith(
        "network._partial_: parts_pkg.layers.Anything has no argument of this name."
    )
    (problem,) = components.check(layers("Anything", inner={"_targt_": "x"}), "network")
    assert problem == "network.inner._targt_: no such special key. Did you mean _target_?"


@pytest.mark.parametrize("name", ["target", "targets", "targe", "targetz"])
def test_a_guess_at_a_slip_is_a_hint_beside_a_mistake_and_no_refusal(name: str) -> None:
    named = layers("Anything", inner={name: "label"})
    assert components.check(named, "network") == []
    assert components.build(named, "network") is not None
    wrong = {"_target_": "torch.nn.Linear", "in_features": {name: "x"}, "out_features": 2}
    assert components.check(wrong, "network") == []
    with pytest.raises(
        ConfigError, match=rf"Is network\.in_features\.{name} meant to be _target_\?"
    ):
        components.build(wrong, "network")


def test_nested_components_are_checked_with_their_own_place() -> None:
    assert components.check(layers("Anything", a=[{"b": layers("Net")}]), "network") == [
        "network.a[0].b: parts_pkg.layers.Net needs width. Give it next to _target_."
    ]


def test_what_the_harness_gives_must_be_taken_and_not_given_twice() -> None:
    assert components.check(layers("Optimizer", lr=0.1), "optimizer", "params") == []
    assert components.check(layers("Optimizer", params=1), "optimizer", "params") == [
        "optimizer.params: the harness passes this argument to parts_pkg.layers.Optimizer itself. "
        "Remove it."
    ]
    assert components.check(layers("Net", width=1), "optimizer", "params") == [
        "optimizer._target_: parts_pkg.layers.Net takes no argument params, which the harness "
        "passes here. Use something that does."
    ]


def test_torch_components_are_checked_by_their_own_signatures() -> None:
    assert (
        components.check({"_target_": "torch.optim.AdamW", "lr": 1e-3}, "optimizer", "params") == []
    )
    assert (
        components.check(
            {"_target_": "torch.nn:Linear", "in_features": 1, "out_features": 2}, "network"
        )
        == []
    )
    (problem,) = components.check({"_target_": "torch.optim.adamW"}, "optimizer", "params")
    assert problem == "optimizer._target_: the module torch.optim has no adamW. Did you mean AdamW?"
    (problem,) = components.check({"_target_": "torch.optim.adamw"}, "optimizer", "params")
    assert problem == (
        "optimizer._target_: torch.optim.adamw is a module, not a class or function. Did you "
        "mean torch.optim.adamw.AdamW?"
    )


def test_a_text_where_torch_takes_a_number_is_told_by_its_key() -> None:
    """Known: "'<=' not supported between instances of 'float' and 'str'", for `lr: 1e-5`, which is
    a text in YAML 1.1 (ALBEF 128, LlamaFactory 4014).
    """
    spec = {"_target_": "torch.optim.AdamW", "lr": "1e-5", "fused": "yes", "betas": [0.9, 0.99]}
    assert components.check(spec, "optimizer", "params") == [
        f"optimizer.{key}: {value!r} is no number, and torch.optim.AdamW takes one here. "
        "Give a number."
        for key, value in (("lr", "1e-5"), ("fused", "yes"))
    ]
    spec = {"_target_": "torch.optim.Muon", "adjust_lr_fn": "original", "lr": 1}
    assert components.check(spec, "optimizer", "params") == []
    # A list of numbers is no number
    assert components.check({"_target_": "harness.networks.Mlp", "dims": "64,32"}, "network") == []
