"""How large the sheets of an Excel file are, before they are read: readers make room for every
cell of the rectangle around those that hold something, and one cell in the last corner of a sheet
would ask for 549 GB.
"""

import re
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from xml.parsers import expat

from harness.errors import DataError
from harness.sources.mistaken import what_is

MAX_XML_BYTES = 4 * 2**30  # of all members, unpacked
MAX_EMPTY = 10_000_000  # cells of a rectangle, unless one in so many is filled:
MIN_FILLED = 1 / 20

_REFERENCE = re.compile(r"([A-Z]{1,3})([0-9]{1,7})")
_VALUES = ("v", "is", "f")  # inside of a cell that holds something, not only a style
_CHUNK_BYTES = 2**18

# What zipfile and expat raise for a file that is damaged, encrypted, or packed otherwise
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    RuntimeError,
    expat.ExpatError,
)


def check_workbook(path: Path) -> None:
    """Raise DataError for a file that is no workbook, or one that would fill the memory with empty
    cells.
    """
    try:
        with zipfile.ZipFile(path) as book:
            members = [one for one in book.infolist() if one.filename.lower().endswith(".xml")]
            if sum(one.file_size for one in members) > MAX_XML_BYTES:
                raise DataError(
                    f"{path}: its members unpack to more than {MAX_XML_BYTES:,} bytes. Give the "
                    "table as .parquet or .csv."
                )
            if not any(one.filename.lower().startswith("xl/") for one in members):
                raise ValueError("no member of it is a workbook's")
            for member in members:
                with book.open(member) as file:
                    _check_sheet(f"{path}: {member.filename}", _Extent(file))
    except _UNREADABLE as error:
        what = what_is(path, "table")
        if what is not None and "zip" not in what:  # a truncated workbook begins as a zip does
            raise DataError(f"{path}: not a workbook that is read, but {what}") from error
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or not an Excel file."
        ) from error


class _Extent:
    """The rectangle around the filled cells of a sheet, and how many there are."""

    def __init__(self, file: BinaryIO | Any) -> None:
        self.count = 0
        self._row = self._column = 0
        self._is_open = False
        # Rows and columns that have something in them
        self._rows: set[int] = set()
        self._columns: set[int] = set()
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.StartDoctypeDeclHandler = self._refuse
        while chunk := file.read(_CHUNK_BYTES):
            parser.Parse(chunk)
        parser.Parse(b"", True)

    @property
    def num_cells(self) -> int:
        return (
            (max(self._rows) - min(self._rows) + 1) * (max(self._columns) - min(self._columns) + 1)
            if self.count
            else 0
        )

    @property
    def last(self) -> str:
        column, letters = max(self._columns), ""
        while column:
            column, letter = divmod(column - 1, 26)
            letters = chr(ord("A") + letter) + letters
        return f"{letters}{max(self._rows)}"

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        kind = name if name == "c" else name.rpartition(":")[2]
        if kind in _VALUES and self._is_open:
            self._is_open = False
            self.count += 1
            self._rows.add(self._row)
            self._columns.add(self._column)
        elif kind == "c":
            reference = _REFERENCE.fullmatch(attributes.get("r", ""))
            if reference is None:
                self._column += 1
            else:
                self._row, self._column = int(reference[2]), _number(reference[1])
            self._is_open = True
        elif kind == "row":
            number = attributes.get("r", "")
            self._row = int(number) if number.isdecimal() else self._row + 1
            self._column = 0

    def _refuse(self, *_: object) -> None:
        raise ValueError("a member of it declares a document type")


@cache
def _number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number


def _check_sheet(where: str, extent: _Extent) -> None:
    if extent.num_cells > MAX_EMPTY and extent.count < MIN_FILLED * extent.num_cells:
        raise DataError(
            f"{where}: {extent.count:,} filled cells in a sheet of {extent.num_cells:,}, up to "
            f"{extent.last}: reading it would fill the memory with empty ones. Delete what stands "
            "far from the table."
        )
