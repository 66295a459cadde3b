"""Encodings of text files: which there are, and why a file is not in one."""

import codecs

from harness.errors import ConfigError

_MARKS = {  # those of UTF-32 first, which begin as those of UTF-16 do
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def check_encoding(name: str) -> None:
    """Raise ConfigError unless Python has an encoding of text with this name."""
    try:
        known = codecs.lookup(name)
        why = None if known._is_text_encoding else f"{name}: not an encoding of text"
    except (LookupError, ValueError) as error:
        why = str(error)
    if why is not None:
        raise ConfigError(
            f"encoding: {why}. Give one known to Python, e.g. utf-8, cp1252 or utf-16."
        )


def why_undecoded(data: bytes, encoding: str) -> str | None:
    """Why the content of a file is not in a known encoding, by its byte order mark or its end, and
    what to do; None if neither tells.
    """
    name = codecs.lookup(encoding).name
    marked = next((kind for mark, kind in _MARKS.items() if data.startswith(mark)), None)
    if marked is not None and not name.startswith(("utf-16", "utf-32")):
        return f"in {marked.upper()}. Set encoding: {marked}."
    if marked is None and name in _MARKS.values():
        return (
            f"no byte order mark, which {name} needs. Set encoding: {name}-le, {name}-be, or that "
            "of the file, e.g. utf-8."
        )
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        cut = error.end == len(data) and any(
            word in error.reason for word in ("truncated", "unexpected end", "incomplete")
        )
        if cut:
            return (
                f"ends within a character of {encoding}. It may be truncated: bring the whole "
                "file, or set encoding if it is in another, e.g. cp1252."
            )
        if name.startswith(("utf-16", "utf-32")):  # whose lines cannot be found without decoding
            return f"byte {error.start} is not {encoding} ({error.reason}). Set encoding."
    except UnicodeError:
        return None
    return None
