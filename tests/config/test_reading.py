"""Files, bases, overrides and interpolation: one tree that knows where each value came from."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.document import Document, to_yaml
from harness.config.reading import MAX_BYTES, Draft, read
from harness.errors import ConfigError
from tests.config.test_document import SCALARS, VALUES, assert_same

PATH = Path("x.yaml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reading(tree: dict[Any, Any], *overrides: str) -> Draft:
    found = Draft(PATH, tree)
    for text in overrides:
        found.override(text)
    return found


def overridden(tree: dict[Any, Any], *overrides: str) -> dict[Any, Any]:
    found = reading(tree, *overrides)
    assert found.mistakes == []
    return found.tree


def messages(found: Draft) -> list[str]:
    return [str(mistake) for mistake in found.mistakes]


# -- files


def test_a_file_is_read_with_the_place_of_each_value(folder: Path) -> None:
    Path("a.yaml").write_text("run:\n  seed: 7\nlog: {trace: true}\n")
    found = read(Path("a.yaml"))
    assert found.tree == {"run": {"seed": 7}, "log": {"trace": True}}
    assert found.origin(("run", "seed")) == "a.yaml:2"
    assert found.origin(("log", "trace")) == "a.yaml:3"
    assert found.origin(("log", "every", "steps")) == "a.yaml:3"  # the innermost that is there
    assert found.origin(("nowhere",)) == "a.yaml"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.yaml: cannot be read: No such file or directory. Give the path of a YAML file."),
        (b"", "a.yaml: empty, not a mapping of sections."),
        (b"- 1", "a.yaml: a list, not a mapping of sections."),
        (b"hello", "a.yaml: a str, not a mapping of sections."),
        (b"run: {\nx", "a.yaml:3: not valid YAML: "),
        (b"run: \xff", "a.yaml: not UTF-8 text: "),
        (b"#" * (MAX_BYTES + 1), "a.yaml: larger than 1,048,576 bytes. Put data into"),
    ],
)
def test_a_file_that_is_no_config_is_refused(
    folder: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        Path("a.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(Path("a.yaml"))
    assert str(caught.value).startswith(message)


def test_a_directory_is_no_file(folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read(folder)


# -- bases


def test_a_file_lies_over_its_bases_which_are_relative_to_it(folder: Path) -> None:
    Path("shared").mkdir()
    Path("shared/deep.yaml").write_text("run: {seed: 1, name: deep}\nlog: {trace: true}\n")
    Path("shared/base.yaml").write_text("base: deep.yaml\nrun: {seed: 2}\n")
    Path("a.yaml").write_text("base: shared/base.yaml\nrun: {dir: out}\n")
    found = read(Path("a.yaml"))
    assert found.tree == {"run": {"seed": 2, "name": "deep", "dir": "out"}, "log": {"trace": True}}
    assert found.origin(("run", "name")) == "shared/deep.yaml:1"
    assert found.origin(("run", "seed")) == "shared/base.yaml:2"
    assert found.origin(("run", "dir")) == "a.yaml:2"


def test_a_cycle_of_bases_is_refused(folder: Path) -> None:
    Path("a.yaml").write_text("base: b.yaml\n")
    Path("b.yaml").write_text("base: ./a.yaml\n")
    with pytest.raises(
        ConfigError,
        match=(
            r"^a\.yaml: base: a\.yaml -> b\.yaml -> a\.yaml is a cycle\. Remove one of the "
            r"bases\.$"
        ),
    ):
        read(Path("a.yaml"))


def test_a_base_that_is_missing_is_said_with_the_file_that_asked(folder: Path) -> None:
    Path("a.yaml").write_text("base: b.yaml\n")
    with pytest.raises(
        ConfigError, match=r"^b\.yaml \(base of a\.yaml\): cannot be read: No such file"
    ):
        read(Path("a.yaml"))


@pytest.mark.parametrize("base", ["3", "[b.yaml]", "''", "{a: b}"])
def test_a_base_is_the_path_of_one_file(folder: Path, base: str) -> None:
    Path("a.yaml").write_text(f"base: {base}\n")
    with pytest.raises(ConfigError, match=r"^a\.yaml:1: base: .* is not the path of a file"):
        read(Path("a.yaml"))


def test_no_base_is_no_base(folder: Path) -> None:
    Path("a.yaml").write_text("base: null\nrun: {seed: 1}\n")
    assert read(Path("a.yaml")).tree == {"run": {"seed": 1}}


@pytest.mark.parametrize(
    ("below", "above", "merged"),
    [
        ("{a: {b: 1, c: 2}}", "{a: {c: 3}}", {"a": {"b": 1, "c": 3}}),
        ("{a: [1, 2]}", "{a: [3]}", {"a": [3]}),
        ("{a: {b: 1}}", "{a: null}", {"a": None}),
        ("{a: null}", "{a: {b: 1}}", {"a": {"b": 1}}),
        ("{every: {epochs: 1}}", "{every: {steps: 5}}", {"every": {"steps": 5}}),
        (
            "{o: {_target_: m.A, lr: 1, x: 2}}",
            "{o: {lr: 3}}",
            {"o": {"_target_": "m.A", "lr": 3, "x": 2}},
        ),
        (
            "{o: {_target_: m.A, lr: 1, x: 2}}",
            "{o: {_target_: 'm:A', lr: 3}}",
            {"o": {"_target_": "m:A", "lr": 3, "x": 2}},
        ),
        (
            "{o: {_target_: m.A, lr: 1, x: 2}}",
            "{o: {_target_: m.B, lr: 3}}",
            {"o": {"_target_": "m.B", "lr": 3}},
        ),
    ],
)
def test_sections_are_merged_and_all_else_is_replaced(
    folder: Path, below: str, above: str, merged: dict[str, Any]
) -> None:
    Path("b.yaml").write_text(below)
    Path("a.yaml").write_text(above[:-1] + ", base: b.yaml}")
    assert read(Path("a.yaml")).tree == merged


# -- overrides


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("run.seed=8", {"run": {"seed": 8}, "list": [{"a": 1}, 2]}),
        ("run.lr=1e-3", {"run": {"seed": 7, "lr": 0.001}, "list": [{"a": 1}, 2]}),
        (
            "new.deep.key=x",
            {"run": {"seed": 7}, "list": [{"a": 1}, 2], "new": {"deep": {"key": "x"}}},
        ),
        ("list[0].a=5", {"run": {"seed": 7}, "list": [{"a": 5}, 2]}),
        ("list.0.a=5", {"run": {"seed": 7}, "list": [{"a": 5}, 2]}),
        ("list[1]=[3, {b: 1e3}]", {"run": {"seed": 7}, "list": [{"a": 1}, [3, {"b": 1000.0}]]}),
        ("run={name: x}", {"run": {"name": "x"}, "list": [{"a": 1}, 2]}),
        ("run.name=a=b", {"run": {"seed": 7, "name": "a=b"}, "list": [{"a": 1}, 2]}),
        ("run.name=", {"run": {"seed": 7, "name": None}, "list": [{"a": 1}, 2]}),
        ("run=null", {"run": None, "list": [{"a": 1}, 2]}),
        (
            "run.val/loss.at_most=0.5",
            {"run": {"seed": 7, "val/loss": {"at_most": 0.5}}, "list": [{"a": 1}, 2]},
        ),
        ("run.name='a: # b'", {"run": {"seed": 7, "name": "a: # b"}, "list": [{"a": 1}, 2]}),
    ],
)
def test_an_override_sets_one_value(text: str, tree: dict[str, Any]) -> None:
    assert overridden({"run": {"seed": 7}, "list": [{"a": 1}, 2]}, text) == tree


def test_a_quantity_is_set_as_a_whole_and_the_last_override_counts() -> None:
    assert overridden({"every": {"epochs": 1}}, "every.steps=5") == {"every": {"steps": 5}}
    assert overridden({"run": {"every": {"epochs": 1}}}, "run.every.steps=5") == {
        "run": {"every": {"steps": 5}}
    }
    assert overridden({"run": {"seed": 1}}, "run.seed=2", "run.seed=3") == {"run": {"seed": 3}}


def test_numbers_as_keys_are_found() -> None:
    assert overridden({"names": {1: "a"}}, "names.1=b") == {"names": {1: "b"}}


def test_each_mistake_in_an_override_is_its_own_line() -> None:
    said = messages(reading({}, "a=[{b: 1, b: 2}, 010]"))
    assert len(said) == 2
    assert said[0].startswith("override a=[{b: 1, b: 2}, 010]: a[0].b: duplicate key")
    assert said[1].startswith("override a=[{b: 1, b: 2}, 010]: a[1]: 010 is octal")


def test_an_overridden_value_knows_its_override() -> None:
    found = reading({"run": {"seed": 7}}, "run.seed=8", "log.every.steps=3")
    assert found.origin(("run", "seed")) == "override run.seed=8"
    assert found.origin(("log",)) == "override log.every.steps=3"
    found = reading({"list": [{"a": 1}]}, "list.0.a=2")
    assert found.origin(("list", 0, "a")) == "override list.0.a=2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run.seed", "override run.seed: not of the form key=value. Write run.seed=VALUE."),
        ("--run.seed=3", "override --run.seed=3: not of the form key=value. Write run.seed=VALUE."),
        ("+run.seed=3", "override +run.seed=3: not of the form key=value. Write run.seed=VALUE."),
        ("=3", "override =3: not of the form key=value. Write e.g. run.seed=7."),
        ("", "override : not of the form key=value. Write e.g. run.seed=7."),
        ("run..seed=3", "override run..seed=3: not of the form key=value."),
        (".run=3", "override .run=3: not of the form key=value."),
        ("[0].a=3", "override [0].a=3: not of the form key=value."),
        ("list[x]=3", "override list[x]=3: not of the form key=value."),
        (
            "base=b.yaml",
            "override base=b.yaml: base: a base cannot be set by an override.",
        ),
        ("list[2]=3", "override list[2]=3: list[2]: list is a list and its last item is [1]."),
        ("list.x=3", "override list.x=3: list.x: list is a list and its last item is [1]."),
        ("empty[0]=3", "override empty[0]=3: empty[0]: empty is a list and it is empty."),
        (
            "run.seed.x=3",
            "override run.seed.x=3: run.seed.x: run.seed is 7 and has no keys. Set it as a whole.",
        ),
        ("run.seed=[", "override run.seed=[: run.seed: not valid YAML: "),
        (
            "run.seed={a: 1, a: 2}",
            "override run.seed={a: 1, a: 2}: run.seed.a: duplicate key",
        ),
        ("run.seed=010", "override run.seed=010: run.seed: 010 is octal in YAML 1.1"),
        (
            "run.name=#3",
            "override run.name=#3: run.name: the text after # is not read. Put the whole value in "
            "quotes.",
        ),
        (
            "run.name=fix #3",
            "override run.name=fix #3: run.name: the text after # is not read.",
        ),
    ],
)
def test_an_override_that_cannot_be_taken_is_said_and_changes_nothing(
    text: str, message: str
) -> None:
    found = reading({"run": {"seed": 7}, "list": [1, 2], "empty": []}, text)
    (said,) = messages(found)
    assert said.startswith(message)
    assert found.tree == {"run": {"seed": 7}, "list": [1, 2], "empty": []}


@given(
    st.floats()
    | st.integers()
    | st.floats().map("{:e}".format)
    | st.sampled_from(["no", "on", "~", "010", "1_000", "1e-3", "[1, 1e3]", "{a: no}"])
)
def test_overrides_parse_like_yaml_in_a_file(written: Any) -> None:
    text = str(written)
    document = Document()
    wanted = document.read(f"value: {text}")["value"]
    found = reading({}, f"value={text}")
    assert bool(found.mistakes) == bool(document.mistakes)
    if not found.mistakes:
        assert_same(found.tree["value"], wanted)


@given(SCALARS)
def test_any_value_can_be_given_by_an_override(value: Any) -> None:
    text = to_yaml([value]).removeprefix("- ").removesuffix("\n")
    assert_same(overridden({}, f"value={text}")["value"], value)


# -- interpolation


def interpolated(tree: dict[Any, Any], *sections: str) -> Draft:
    found = Draft(PATH, tree)
    found.interpolate(sections or None)
    return found


def test_an_interpolation_is_the_value_it_names_with_its_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLACE", "/data")
    tree = {
        "a": {"n": 7, "x": 1e-3, "list": [{"k": "${a.n}"}]},
        "b": ["${a.n}", "${a.x}", "is ${a.n}", "${a.list}", "${oc.env:PLACE}/x", "${b[0]}"],
        "c": {"d": 1, "e": "${.d}"},
    }
    found = interpolated(tree)
    assert found.mistakes == []
    assert found.tree["b"] == [7, 0.001, "is 7", [{"k": 7}], "/data/x", 7]
    assert found.tree["c"]["e"] == 1
    json.dumps(found.tree)  # plain values all the way down


def test_text_that_looks_like_no_interpolation_stays_as_it_is() -> None:
    tree = {"a": ["$x", "{a}", "c:\\dir", "???", "\\${a}"]}
    assert interpolated(tree).tree == {"a": ["$x", "{a}", "c:\\dir", "???", "${a}"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "${run.sed}",
            "x.yaml: b.c: '${run.sed}': Interpolation key 'run.sed' not found. Name a key of the "
            "config",
        ),
        (
            "${oc.env:NOT_SET_AT_ALL}",
            "x.yaml: b.c: '${oc.env:NOT_SET_AT_ALL}': KeyError raised while resolving "
            'interpolation: "Environment variable',
        ),
        (
            "${",
            "x.yaml: b.c: "
            "'${' is no interpolation. Write e.g. ${run.seed}, or \\${ for the literal characters.",
        ),
        ("${a", "x.yaml: b.c: '${a' is no interpolation."),
        ("${b.c}", "x.yaml: b.c: '${b.c}': Recursive interpolation detected."),
        ("${nope:3}", "x.yaml: b.c: '${nope:3}': Unsupported interpolation type nope."),
    ],
)
def test_an_interpolation_that_leads_nowhere_is_a_mistake_beside_the_others(
    text: str, message: str
) -> None:
    found = interpolated({"a": 1, "b": {"c": text, "d": "${a}", "e": "${also.nowhere}"}})
    said = messages(found)
    assert len(said) == 2
    assert any(one.startswith(message) for one in said)
    assert found.tree["b"]["d"] == 1


def test_only_the_sections_asked_for_are_resolved() -> None:
    found = interpolated(
        {"a": {"n": 3}, "stop": {"hold": "${a.n}"}, "other": ["${nowhere}", "${"]}, "stop"
    )
    assert found.mistakes == []
    assert found.tree["stop"] == {"hold": 3}
    assert found.tree["other"][0] == "${nowhere}"


@given(VALUES)
def test_values_without_interpolations_pass_through(value: Any) -> None:
    assert_same(
        interpolated({"value": value}).tree if "${" not in repr(value) else {"value": value},
        {"value": value},
    )
