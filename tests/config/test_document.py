"""YAML texts as plain values and back."""

import math
import string
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.config.document import Document, MalformedError, to_yaml

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
TRICKY = st.sampled_from(
    [
        "no",
        "No",
        "NO",
        "yes",
        "on",
        "off",
        "y",
        "n",
        "null",
        "~",
        "true",
        "010",
        "1e3",
        "1_000",
        "0x1F",
        ".inf",
        "1:30",
        "2026-11-24",
        "=",
        "<<",
        "-",
        "#",
        "*",
        "&",
        "!",
        "|",
        ">",
        "%",
        "@",
        "`",
        "{}",
        "[]",
        "a:b",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | TRICKY
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS | TRICKY | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def read(text: str) -> Any:
    document = Document()
    value = document.read(text)
    assert document.mistakes == []
    return value


def mistakes(text: str) -> list[tuple[int, str]]:
    document = Document()
    document.read(text)
    return [(line, message) for line, _, message in document.mistakes]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, 0.001) for text in ("1e-3", "1E-3", "1.0e-3", "+1e-3", ".1e-2", "1.e-3", "0.001")],
        *[
            (text, text)
            for text in (
                "no",
                "No",
                "NO",
                "yes",
                "on",
                "off",
                "y",
                "n",
                "2026-11-24",
                "1:30",
                "inf",
                "nan",
                "=",
                "1_",
                "1__0",
                "e3",
                "1e",
                "0x",
            )
        ],
        *[(text, None) for text in ("", "~", "null", "Null", "NULL")],
        *[(text, True) for text in ("true", "True", "TRUE")],
        ("false", False),
        ("0", 0),
        ("-12", -12),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b11", 3),
        ("-.inf", -math.inf),
        ("1e308", 1e308),
        ("5%", "5%"),
        ("'1'", "1"),
        ('"no"', "no"),
        ("!!str 3", "3"),
        ("!!float 3", 3.0),
    ],
)
def test_a_plain_value_is_read_by_the_rules_of_yaml_1_2(text: str, value: Any) -> None:
    for found in (
        read(text),
        read(f"a: {text}")["a"],
        read(f"[{text or '~'}]")[0],
        read(f"a: {{b: [{text or '~'}]}}")["a"]["b"][0],
    ):
        assert (found, type(found)) == (value, type(value))


def test_not_a_number_is_a_number() -> None:
    assert math.isnan(read(".nan"))


@pytest.mark.parametrize("text", ["010", "007", "00", "-07", "0_1"])
def test_a_leading_zero_is_refused_since_readers_differ(text: str) -> None:
    assert mistakes(f"a: 1\nb: {text}") == [
        (
            2,
            f"{text} is octal in YAML 1.1 and decimal in 1.2. Write the number without the "
            "leading zero, or text in quotes.",
        )
    ]


def test_a_number_too_large_is_refused_not_infinite() -> None:
    assert mistakes("1e400") == [(1, "'1e400': too large for a number of 64 bits.")]


def test_a_key_that_comes_twice_is_refused_with_both_lines_at_any_depth() -> None:
    text = "a: 1\nb:\n  c: 1\n  'c': 2\na: 2\nd: [{e: 1, e: 2}]"
    document = Document()
    assert document.read(text) == {"a": 1, "b": {"c": 1}, "d": [{"e": 1}]}
    assert [(line, keys) for line, keys, _ in document.mistakes] == [
        (4, ("b", "c")),
        (5, ("a",)),
        (6, ("d", 0, "e")),
    ]
    assert document.mistakes[1][2] == "duplicate key; the first is in line 1. Remove one."


@pytest.mark.parametrize("text", ["{true: 1}", "{~: 1}", "{1.5: 1}", "{[1]: 1}", "{{a: 1}: 1}"])
def test_a_key_is_text_or_a_whole_number(text: str) -> None:
    assert mistakes(text) == [(1, "a key must be text or a whole number. Put it in quotes.")]
    assert read("{1: a, b: c}") == {1: "a", "b": "c"}


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system [ls]",
        "!!set {a}",
        "!!binary aGk=",
        "!mine 3",
        "!!timestamp 2026-11-24",
        "!!bool no",
    ],
)
def test_tags_make_nothing(text: str) -> None:
    ((line, message),) = mistakes(f"a: {text}")
    assert line == 1
    assert "is not supported. Remove it." in message


def test_aliases_and_merge_keys_are_resolved() -> None:
    assert read("a: &x {b: 1, c: 2}\nd: *x\ne: {<<: *x, c: 3}\nf: {<<: [{b: 4}, *x]}") == {
        "a": {"b": 1, "c": 2},
        "d": {"b": 1, "c": 2},
        "e": {"b": 1, "c": 3},
        "f": {"b": 4, "c": 2},
    }
    assert mistakes("<<: 3") == [
        (1, "<< takes a mapping or a list of mappings. Give an alias for one.")
    ]


def test_values_know_their_lines() -> None:
    document = Document()
    document.read("a: 1\nb:\n  - c: 2\n    d: 3\n")
    assert document.lines[("a",)] == 1
    assert document.lines[("b",)] == 2
    assert document.lines[("b", 0, "d")] == 4


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [", 2),
        ("a: b: c", 1),
        ("a: 1\n---\nb: 2", 2),
        ("x: 1\na:\t- 1", 2),
        ("a: \x07", 1),
        ("a: *nowhere", 1),
        ("[" * 5000, 1),
        ("a: &x [*x]", 1),
    ],
)
def test_what_is_no_yaml_is_said_with_its_line(text: str, line: int) -> None:
    with pytest.raises(MalformedError) as caught:
        Document().read(text)
    assert caught.value.line == line


def test_aliases_that_multiply_are_refused() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{index}: &a{index} [*a{index - 1}, *a{index - 1}]\n" for index in range(1, 30)
    )
    with pytest.raises(MalformedError, match="more than 100,000 values"):
        Document().read(bomb)


def test_what_follows_a_value_is_kept_apart() -> None:
    document = Document()
    assert document.read("fix#3 {again}") == "fix#3 {again}"
    assert document.rest == ""
    assert document.read("fix #3") == "fix"
    assert document.rest == "#3"


@given(VALUES)
def test_what_is_written_is_read_back_exactly(value: Any) -> None:
    assert_same(read(to_yaml({"value": value}))["value"], value)


@given(VALUES)
def test_readers_of_yaml_1_1_read_it_too(value: Any) -> None:
    assert_same(yaml.safe_load(to_yaml({"value": value}))["value"], value)


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["{!r}", "{:.17e}", "{:.17g}", "{:+.17E}"]),
)
def test_floats_are_read_to_the_last_bit_however_they_are_written(
    number: float, style: str
) -> None:
    text = style.format(number)
    found = read(text)
    assert float(found) == number
    assert isinstance(found, float) or set(text) <= set(string.digits + "+-")


def assert_same(found: Any, wanted: Any) -> None:
    assert repr(found) == repr(wanted)  # == takes 1, 1.0 and True for the same, and -0.0 for 0.0
