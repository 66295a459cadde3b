"""Sheets of Excel and of LibreOffice."""

import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.sources import workbook
from harness.sources.cells import Cells, Layout
from harness.sources.files import need
from harness.sources.headed import COMMENT, Line, by_column, read_head, rows_below
from harness.sources.workbook import (
    NO_VALUE,
    Unread,
    check_document,
    check_workbook,
    find_padded,
    member_of,
)
from harness.wording import did_you_mean

EXCEL = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
# Of the members that a spreadsheet has (Open Document Format 1.3, part 2, 3.2)
_KINDS = (
    ("xl/workbook.xml", ".xlsx"),
    ("xl/workbook.bin", ".xlsb"),
    ("meta-inf/manifest.xml", ".ods"),
)


def read_excel(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    """The columns of a sheet, all of them if None, by calamine. Numbers in a format of zeros
    (00000) and, in .xlsx, errors (#N/A) are text, as Excel shows them. Raises DataError with the
    row.
    """
    calamine = need("python_calamine", "tables", f"{path}: Excel")
    # Loaded when used
    import pandas as pd

    ending = _ending_of(path)
    is_xml = ending in (".xlsx", ".xlsm")
    unread = check_workbook(path) if is_xml or ending == ".xlsb" else {}
    if ending == ".ods":
        check_document(path)
    try:
        with pd.ExcelFile(path, engine="calamine") as book:
            sheets = [str(name) for name in book.sheet_names]
            named = layout.sheet
            if isinstance(named, int) and 1 <= named <= len(sheets):
                named = sheets[named - 1]
            if named not in sheets:
                raise DataError(
                    f"{path}: no sheet {named!r}, only {', '.join(sheets)}."
                    f"{did_you_mean(str(named), sheets, quoted=True)} Set sheet to one of them."
                )
            if ending == ".xls":
                _refuse_sparse(path, book.book.get_sheet_by_name(named))
            grid = pd.read_excel(
                book, sheet_name=named, header=None, dtype=object, keep_default_na=False
            ).to_numpy(dtype=object)
    except (calamine.CalamineError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or not an Excel file."
        ) from error
    if is_xml:
        member = member_of(path, str(named))
        grid = _with_unread(grid, unread.get(member, {}))
        for (row, column), width in find_padded(path, member).items():
            if row > grid.shape[0] or column > grid.shape[1]:  # of cells below or beside the data
                continue
            number = grid[row - 1, column - 1]
            if isinstance(number, int | float) and float(number).is_integer() and number >= 0:
                grid[row - 1, column - 1] = f"{int(number):0{width}d}"
    mark = layout.comment
    lines: Iterator[Line] = (
        (row, COMMENT if mark and str(cells[0]).lstrip().startswith(mark) else cells)
        for row, cells in enumerate(grid.tolist(), start=1)
    )
    head = read_head(path, layout, columns, lines)
    kept = list(rows_below(head, layout, lines))
    cells = by_column(head, [cells for _, cells in kept])
    for name, read in cells.items():
        for (row, _), cell in zip(kept, read, strict=True):
            if cell is NO_VALUE:
                raise DataError(
                    f"{path}: row {row}, column {name!r}: {cell}. Open the file in Excel or "
                    "LibreOffice and save it, or store values."
                )
    return Cells(path, cells, [row for row, _ in kept], layout)


def _ending_of(path: Path) -> str:
    """The ending of a spreadsheet, by its content where it tells, as calamine goes by that."""
    try:
        with zipfile.ZipFile(path) as book:
            members = set(map(str.lower, book.namelist()))
    except (OSError, zipfile.BadZipFile):
        members = set()
    return next((kind for member, kind in _KINDS if member in members), path.suffix.lower())


def _refuse_sparse(path: Path, sheet: Any) -> None:
    """As `check_workbook`, for a sheet that calamine holds."""
    height, width = (index + 1 for index in sheet.end or (0, 0))
    if height * width > workbook.MAX_EMPTY:
        count = sum(cell != "" for row in sheet.iter_rows() for cell in row)
        workbook.refuse_sparse(str(path), count, height * width, f"row {height}")


def _with_unread(grid: NDArray[Any], unread: Unread) -> NDArray[Any]:
    """The cells of a sheet, with those that calamine leaves empty."""
    if not unread:
        return grid
    shape = np.max([grid.shape, *unread], axis=0)
    filled = np.full(shape, "", dtype=object)
    filled[: grid.shape[0], : grid.shape[1]] = grid
    for (row, column), text in unread.items():
        filled[row - 1, column - 1] = text
    return filled
