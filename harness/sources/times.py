"""Columns of times: numbers, dates, or a date and a time of day in two columns."""

import datetime
import re
import warnings
from collections.abc import Hashable, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from harness.data.written import text_of
from harness.sources.cells import DAY_FIRST, Cells, as_list, is_empty
from harness.sources.dates import parse_date

_PER_SECOND = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_YEAR_1900 = datetime.datetime(1900, 1, 1)  # strptime's date of times of day
_LAST_YEAR = 9999
_MONTHS = 12
_NO_TIME = datetime.timedelta()


def seconds_of(
    cells: Cells, names: Sequence[str], keys: Sequence[Hashable] | None = None
) -> NDArray[np.float64]:
    """(N,) float64: numbers in seconds, by the layout's `time_unit`; durations; dates, in ISO 8601,
    in its `time_format` or the native type of Excel and Parquet, as seconds since 1970. Dates that
    state no time zone are in that of the layout, else in UTC.

    names: one column, or those of the date and the time of day; keys: the recording of each row.
    Raises DataError with file, row and column.
    """
    name, form = names[0], cells.layout.time_format
    stored = cells.raw(name)
    if isinstance(stored, np.ndarray) and form is None and len(names) == 1:
        return _numbers(cells, name)
    found = as_list(stored)
    if len(names) == 2:
        found = _join(cells, names, form)
    elif any(isinstance(cell, datetime.timedelta) for cell in found):
        return _elapsed(cells, name, found)
    dates = []
    for index, cell in enumerate(found):
        dates.append(_date_or_none(cell) if form is None or not isinstance(cell, str) else None)
        if form is not None and dates[-1] is None and not is_empty(cell):
            try:
                dates[-1] = parse_date(_digits(cell, form), form)
            except ValueError as error:
                cells.refuse(name, index, f"{error}. Correct it, or set time_format.")
    are_dates = form is not None or len(names) == 2 or any(dates)
    for index, (date, cell) in enumerate(zip(dates, found, strict=True)):
        if date is None and isinstance(cell, str) and DAY_FIRST.match(cell.strip()):
            year_first = cell.strip()[:4].isdecimal()
            form = "%Y-%m-%d %H.%M" if year_first else "%d/%m/%Y %H:%M:%S"
            ways = f"Set time_format, e.g. {form!r}"
            cells.refuse(name, index, f"{cell!r} is a date in another format. {ways}.")
        if date is None and are_dates and not is_empty(cell):
            cells.refuse(name, index, f"{cell!r} is not a date. Correct it, or set time_format.")
    if not are_dates:
        for index, cell in enumerate(found):
            if isinstance(cell, datetime.time):
                what = "a time of day without a date. Set time to the columns of both"
                cells.refuse(name, index, f"{cell} is {what}: [date, time].")
        return _numbers(cells, name)
    if len(names) == 1:
        _tell_exchanged(cells, name, found, dates)
    return _since_epoch(cells, name, dates, keys or [None] * len(dates))


def _numbers(cells: Cells, name: str) -> NDArray[np.float64]:
    if cells.layout.timezone is not None and len(cells):
        cells.refuse(name, 0, "a number, which is in no time zone. Remove timezone.")
    return cells.numbers(name) / _PER_SECOND[cells.layout.time_unit]


def _elapsed(cells: Cells, name: str, found: Sequence[Any]) -> NDArray[np.float64]:
    """Seconds of durations, as pandas stores them in Parquet and Excel in [h]:mm:ss."""
    seconds = np.full(len(found), np.nan)
    for index, cell in enumerate(found):
        if isinstance(cell, datetime.timedelta) and cell == cell:  # not NaT
            seconds[index] = cell.total_seconds()
        elif not is_empty(cell):
            cells.refuse(name, index, f"{cell!r} is not a duration as others are. Correct it.")
    return seconds


def _since_epoch(
    cells: Cells,
    name: str,
    dates: Sequence[datetime.datetime | None],
    keys: Sequence[Hashable],
) -> NDArray[np.float64]:
    """Dates in UTC, or those without a time zone in that of the layout; warns of those in the hour
    that occurs twice, which belong to its first pass until the times of their recording go back,
    and refuses them where those go back in another way.
    """
    timezone = cells.layout.timezone
    zone = datetime.UTC if timezone is None else ZoneInfo(timezone)
    seconds = np.full(len(dates), np.nan)
    befores: dict[Hashable, tuple[datetime.datetime, datetime.timedelta]] = {}
    twice, num_naive = [], 0
    for index, (date, key) in enumerate(zip(dates, keys, strict=True)):
        if date is None:
            continue
        if not 1 < date.year < _LAST_YEAR:  # UTC may be in the year before or after
            cells.refuse(name, index, f"{date}: give years from 2 to 9998. Correct it.")
        moment = date
        before, step = befores.get(key, (None, _NO_TIME))
        if date.tzinfo is None:
            num_naive += 1
            moment = date.replace(tzinfo=zone)
            later = moment.replace(fold=1)
            shift = (moment.utcoffset() or _NO_TIME) - (later.utcoffset() or _NO_TIME)
            if shift < _NO_TIME:
                what = f"{date} does not exist in {timezone}, where clocks were put forward"
                cells.refuse(name, index, f"{what}. Correct it, or set another timezone.")
            if shift > _NO_TIME:
                twice.append(index)
                if before is not None and _is_second_pass(moment, before, step, shift):
                    moment = later
                if before is not None and moment.astimezone(datetime.UTC) < before:
                    what = f"{date} occurs twice in {timezone}, and the rows are not in order"
                    cells.refuse(name, index, f"{what}. Sort the file by time, or store UTC.")
        now = moment.astimezone(datetime.UTC)
        befores[key] = now, _NO_TIME if before is None else now - before
        seconds[index] = (now - _EPOCH).total_seconds()
    if timezone is not None and num_naive == 0 and any(dates):
        cells.refuse(name, 0, "dates state their own time zone. Remove timezone.")
    if twice:
        warnings.warn(
            f"{cells.path}: {len(twice):,} times in {name!r} are in the hour that occurs twice "
            f"as clocks are put back in {timezone}, the first in row {cells.rows[twice[0]]}: the "
            "first pass is taken to end where the times of a recording go back, or stand still "
            "after a step as long. Store UTC to be sure.",
            stacklevel=2,
        )
    return seconds


def _is_second_pass(
    moment: datetime.datetime,
    before: datetime.datetime,
    step: datetime.timedelta,
    shift: datetime.timedelta,
) -> bool:
    """Whether a time of the hour that occurs twice belongs to its second pass: less than `shift`
    earlier than the time before, or, of hourly rows, equal to it.
    """
    earlier = before - moment.astimezone(datetime.UTC)
    return _NO_TIME < earlier <= shift or (earlier == _NO_TIME and step >= shift)


def _tell_exchanged(
    cells: Cells, name: str, found: Sequence[Any], dates: Sequence[datetime.datetime | None]
) -> None:
    """Warn of dates that look like a spreadsheet's reading of another order of day and month."""
    typed: dict[bool, list[int]] = {False: [], True: []}
    for cell, date in zip(found, dates, strict=True):
        if date is not None:
            typed[isinstance(cell, str)].append(date.day)
    stored, text = typed[False], typed[True]
    if stored and text and max(stored) <= _MONTHS < min(text):
        warnings.warn(
            f"{cells.path}: {len(stored):,} cells of {name!r} are dates, of days up to 12 alone, "
            f"and {len(text):,} are text, of later days alone: probably a spreadsheet took the day "
            "for the month where it could. Compare them with their source, and import its column "
            "as text.",
            stacklevel=2,
        )


def _join(cells: Cells, names: Sequence[str], form: str | None) -> list[Any]:
    """The cells of a date and of a time of day as one."""
    found = []
    pairs = zip(*(as_list(cells.raw(name)) for name in names), strict=True)
    for index, (date, time) in enumerate(pairs):
        try:
            found.append(None if is_empty(date) or is_empty(time) else _joined(date, time, form))
        except ValueError as error:
            cells.refuse(names[0], index, f"{error}. Correct it, or set time_format.")
    return found


def _joined(date: Any, time: Any, form: str | None) -> datetime.datetime | str:
    """A date and a time of day. Raises ValueError for one that is text, beside another that is
    not, and not of its part of the form.
    """
    if isinstance(date, datetime.datetime):
        date = date.date()
    is_date, is_time = isinstance(date, datetime.date), isinstance(time, datetime.time)
    if form is not None and is_date != is_time:
        of_date, of_time = _parts(form)
        if is_time:
            date = parse_date(_digits(date, of_date), of_date).date()
        else:
            clock = parse_date(_digits(time, of_time), of_time)
            # 24:00 is of the day after
            start = _YEAR_1900.replace(tzinfo=clock.tzinfo)
            return datetime.datetime.combine(date, datetime.time(), clock.tzinfo) + (clock - start)
    if isinstance(date, datetime.date) and isinstance(time, datetime.time):
        return datetime.datetime.combine(date, time)
    return f"{_text(date)} {_text(time)}"


def _parts(form: str) -> tuple[str, str]:
    """The words of a form up to the first with a part of a time of day, and the others."""
    words = form.split()
    is_clock = [re.search("%[HIMSfpzXT]", word.replace("%%", "")) is not None for word in words]
    at = is_clock.index(True) if True in is_clock else len(words)
    return " ".join(words[:at]), " ".join(words[at:])


def _text(cell: Any) -> str:
    return cell.strip() if isinstance(cell, str) else text_of(cell)


def _digits(cell: Any, form: str) -> str:
    """The text of a date in the form, with the zeros that a number such as 1022026 has lost."""
    if isinstance(cell, str):
        return cell.strip()
    text = text_of(cell)
    return text if form.startswith("%Y") else text.zfill(len(_EPOCH.strftime(form)))


def _date_or_none(cell: Any) -> datetime.datetime | None:
    """The date of a cell, without a time zone if it states none."""
    if isinstance(cell, str) and cell.strip()[4:5] == "-":  # no number
        try:
            cell = parse_date(cell.strip(), None)
        except ValueError:
            return None
    if is_empty(cell):  # pandas' NaT is a datetime too
        return None
    if isinstance(cell, datetime.date) and not isinstance(cell, datetime.datetime):
        cell = datetime.datetime.combine(cell, datetime.time())
    return cell if isinstance(cell, datetime.datetime) else None
