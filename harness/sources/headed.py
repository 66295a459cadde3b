"""Rows of cells under a row of column names, as CSV and Excel have them."""

import json
import re
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from harness.data.written import name_of
from harness.errors import DataError
from harness.sources.cells import Layout, number_or_none
from harness.wording import did_you_mean, some

Line = tuple[int, list[Any]]  # the number of a row, from 1, and its cells
COMMENT: list[Any] = []  # instead of the cells of a row that is a comment
_SEPARATORS = (";", "\t", "|", ",")
_TOLD = re.compile('"?sep=(.?)"?')
_SEARCHED = 20  # rows searched for a header that is not where it should be


@dataclass(frozen=True)
class Head:
    """What precedes the data: the names of all columns and those to read. `marks`: other separators
    that a header of one column contains.
    """

    path: Path
    where: str
    names: Sequence[str]
    wanted: Sequence[str]
    marks: Collection[str] = ()


def read_head(
    path: Path, layout: Layout, columns: Collection[str] | None, lines: Iterator[Line]
) -> Head:
    """Take the rows above the data from `lines`. Raises DataError."""
    if layout.names is not None:
        _pass_over(lines, layout.header - 1 + layout.skip_rows)
        names = list(layout.names)
        return Head(path, str(path), names, select_names(path, names, columns))
    above: list[Line] = []
    for row, cells in lines:
        if cells is COMMENT:
            continue
        if row < layout.header:
            above.append((row, cells))
            continue
        names, where = [_name_of(cell) for cell in cells], f"{path}: row {row}"
        while names and not names[-1]:
            names.pop()
        if not names and columns is None:
            break
        if names and (told := _TOLD.fullmatch(names[0])):
            mark = json.dumps(told[1] or layout.separator or ",")
            raise DataError(
                f"{where}: {names[0]!r}, by which Excel tells the separator. Set separator: {mark} "
                f"and header: {row + 1}."
            )
        marks: set[str] = set()
        if ".csv" in map(str.lower, path.suffixes) and len(names) == 1:
            marks = {mark for mark in _SEPARATORS if mark in names[0]} - {layout.separator or ","}
        if columns is not None and not set(columns) <= set(names):
            below = list(islice(lines, _SEARCHED))
            _refuse_separator(where, names, marks, [cell for _, cells in below for cell in cells])
            raise _no_header(path, names, layout.header, columns, [*above, *below])
        wanted = _select(path, row, names, columns)
        _pass_over(lines, row + layout.skip_rows, row)
        return Head(path, where, names, wanted, marks)
    raise _no_header(path, [], layout.header, columns or (), above)


def rows_below(head: Head, layout: Layout, lines: Iterator[Line]) -> Iterator[Line]:
    """The rows that hold data, each with a cell for every column. Raises DataError."""
    filled = (
        (row, cells)
        for row, cells in lines
        if any(cell is not None and cell != "" for cell in cells)
    )
    for row, cells in _without_last(filled, layout.skip_footer):
        if head.marks:
            _refuse_separator(head.where, head.names, head.marks, cells)
        if len(cells) < len(head.names) or any(cell != "" for cell in cells[len(head.names) :]):
            raise DataError(
                f"{head.path}: row {row}: {len(cells)} cells for {len(head.names)} columns. "
                "Correct the row, or set header or separator; skip_footer skips rows at the "
                "end."
            )
        yield row, cells


def by_column(head: Head, kept: list[list[Any]]) -> dict[str, list[Any]]:
    """{name: cells} of some rows, of the columns to read."""
    columns = {name: head.names.index(name) for name in head.wanted}
    return {name: [cells[column] for cells in kept] for name, column in columns.items()}


def _pass_over(lines: Iterator[Line], last: int, row: int = 0) -> None:
    """Take lines up to that of row `last`; `row` was taken."""
    while row < last:
        row, _ = next(lines, (last, []))


def _without_last(lines: Iterator[Line], count: int) -> Iterator[Line]:
    if count == 0:
        yield from lines
        return
    held: deque[Line] = deque()
    for line in lines:
        held.append(line)
        if len(held) > count:
            yield held.popleft()


def _no_header(
    path: Path,
    header: Sequence[str],
    row: int,
    columns: Collection[str],
    others: Sequence[tuple[int, list[Any]]],
) -> DataError:
    for other, cells in others:
        if columns and set(columns) <= {_name_of(cell) for cell in cells}:
            return DataError(f"{path}: the column names are in row {other}. Set header: {other}.")
    if not header:
        return DataError(
            f"{path}: row {row} is empty, where the column names should be. Set header."
        )
    name = next(name for name in columns if name not in header)
    return DataError(
        f"{path}: no column {name!r}, only {some(header, 20)}."
        f"{did_you_mean(name, header, quoted=True)}"
    )


def _select(
    path: Path, row: int, header: Sequence[str], columns: Collection[str] | None
) -> list[str]:
    """The names of a header to read."""
    if columns is None:
        _warn_odd_header(path, row, header)
    wanted = [name for name in header if name and (columns is None or name in columns)]
    refuse_twins(path, wanted)
    return wanted


def _refuse_separator(
    where: str, header: Sequence[str], marks: Collection[str], cells: Sequence[str]
) -> None:
    """Refuse a header of one column if one of the `marks` in it is also in data."""
    found = [mark for mark in marks if any(mark in cell for cell in cells)]
    if found:
        mark = max(found, key=header[0].count)
        raise DataError(
            f"{where}: one column {header[0]!r}, which looks like several. Set separator: "
            f"{json.dumps(mark)}."
        )


def _warn_odd_header(path: Path, row: int, header: Sequence[str]) -> None:
    """Warn of column names that look like measurements: a file without them loses its first row.

    Whole numbers that go up by equal steps, such as years, are names.
    """
    found = (number_or_none(name) for name in header)
    numbers = [number for number in found if number is not None and isfinite(number)]
    steps = {after - before for before, after in pairwise(numbers)}
    named = all(number.is_integer() for number in numbers) and len(steps) <= 1 and 0 not in steps
    if numbers and not named:
        warnings.warn(
            f"{path}: row {row} is used as column names, but looks like data: "
            f"{some(list(header), 6)}. If the file has no names, add a row of them; if they are in "
            "another row, set header.",
            stacklevel=2,
        )


def _name_of(cell: Any) -> str:
    return name_of(cell).strip()


def refuse_twins(where: Path | str, names: Sequence[str]) -> None:
    """Raise DataError for a name that occurs twice."""
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{where}: two columns are called {name!r}. Rename one of them.")


def select_names(path: Path, names: Sequence[str], columns: Collection[str] | None) -> list[str]:
    """The names of the columns to read, all of them if None. Raises DataError."""
    if columns is not None and not set(columns) <= set(names):
        if not names:
            raise DataError(f"{path}: it holds no columns. Give another file.")
        raise _no_header(path, names, 1, columns, [])
    return [name for name in names if columns is None or name in columns]
