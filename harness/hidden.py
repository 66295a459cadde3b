"""Secrets in a config: it holds only a reference, `${secret:HF_TOKEN}`, as does everything that is
written or sent; the value is looked up for the component that takes it, and never shown.
"""

import os
import re

# An environment variable, perhaps with a default; ${secret:NAME} is one that is a secret whatever
# it is called
TOKEN = re.compile(r"(?<!\\)\$\{(oc\.env|secret):\s*([A-Za-z_]\w*)\s*(?:,([^${}]*))?\}")

_SECRET_WORD = re.compile(
    r"(^|_)(token|(api|access|secret|private)?_?key|password|passwd|secret|credentials?)s?($|_)",
    re.IGNORECASE,
)
_SHORTEST = 6  # of what is masked: shorter texts stand in other words

_looked_up: set[str] = set()


class Reference(str):
    """A text that refers to secrets, each marked as one: `${oc.env:X}` is `${secret:X}`, so that it
    stays one wherever it is read again. Equal to any text that says the same.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> "Reference":
        return super().__new__(cls, TOKEN.sub(_mark, text))

    def missing(self) -> list[str]:
        """The environment variables that it needs and that are not set."""
        return [
            found[2]
            for found in TOKEN.finditer(self)
            if found[3] is None and found[2] not in os.environ
        ]

    def value(self) -> str:
        """The text with the secrets in it. Raises KeyError for a variable that is not set."""
        return TOKEN.sub(_look_up, self)


def is_secret(token: re.Match[str], keys: tuple[object, ...]) -> bool:
    """Whether the value of a TOKEN at these keys must be hidden."""
    names = [token[2], *(key for key in keys if isinstance(key, str))]
    return token[1] == "secret" or any(_SECRET_WORD.search(name) for name in names)


def mask(text: str) -> str:
    """A text without the secrets that were looked up in this process."""
    for value in sorted(_looked_up, key=len, reverse=True):
        text = text.replace(value, "***")
    return text


def _mark(token: re.Match[str]) -> str:
    default = "" if token[3] is None else f",{token[3]}"
    return f"${{secret:{token[2]}{default}}}"


def _look_up(token: re.Match[str]) -> str:
    default = token[3]
    value = (
        os.environ[token[2]]
        if default is None
        else os.environ.get(token[2], default.strip().strip("\"'"))
    )
    if len(value) >= _SHORTEST:
        _looked_up.add(value)
    return value
