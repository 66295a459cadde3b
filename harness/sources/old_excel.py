"""Workbooks of Excel before 2007 (.xls), by xlrd: calamine leaves cells that hold an error empty,
and makes room for all sheets before one can ask how large they are.
"""

import datetime
from io import StringIO
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.sources import extent
from harness.sources.extent import padded, width_of_zeros
from harness.sources.files import need
from harness.sources.mistaken import what_is
from harness.sources.workbook import choose_sheet

_DURATIONS = ("[h", "[m", "[s")
_ENCRYPTED = "encrypted"
# Calamine would give the time of day of -0.25 as 18:00; compared by identity
NEGATIVE = "a negative number in the format of a date or time, which Excel shows as ####"


def read_old(path: Path, named: str | int) -> list[list[Any]]:
    """The cells of the rows of a sheet, "" where one is empty. Raises DataError."""
    xlrd = need("xlrd", "tables", f"{path}: Excel")
    try:
        with xlrd.open_workbook(
            path, StringIO(), on_demand=True, formatting_info=True, ragged_rows=True
        ) as book:
            sheet = book.sheet_by_name(choose_sheet(path, named, book.sheet_names()))
            rows = [sheet.row(number) for number in range(sheet.nrows)]
            width = max(map(_width, rows), default=0)
            _refuse_sparse(path, rows, width)
            return [
                [_value(book, cell) for cell in row[:width]] + [""] * (width - len(row))
                for row in rows
            ]
    except DataError:
        raise
    except Exception as error:  # xlrd raises any, for a file that is damaged
        if _ENCRYPTED in str(error):
            raise DataError(f"{path}: an encrypted workbook. Remove its password.") from error
        if (what := what_is(path, "table")) is not None and "xls" not in what:
            raise DataError(f"{path}: not a supported workbook, but {what}") from error
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or not an Excel file."
        ) from error


def _width(row: list[Any]) -> int:
    """Up to the last cell that holds something."""
    return next((at for at in range(len(row), 0, -1) if row[at - 1].value != ""), 0)


def _refuse_sparse(path: Path, rows: list[list[Any]], width: int) -> None:
    if len(rows) * width > extent.MAX_EMPTY:
        count = sum(cell.value != "" for row in rows for cell in row)
        extent.refuse_sparse(str(path), count, len(rows) * width, f"row {len(rows)}")


def _value(book: Any, cell: Any) -> Any:
    """What a cell holds, as calamine and pandas give it."""
    xlrd = need("xlrd", "tables", "Excel")
    value = cell.value
    if cell.ctype == xlrd.XL_CELL_ERROR:
        return xlrd.error_text_from_code.get(value, f"error {value}")
    if cell.ctype == xlrd.XL_CELL_BOOLEAN:
        return bool(value)
    if cell.ctype not in (xlrd.XL_CELL_NUMBER, xlrd.XL_CELL_DATE):
        return value
    form = book.format_map[book.xf_list[cell.xf_index].format_key].format_str
    if cell.ctype == xlrd.XL_CELL_NUMBER:
        whole = int(value) if value.is_integer() and abs(value) < 2**53 else value
        width = width_of_zeros(form)
        return whole if width is None else padded(whole, width)
    if form.lower().startswith(_DURATIONS):
        return datetime.timedelta(days=value)
    if value < 0:
        return NEGATIVE
    moment = xlrd.xldate.xldate_as_datetime(value, book.datemode)
    return moment.time() if 0 <= value < 1 else moment
