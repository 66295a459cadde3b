"""What messages are made of: names that were meant, keys and values as people write them."""

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

Key = str | int


Keys = tuple[Key, ...]


class Problem(NamedTuple):
    """A mistake at a place, given by the keys that lead there."""

    keys: Keys
    message: str


def line(where: str, problem: Problem) -> str:
    """`where.key[0].key: message`."""
    return f"{dotted(problem.keys, where)}: {problem.message}"


def dotted(keys: Iterable[Key], start: str = "") -> str:
    """Keys as people write them: ("treatments", 0, "size") -> `treatments[0].size`."""
    for key in keys:
        start += f"[{key}]" if isinstance(key, int) else f".{key}" if start else str(key)
    return start


def did_you_mean(wrong: Any, known: Iterable[str]) -> str:
    """` Did you mean x?` or nothing; upper and lower case do not count."""
    names: dict[str, str] = {}
    for name in sorted(known):
        names.setdefault(name.lower(), name)
    close = difflib.get_close_matches(str(wrong).lower(), names, n=1)
    return f" Did you mean {names[close[0]]}?" if close else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
