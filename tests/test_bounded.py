"""JSON that may be somebody else's."""

import json

import pytest

from harness.bounded import parse_json

LARGEST, TOO_LONG = "9" * 18, "1" + "0" * 18


@pytest.mark.parametrize("form", ["{}", "-{}", "[0.5, {}, 7]", '{{"a": -{}}}'])
def test_whole_numbers_of_many_digits_are_floats(form: str) -> None:
    """Else one of a million digits takes minutes, or ends in an error of Python's own limit."""
    for digits in ("7", LARGEST[:-1], TOO_LONG, "1" * 5000):
        text = form.format(digits)
        known = json.loads(text, parse_int=lambda one: int(one) if len(one) <= 18 else float(one))
        for data in (text, text.encode(), text.encode("utf-16")):
            assert repr(parse_json(data)) == repr(known)
    assert type(parse_json(LARGEST)) is int
    assert type(parse_json(TOO_LONG)) is type(parse_json(f"-{LARGEST}")) is float
