"""Dates that are text: their forms and time zones."""

import datetime
import re
import zoneinfo
from contextlib import suppress
from functools import cache

from harness.errors import ConfigError
from harness.wording import did_you_mean

_ANY = datetime.datetime(2000, 1, 1)
_MIDNIGHT = re.compile(r"(?<![\d:/.-])24(?=(:?00)+(\.0+)?(?!\d))")
_DIGITS = "%[YmdHMSjyI]"  # numbers of a fixed width
# Python takes 12.30 for 0.3 s after 12:00, and 12-03 for 12:00 three hours west of Greenwich
_NOT_ISO = re.compile(r"\d{4}-[\dW-]+\D\d\d([+-]|(:?\d\d)?[.,])")


def check_time_format(form: str) -> None:
    """Raise ConfigError for directives that strptime reads without using them."""
    used = set(re.findall("%(.)", form.replace("%%", "")))
    why = None
    if "Z" in used:
        why = "names of time zones. Write the name instead of %Z, and set timezone"
    if "p" in used and "I" not in used:
        why = "%p beside %H. Use %I"
    if used & {"U", "W"} and not ("Y" in used and used & {"a", "A", "w"}):
        why = "weeks (%U, %W) that come without %Y and a day (%a, %A, %w)"
    if why is not None:
        raise ConfigError(f"time_format: {form!r}: Python ignores {why}.")
    if "I" in used and "p" not in used:
        raise ConfigError(f"time_format: {form!r}: %I needs %p, or use %H.")


def check_timezone(name: str | None) -> None:
    """Raise ConfigError unless a time zone is known."""
    try:
        if name is not None:
            zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        known = zoneinfo.available_timezones()
        raise ConfigError(
            f"timezone: {name!r} is not known.{did_you_mean(str(name), known, quoted=True)} Give a "
            "name of the tz database, e.g. Europe/Rome."
        ) from error


def parse_iso(text: str) -> datetime.datetime:
    """A date in ISO 8601, where a fraction is one of seconds. Raises ValueError."""
    if _NOT_ISO.match(text):
        raise ValueError(f"{text!r} is not in ISO 8601")
    return datetime.datetime.fromisoformat(text)


def parse_date(text: str, form: str | None) -> datetime.datetime:
    """A date in a form, or in ISO 8601; 24:00 is midnight at the end of a day. Numbers that stand
    together, such as %H%M, must have all digits, or be alone, where zeros before them may be
    missing: 15 is 00:15. Raises ValueError.
    """
    if form is None:
        read = parse_iso
    else:
        # Digits beyond those that %f reads
        text = re.sub(r"(\.\d{6})\d+", r"\1", text) if "%f" in form else text
        words, forms = text.split(), form.split()
        if len(words) == len(forms):
            text = " ".join(map(_padded, words, forms))
        of_form = form

        def read(text: str) -> datetime.datetime:
            return datetime.datetime.strptime(text, of_form)

    try:
        return read(text)
    except ValueError:
        early, count = _MIDNIGHT.subn("00", text)
        if count == 1:
            with suppress(ValueError):
                return read(early) + datetime.timedelta(days=1)
        raise


def _padded(word: str, form: str) -> str:
    shape, width = _shape(form)
    if width is not None and word.isdecimal():
        return word.zfill(width)
    if shape is not None and not shape.fullmatch(word):
        raise ValueError(f"{word!r} does not have the digits of {form}, zeros included")
    return word


@cache
def _shape(form: str) -> tuple[re.Pattern[str] | None, int | None]:
    """What matches texts of a form in which numbers stand together, and how many digits it has if
    it consists of them.
    """
    pieces = re.split(f"((?:{_DIGITS}){{2,}}|%.)", form)
    widths = [len(_ANY.strftime(piece)) if len(piece) > 2 else 0 for piece in pieces[1::2]]
    if not any(widths):
        return None, None
    pattern = re.escape(pieces[0])
    for piece, width, literal in zip(pieces[1::2], widths, pieces[2::2], strict=True):
        pattern += rf"\d{{{width}}}" if width else r"\d{1,6}" if piece == "%f" else ".+?"
        pattern += re.escape(literal)
    # Zeros before a year of four digits are not missing
    padded = form == pieces[1] and not form.startswith("%Y")
    return re.compile(pattern), widths[0] if padded else None
