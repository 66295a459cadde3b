"""One text for a value, however a file writes it: 1 and 1.0, a date with or without midnight, an
accent in one character or two. A network that learned categories from one file meets the same in
another.
"""

import datetime
import re
import unicodedata
from typing import Any

import numpy as np

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]\d+)?")
_DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d)(?::(\d\d)(?:\.(\d+))?)?(Z|[+-]\d\d:?\d\d)?)?"
)
_TIME = re.compile(r"(\d\d:\d\d:\d\d)\.(\d+)")
_LOGICAL = {"true": "True", "TRUE": "True", "false": "False", "FALSE": "False"}


def text_of(value: Any, decimal: str = ".") -> str:
    """The text of a cell or of a value in a config. Raises UnicodeDecodeError for bytes that are
    not UTF-8.

    Whole numbers are written 7, not 7.0; others with the fewest digits that distinguish them; dates
    as 2026-01-31 or 2026-01-31 12:00:00.5, those with a time zone in UTC; true as True. A text that
    is written as a program writes such a value (1.0, but not 1.10 or 001) counts as the value, with
    `decimal` as its point. Unicode is in normal form C.
    """
    if isinstance(value, np.float16 | np.float32):
        value = float(str(value))  # 0.1, not 0.10000000149011612
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(float(value))
    if isinstance(value, bytes):
        value = value.decode()
    return _read(str(value), decimal)


def plain_name(value: Any) -> str:
    """A name in a config, as it is written; what is no text, such as 2019, as `text_of` says."""
    return value if isinstance(value, str) else text_of(value)


def name_of(value: Any) -> str:
    """A name in a config or a header for comparison: as `plain_name`, in normal form C."""
    return unicodedata.normalize("NFC", plain_name(value))


def _read(text: str, decimal: str) -> str:
    if not text.isascii():
        return unicodedata.normalize("NFC", text)
    if text in _LOGICAL:
        return _LOGICAL[text]
    if not text[-1:].isdigit() and text[-1:] != "Z":
        return text
    number = text.replace(",", ".") if decimal == "," and "." not in text else text
    if _NUMBER.fullmatch(number):
        is_float = not number.lstrip("-").isdecimal() and repr(float(number)) == number
        return text_of(float(number)) if is_float else text
    if (date := _DATE.fullmatch(text)) is not None:
        return _date(text, *date.groups())
    if (time := _TIME.fullmatch(text)) is not None:
        return _with_fraction(time[1], time[2])
    return text


def _date(
    text: str,
    date: str,
    minutes: str | None,
    seconds: str | None,
    fraction: str | None,
    zone: str | None,
) -> str:
    try:
        moment = datetime.datetime.fromisoformat(f"{date} {minutes or '00:00'}:{seconds or '00'}")
        if zone is not None:
            aware = datetime.datetime.fromisoformat(f"{moment.isoformat()}{zone}")
            moment = aware.astimezone(datetime.UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return text
    written = _with_fraction(moment.isoformat(" "), fraction or "")
    return f"{written}+00:00" if zone is not None else written.removesuffix(" 00:00:00")


def _with_fraction(seconds: str, digits: str) -> str:
    digits = digits.rstrip("0")
    return f"{seconds}.{digits}" if digits else seconds
