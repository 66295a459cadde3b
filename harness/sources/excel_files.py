"""Sheets of Excel and of LibreOffice."""

import datetime
import zipfile
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path
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
# Of the members that a spreadsheet has (Open Document Format 1.3, part 2, 3.2)
_KINDS = (
    ("xl/workbook.xml", ".xlsx"),
    ("xl/workbook.bin", ".xlsb"),
    ("meta-inf/manifest.xml", ".ods"),
)


def read_excel(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    """The columns of a sheet, all of them if None, by calamine, .xls by xlrd. Numbers in a format
    of zeros (00000) and errors (#N/A) are text, as Excel shows them. Raises DataError with the row.
    """
    ending = _ending_of(path)
    old = ending == ".xls"
    grid = read_old(path, layout.sheet) if old else _read_new(path, ending, layout.sheet)
    mark = layout.comment
    lines: Iterator[Line] = (
        (row, COMMENT if mark and str(cells[0]).lstrip().startswith(mark) else cells)
        for row, cells in enumerate(grid, start=1)
    )
    head = read_head(path, layout, columns, lines)
    kept = list(lines)
    found = None if mark or layout.skip_footer else _full_columns(head, kept)
    if found is None:
        kept = list(rows_below(head, layout, iter(kept)))
        found = by_column(head, [cells for _, cells in kept])
    rows = [row for row, _ in kept]
    for name, read in found.items():
        if not _WAYS.keys().isdisjoint(map(id, read)):
            row, cell = next(
                (row, one) for row, one in zip(rows, read, strict=True) if id(one) in _WAYS
            )
            raise DataError(f"{path}: row {row}, column {name!r}: {cell}. {_WAYS[id(cell)]}")
    return Cells(path, {name: _as_stored(of) for name, of in found.items()}, rows, layout)


def _ending_of(path: Path) -> str:
    """The ending of a spreadsheet, by its content where it tells, as calamine goes by that."""
    try:
        with zipfile.ZipFile(path) as book:
            members = set(map(str.lower, book.namelist()))
    except (OSError, zipfile.BadZipFile):
        members = set()
    return next((kind for member, kind in _KINDS if member in members), path.suffix.lower())


def _full_columns(head: Head, kept: Sequence[Line]) -> dict[str, list[Any]] | None:
    """{name: cells} of the columns to read; None if rows may be empty or of another length."""
    columns = list(zip(*(cells for _, cells in kept), strict=True))
    if len(columns) != len(head.names) or all("" in one or None in one for one in columns):
        return None
    return {name: list(columns[head.names.index(name)]) for name in head.wanted}


def _as_stored(cells: list[Any]) -> NDArray[np.float64] | list[Any]:
    """Numbers, of which all are floats, as an array or with whole ones as integers; dates with
    a time.
    """
    kinds = set(map(type, cells))
    if kinds == {float} and np.abs(numbers := np.array(cells)).max() < _EXACT:
        return np.asarray(numbers + 0.0)  # 0 for -0
    if float in kinds:
        cells = [int(one) if type(one) is float and one.is_integer() else one for one in cells]
    if datetime.date in kinds:
        clock = datetime.time()
        return [
            datetime.datetime.combine(one, clock) if type(one) is datetime.date else one
            for one in cells
        ]
    return cells


def _read_new(path: Path, ending: str, named: str | int) -> list[list[Any]]:
    """The cells of the rows of a sheet, "" where one is empty."""
    calamine = need("python_calamine", "tables", f"{path}: Excel")
    unread = check_document(path) if ending == ".ods" else check_workbook(path)
    try:
        with path.open("rb") as file:
            book = calamine.load_workbook(file)
            tables = (
                one for one in book.sheets_metadata if one.typ == calamine.SheetTypeEnum.WorkSheet
            )
            sheet = choose_sheet(path, named, [str(one.name) for one in tables])
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
    if ending != ".ods" and datetime.time in set(map(type, chain.from_iterable(rows))):
        for row, column in _negative(path, member):
            is_there = row <= len(rows) and column <= width
            if is_there and type(rows[row - 1][column - 1]) is datetime.time:
                rows[row - 1][column - 1] = NEGATIVE
    return rows


def _negative(path: Path, member: str) -> Iterator[tuple[int, int]]:
    """(row, column) from 1 of the cells of a sheet that hold negative numbers. The file was
    checked.
    """
    with zipfile.ZipFile(path) as book, book.open(member) as file:
        if member.lower().endswith(BINARY):
            yield from negative_records(file)
            return
        for _, cell in ElementTree.iterparse(file):
            if cell.tag.endswith("}c"):
                at = position(cell.get("r", ""))
                if at and (cell.findtext("{*}v") or "").startswith("-"):
                    yield at
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
