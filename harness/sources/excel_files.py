"""Sheets of Excel and of LibreOffice."""

import datetime
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.sources.binary_excel import negative_records
from harness.sources.cells import Cells, Layout
from harness.sources.extent import NO_VALUE, Unread, padded, position
from harness.sources.files import need
from harness.sources.headed import COMMENT, Head, Line, by_column, read_head, rows_below
from harness.sources.old_excel import NEGATIVE, read_old
from harness.sources.open_document import check_document
from harness.sources.workbook import (
    BINARY,
    check_workbook,
    choose_sheet,
    find_padded,
    member_of,
)

EXCEL = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
_WAYS = {  # of cells that are told apart by identity
    id(NO_VALUE): "Open the file in Excel or LibreOffice and save it, or store values.",
    id(NEGATIVE): "Format it as a number, or as a duration: [h]:mm:ss.",
}
_EXACT = 2**53  # floats below hold every integer
_DIGITS = re.compile("-?[0-9]+")
# Of the members that a spreadsheet has (Open Document Format 1.3, part 2, 3.2)
_KINDS = (
    ("xl/workbook.xml", ".xlsx"),
    ("xl/workbook.bin", ".xlsb"),
    ("meta-inf/manifest.xml", ".ods"),
)


def read_excel(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    """The columns of a sheet, all of them if None, by calamine, .xls by xlrd. Numbers in a format
    of zeros (00000) and errors (#N/A) are text, as Excel shows them, and so are whole numbers that
    float64 does not hold. Raises DataError with the row.
    """
    ending = _ending_of(path)
    old = ending == ".xls"
    member, grid = ("", read_old(path, layout.sheet)) if old else _read_new(path, ending, layout)
    mark = layout.comment
    lines: Iterator[Line] = enumerate(grid, start=1)
    if mark:
        lines = (
            (row, COMMENT if str(cells[0]).lstrip().startswith(mark) else cells)
            for row, cells in lines
        )
    head = read_head(path, layout, columns, lines)
    first, _ = below = next(lines, (len(grid) + 1, []))
    rows: Sequence[int] = range(first, len(grid) + 1)
    found = None if mark or layout.skip_footer else _full_columns(head, grid[first - 1 :])
    if found is None:
        kept = list(rows_below(head, layout, chain([below], lines)))
        rows = [row for row, _ in kept]
        found = by_column(head, [cells for _, cells in kept])
    stored: dict[str, NDArray[np.float64] | list[Any]] = {}
    for name, read in found.items():
        kinds = set(map(type, read))
        if str in kinds and not _WAYS.keys().isdisjoint(map(id, read)):
            at = next(at for at, cell in enumerate(read) if id(cell) in _WAYS)
            raise _refused(path, rows[at], name, read[at])
        stored[name] = _as_stored(read, kinds)
    if member and ending != ".ods":
        _amend(path, member, stored, rows, {name: head.names.index(name) + 1 for name in stored})
    return Cells(path, stored, rows, layout)


def _refused(path: Path, row: int, name: str, cell: str) -> DataError:
    return DataError(f"{path}: row {row}, column {name!r}: {cell}. {_WAYS[id(cell)]}")


def _ending_of(path: Path) -> str:
    """The ending of a spreadsheet, by its content where it tells, as calamine goes by that."""
    try:
        with zipfile.ZipFile(path) as book:
            members = set(map(str.lower, book.namelist()))
    except (OSError, zipfile.BadZipFile):
        members = set()
    return next((kind for member, kind in _KINDS if member in members), path.suffix.lower())


def _full_columns(head: Head, rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]] | None:
    """{name: cells} of the columns to read; None if rows may be empty or of another length."""
    if set(map(len, rows)) != {len(head.names)}:
        return None
    # Without an object for each row, with which Python would collect garbage in all of its memory
    columns = [[cells[at] for cells in rows] for at in range(len(head.names))]
    for cells in columns:
        kinds = set(map(type, cells))
        if (str in kinds and "" in cells) or NoneType in kinds:
            return None
    return {name: columns[head.names.index(name)] for name in head.wanted}


def _as_stored(cells: Sequence[Any], kinds: set[type]) -> NDArray[np.float64] | list[Any]:
    """Numbers, of which all are floats, as an array or with whole ones as integers; dates with
    a time.
    """
    if kinds == {float}:
        numbers = np.array(cells)
        if numbers.min() > -_EXACT and numbers.max() < _EXACT:  # not NaN
            return np.asarray(numbers + 0.0)  # 0 for -0
    found = list(cells)
    if float in kinds:
        found = [int(one) if _is_exact(one) else one for one in found]
    if datetime.date in kinds:
        clock = datetime.time()
        return [
            datetime.datetime.combine(one, clock) if type(one) is datetime.date else one
            for one in found
        ]
    return found


def _is_exact(cell: Any) -> bool:
    """Whether a cell is a float that stands for one integer."""
    return type(cell) is float and cell.is_integer() and -_EXACT < cell < _EXACT


def _read_new(path: Path, ending: str, layout: Layout) -> tuple[str, list[list[Any]]]:
    """The member of a sheet, and the cells of its rows, "" where one is empty."""
    calamine = need("python_calamine", "tables", f"{path}: Excel")
    unread = check_document(path) if ending == ".ods" else check_workbook(path)
    try:
        with path.open("rb") as file:
            book = calamine.load_workbook(file)
            tables = (
                one for one in book.sheets_metadata if one.typ == calamine.SheetTypeEnum.WorkSheet
            )
            sheet = choose_sheet(path, layout.sheet, [str(one.name) for one in tables])
            rows: list[list[Any]] = book.get_sheet_by_name(sheet).to_python(skip_empty_area=False)
    except BaseException as error:
        known = (calamine.CalamineError, ValueError, KeyError)
        # A panic of Rust is no Exception
        if not isinstance(error, known) and type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or not an Excel file."
        ) from error
    member = sheet if ending == ".ods" else member_of(path, sheet)
    _add_unread(rows, unread.get(member, {}))
    width = len(rows[0]) if rows else 0
    if ending in (".xlsx", ".xlsm"):
        for (row, column), digits in find_padded(path, member).items():
            if row <= len(rows) and column <= width:  # others are beside or below the data
                rows[row - 1][column - 1] = padded(rows[row - 1][column - 1], digits)
    return member, rows


def _amend(
    path: Path,
    member: str,
    stored: Mapping[str, NDArray[np.float64] | list[Any]],
    rows: Sequence[int],
    places: Mapping[str, int],
) -> None:
    """Set whole numbers beyond 2^53 to their digits, of which calamine drops the last ones, and
    raise DataError for times below 0, of which it makes others. `places`: the columns in the
    sheet, from 1.
    """
    asked = {
        (rows[at], places[name]): (name, at)
        for name, cells in stored.items()
        if isinstance(cells, list)
        for at, one in enumerate(cells)
        if type(one) is datetime.time or (type(one) is float and not -_EXACT < one < _EXACT)
    }
    for place, text in _written(path, member) if asked else ():
        name, at = asked.get(place, ("", 0))
        if name and type(stored[name][at]) is datetime.time and text.startswith("-"):
            raise _refused(path, rows[at], name, NEGATIVE)
        if name and _DIGITS.fullmatch(text):
            stored[name][at] = text


def _written(path: Path, member: str) -> Iterator[tuple[tuple[int, int], str]]:
    """((row, column) from 1, value as it is written) of the cells of a sheet, of .xlsb the signs
    of negative ones. The file was checked.
    """
    with zipfile.ZipFile(path) as book, book.open(member) as file:
        if member.lower().endswith(BINARY):
            yield from ((at, "-") for at in negative_records(file))
            return
        for _, cell in ElementTree.iterparse(file):
            if cell.tag.endswith("}c"):
                at = position(cell.get("r", ""))
                if at:
                    yield at, cell.findtext("{*}v") or ""
            elif cell.tag.endswith("}row"):
                cell.clear()


def _add_unread(rows: list[list[Any]], unread: Unread) -> None:
    """Set the cells of a sheet that calamine leaves empty or without their zeros."""
    if not unread:
        return
    height = max(len(rows), *(row for row, _ in unread))
    width = max(len(rows[0]) if rows else 0, *(column for _, column in unread))
    for row in rows:
        row += [""] * (width - len(row))
    rows += [[""] * width for _ in range(height - len(rows))]
    for (at, column), text in unread.items():
        rows[at - 1][column - 1] = text
