"""Sheets of Excel and of LibreOffice."""

import datetime
import zipfile
from collections.abc import Collection, Iterator
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
from harness.sources.headed import COMMENT, Line, by_column, read_head, rows_below
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
    if ending == ".xls":
        grid = read_old(path, layout.sheet)
    else:
        grid = _read_new(path, ending, layout.sheet).tolist()
    mark = layout.comment
    lines: Iterator[Line] = (
        (row, COMMENT if mark and str(cells[0]).lstrip().startswith(mark) else cells)
        for row, cells in enumerate(grid, start=1)
    )
    head = read_head(path, layout, columns, lines)
    kept = list(rows_below(head, layout, lines))
    cells = by_column(head, [cells for _, cells in kept])
    for name, read in cells.items():
        for (row, _), cell in zip(kept, read, strict=True):
            way = _WAYS.get(id(cell))
            if way is not None:
                raise DataError(f"{path}: row {row}, column {name!r}: {cell}. {way}")
    return Cells(path, cells, [row for row, _ in kept], layout)


def _ending_of(path: Path) -> str:
    """The ending of a spreadsheet, by its content where it tells, as calamine goes by that."""
    try:
        with zipfile.ZipFile(path) as book:
            members = set(map(str.lower, book.namelist()))
    except (OSError, zipfile.BadZipFile):
        members = set()
    return next((kind for member, kind in _KINDS if member in members), path.suffix.lower())


def _read_new(path: Path, ending: str, named: str | int) -> NDArray[Any]:
    """The cells (rows, columns) of a sheet, "" where one is empty."""
    calamine = need("python_calamine", "tables", f"{path}: Excel")
    # Loaded when used
    import pandas as pd

    unread = check_document(path) if ending == ".ods" else check_workbook(path)
    try:
        with path.open("rb") as file, pd.ExcelFile(file, engine="calamine") as book:
            sheet = choose_sheet(path, named, [str(name) for name in book.sheet_names])
            grid = pd.read_excel(
                book, sheet_name=sheet, header=None, dtype=object, keep_default_na=False
            ).to_numpy(dtype=object)
    except BaseException as error:
        known = (calamine.CalamineError, ValueError, KeyError)
        # A panic of Rust is no Exception
        if not isinstance(error, known) and type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or not an Excel file."
        ) from error
    member = sheet if ending == ".ods" else member_of(path, sheet)
    grid = _with_unread(grid, unread.get(member, {}))
    if ending in (".xlsx", ".xlsm"):
        for (row, column), width in find_padded(path, member).items():
            if row > grid.shape[0] or column > grid.shape[1]:  # of cells below or beside the data
                continue
            grid[row - 1, column - 1] = padded(grid[row - 1, column - 1], width)
    cells = grid.ravel().tolist()
    times = {at for at, cell in enumerate(cells) if type(cell) is datetime.time}
    if times and ending != ".ods":
        for row, column in _negative(path, member):
            if (row - 1) * grid.shape[1] + column - 1 in times:
                grid[row - 1, column - 1] = NEGATIVE
    return grid


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


def _with_unread(grid: NDArray[Any], unread: Unread) -> NDArray[Any]:
    """The cells of a sheet, with those that calamine leaves empty or without their zeros."""
    if not unread:
        return grid
    shape = np.max([grid.shape, *unread], axis=0)
    filled = np.full(shape, "", dtype=object)
    filled[: grid.shape[0], : grid.shape[1]] = grid
    for (row, column), text in unread.items():
        filled[row - 1, column - 1] = text
    return filled
