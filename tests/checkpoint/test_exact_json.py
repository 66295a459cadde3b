"""What goes into JSON comes back, to the last bit."""

import math
import struct
from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.checkpoint import exact_json
from harness.errors import CheckpointError

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(
            st.integers() | st.text() | st.tuples(st.integers(), st.floats(allow_nan=False)), inner
        )
        | st.dictionaries(st.text(), inner).map(OrderedDict)
        | st.dictionaries(st.integers(), st.integers()).map(Counter)
    ),
    max_leaves=20,
)


def same(one: Any, other: Any) -> bool:
    """Equal in value, type and order; floats in all bits (but a NaN is a NaN)."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or struct.pack("<d", one) == struct.pack(
            "<d", other
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.keys()), list(other.keys())) and same(
            list(one.values()), list(other.values())
        )
    return bool(one == other)


@given(values)
def test_whatever_can_be_stored_comes_back(value: Any) -> None:
    assert same(exact_json.loads(exact_json.dumps(value), "test"), value)


@given(
    st.dictionaries(
        st.sampled_from(["a", "~b", "~float", "decimal", "~dict", ""]), st.floats() | st.none()
    )
)
def test_keys_that_look_like_marks_come_back(value: dict[str, Any]) -> None:
    assert same(exact_json.loads(exact_json.dumps(value), "test"), value)


@pytest.mark.parametrize(
    "value", [torch.zeros(1), {1, 2}, object(), b"bytes", {"deep": [({"er": 1 + 2j},)]}]
)
def test_what_cannot_be_stored_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"state.*cannot be stored exactly"):
        exact_json.dumps(value, "state")


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '{"a": {"b": 1, "b": 1}}',
        "NaN",
        "[Infinity]",
        "",
        "{",
        '"\\',
        "[" * 100_000,
        "\udcff",
        '{"~float": "0x1p+0", "decimal": "2.0"}',
        '{"~float": "0x1p+99999", "decimal": "1.0"}',
        '{"~float": 1, "decimal": "1.0"}',
        '{"~float": "0x1p+0"}',
        '{"~unknown": []}',
        '{"~tuple": 3}',
        '{"~tuple": [], "more": 1}',
        '{"~dict": [[1]]}',
        '{"~dict": [[[], 1]]}',
        "1" * 5000,
    ],
)
def test_what_dumps_never_writes_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError):
        exact_json.loads(text.encode(errors="surrogateescape"), "test")


def test_a_document_that_is_too_large_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exact_json, "MAX_BYTES", 10)
    with pytest.raises(CheckpointError, match="11 bytes of JSON"):
        exact_json.parse(b'"123456789"', "test")
