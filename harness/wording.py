"""Building blocks of messages: mistakes and where they are, suggested names, values, lists and
errors in readable form.
"""

import difflib
import re
import traceback
from collections.abc import Collection, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from harness.hidden import mask

# Code that is no user's own: of packages, of Python, ours
_NOT_OWN = re.compile(
    rf"[/\\](site|dist)-packages[/\\]|[/\\]lib[/\\]python3|^<|^{re.escape(str(Path(__file__).parent))}"
)
Key = str | int
Keys = tuple[Key, ...]


# What moves a terminal's cursor, colours it, turns the direction of writing, or cannot be written
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
    "|[\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


class Mistake(NamedTuple):
    """What is wrong with the value at some keys.

    `origin`: where it was made, if that is known: a file with a line, an override, an argument.
    """

    keys: Keys
    message: str
    origin: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.origin, dotted(self.keys), self.message)))

    def within(self, where: str) -> str:
        """The message with its keys under `where`: `where.key[0].key: message`."""
        return f"{dotted(self.keys, where)}: {self.message}"


def dotted(keys: Iterable[Key], start: str = "") -> str:
    """Keys as people write them: ("treatments", 0, "size") -> `treatments[0].size`."""
    for key in keys:
        start += f"[{key}]" if isinstance(key, int) else f".{key}" if start else str(key)
    return start


def closest(wrong: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name most similar to a wrong one; None if none is."""
    return next(iter(difflib.get_close_matches(wrong, list(known), 1, cutoff)), None)


def did_you_mean(wrong: Any, known: Iterable[str], *, quoted: bool = False) -> str:
    """` Did you mean x?` or nothing; upper and lower case do not count."""
    names: dict[str, str] = {}
    for name in sorted(known):
        names.setdefault(name.lower(), name)
    close = closest(str(wrong).lower(), names)
    if close is None:
        return ""
    return f" Did you mean {repr(names[close]) if quoted else names[close]}?"


def origin(error: BaseException) -> str:
    """`file:line` where an error arose: the innermost line of the user's own code, if any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if not _NOT_OWN.search(one.filename)]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def printable(text: str) -> str:
    """Text for a terminal or a page, whoever wrote it: line breaks and tabs are kept, other
    characters that control something are shown escaped, and secrets as ***.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), mask(text))


def short_repr(value: Any) -> str:
    """A value as Python writes it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def some(names: Collection[str], most: int = 5, none: str = "none", separator: str = ", ") -> str:
    """`a, b and 3 more`; `none` if there are no names."""
    most += len(names) == most + 1  # its name is no longer than "and 1 more"
    rest = len(names) - most
    more = f" and {rest:,} more" if rest > 0 else ""
    return (separator.join(list(names)[:most]) or none) + more


def duration(seconds: float) -> str:
    """A time of any length to three digits, e.g. `1.25 h`."""
    units = {"d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3}
    unit, size = next(((one, s) for one, s in units.items() if seconds >= s), ("us", 1e-6))
    return f"{seconds / size:.3g} {unit}"


def clock(seconds: float) -> str:
    """A time as clocks show it: 1:02, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut to 200 characters, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def own_version() -> str:
    """Of the installed distribution."""
    try:
        return version("fermarsi")
    except PackageNotFoundError:  # run from a bare checkout
        return "not installed"
