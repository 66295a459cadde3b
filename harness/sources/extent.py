"""The rectangle around the filled cells of a sheet, before it is read: readers make room for every
cell of it, and one cell in the last corner of a sheet would ask for 549 GB.
"""

import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, BinaryIO
from xml.parsers import expat

from harness.errors import DataError

MAX_EMPTY = 10_000_000  # cells of a rectangle, unless one in so many is filled:
MIN_FILLED = 1 / 20
MAX_CELLS = 500_000_000  # some formats repeat a filled cell without writing it again

# (row, column) from 1, and the text of an error such as #N/A, of a number with its zeros, or
# NO_VALUE
Unread = dict[tuple[int, int], str]
# As openpyxl and other programs write formulas, which compute nothing; compared by identity
NO_VALUE = "a formula whose value is not stored"

_REFERENCE = re.compile(r"([A-Z]{1,3})([0-9]{1,7})")
_ZEROS = re.compile(r"(?:\[\$[^\]]*\])?(0{2,})(?:;.*)?")  # a format of leading zeros
_VALUES = ("v", "is", "f")  # inside a cell that holds something, not only a style
_CHUNK_BYTES = 2**18
_COLUMNS = re.compile(rb'<c(?: r="([A-Z]{1,3})[0-9]{1,7}")?[\s/>]')
_ROWS = re.compile(rb'<c r="[A-Z]+([0-9]+)"')
# A cell beyond column Z or row 99,999, or one that does not say where it is
_FAR = re.compile(rb'<c(?! r="[A-Z][1-9][0-9]{0,4}")[\s/>]')
# Formulas, errors, prefixes, comments and what stands for other characters; each has this byte,
# which is found soonest
_ODD = {
    b"": re.compile(rb"<f[\s/>]"),
    b"\0": re.compile(b"\0"),
    b'"': re.compile(b'"e"'),
    b"'": re.compile(b"'e'"),
    b":": re.compile(rb":(?:c|f)[\s/>]"),
    b"!": re.compile(b"<!"),
    b"&": re.compile(b"&#"),
}


def width_of_zeros(form: str) -> int | None:
    """How many digits a number format of zeros alone (00000) shows; None for other formats."""
    found = _ZEROS.fullmatch(form)
    return None if found is None else len(found[1])


def padded(number: Any, width: int) -> Any:
    """A whole number as such a format shows it; other cells as they are."""
    if not isinstance(number, int | float) or number < 0 or not float(number).is_integer():
        return number
    return f"{int(number):0{width}d}"


def position(reference: str) -> tuple[int, int] | None:
    """(row, column) from 1 of a cell such as B7."""
    found = _REFERENCE.fullmatch(reference)
    return None if found is None else (int(found[2]), _number(found[1]))


class Extent:
    """The rectangle around the filled cells of a sheet, how many there are, and those that readers
    leave empty (`unread`).
    """

    def __init__(self, file: BinaryIO | Any) -> None:
        self.count = 0
        self.unread: Unread = {}
        self._type = ""
        self._row = self._column = 0
        self._is_open = False
        # Rows and columns that have something in them
        self._rows: set[int] = set()
        self._columns: set[int] = set()
        self._parse(file)

    def _parse(self, file: BinaryIO | Any) -> None:
        self._parser = expat.ParserCreate()
        self._feed(file)

    def _feed(self, file: BinaryIO | Any) -> None:
        parser = self._parser
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
        if kind in ("c", "row"):
            self._parser.CharacterDataHandler = None
        elif kind == "f" and self._is_open and self._type != "str":
            # A text that is "" is stored as nothing
            self.unread[self._row, self._column] = NO_VALUE
        elif kind == "v" and (self._type == "e" or (self._row, self._column) in self.unread):
            self._parser.CharacterDataHandler = self._value
        if kind in _VALUES and self._is_open:
            self._is_open = False
            self.count += 1
            self._rows.add(self._row)
            self._columns.add(self._column)
        elif kind == "c":
            at = position(attributes.get("r", ""))
            self._row, self._column = at or (self._row, self._column + 1)
            self._is_open, self._type = True, attributes.get("t", "")
        elif kind == "row":
            number = attributes.get("r", "")
            self._row = int(number) if number.isdecimal() else self._row + 1
            self._column = 0
        elif kind not in _VALUES:  # beside the cells: rules have formulas, too
            self._is_open = False
            self._parser.CharacterDataHandler = None

    def _value(self, text: str) -> None:
        cell = self._row, self._column
        if self._type == "e" and text.strip():
            before = self.unread.get(cell, NO_VALUE)
            self.unread[cell] = text if before is NO_VALUE else before + text
        elif text.strip():
            self.unread.pop(cell, None)

    def _refuse(self, *_: object) -> None:
        raise ValueError("one of its members declares a document type")


def is_plain(file: BinaryIO | Any) -> bool:
    """Whether a member of a workbook, by its tags alone, has no cells that readers leave empty and
    not too many of them: what `Extent` finds of any member, in ten times the time. Whether it is
    well formed is left to readers.
    """
    is_near = True
    for part in _parts(file):
        is_odd = any(byte in part and odd.search(part) for byte, odd in _ODD.items())
        if is_odd or len(part) > 3 * _CHUNK_BYTES:
            return False
        is_near = is_near and not _FAR.search(part)
    return is_near or _is_dense(file)


def _is_dense(file: BinaryIO | Any) -> bool:
    """Whether most cells of the rectangle around those of a sheet are filled."""
    file.seek(0)
    rows: set[bytes] = set()
    columns: set[bytes] = set()
    count = 0
    for part in _parts(file):
        columns |= set(_COLUMNS.findall(part))
        rows |= set(_ROWS.findall(part))
        count += part.count(b"<v>") + part.count(b"<is>")
    if b"" in columns:  # cells that do not say where they are
        return False
    numbers = list(map(int, rows)), [_number(letters.decode()) for letters in columns]
    size = math.prod(max(of) - min(of) + 1 for of in numbers) if rows else 0
    return size <= MAX_EMPTY or not _is_sparse(count, size)


def _parts(file: BinaryIO | Any) -> Iterator[bytes]:
    """A file in parts that end before a tag, or where none begins for long."""
    left = b""
    while chunk := file.read(_CHUNK_BYTES):
        left += chunk
        end = max(0, left.rfind(b"<"))
        if len(left) - end > 2 * _CHUNK_BYTES:
            end = len(left)
        if end:
            yield left[:end]
        left = left[end:]
    yield left


@cache
def _number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number


def check_sheet(where: str, extent: Extent) -> None:
    """Raise DataError for a sheet that would fill the memory with empty cells."""
    if extent.num_cells > MAX_EMPTY:
        refuse_sparse(where, extent.count, extent.num_cells, extent.last)


def _is_sparse(count: int, num_cells: int) -> bool:
    return count < MIN_FILLED * num_cells or num_cells > MAX_CELLS


def refuse_sparse(where: str, count: int, num_cells: int, last: str) -> None:
    """Raise DataError for a sheet of many cells of which few, or too many, are filled; `last`:
    the cell in its corner.
    """
    if _is_sparse(count, num_cells):
        raise DataError(
            f"{where}: {count:,} filled cells in a sheet of {num_cells:,}, up to {last}: reading "
            "it would fill the memory with empty ones. Delete the cells far from the table."
        )
