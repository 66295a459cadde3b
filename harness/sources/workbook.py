"""How large the sheets of an Excel file are, before they are read: readers make room for every
cell of the rectangle around those that hold something, and one cell in the last corner of a sheet
would ask for 549 GB.
"""

import re
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree
from xml.parsers import expat

from harness.errors import DataError
from harness.sources.mistaken import what_is

MAX_XML_BYTES = 4 * 2**30  # of all members, unpacked
MAX_EMPTY = 10_000_000  # cells of a rectangle, unless one in so many is filled:
MIN_FILLED = 1 / 20
MAX_CELLS = 500_000_000  # some formats repeat a filled cell without writing it again

# (row, column) from 1, and the text of an error such as #N/A, or NO_VALUE
Unread = dict[tuple[int, int], str]
# As openpyxl and other programs write formulas, which compute nothing; compared by identity
NO_VALUE = "a formula whose value is not stored"

_REFERENCE = re.compile(r"([A-Z]{1,3})([0-9]{1,7})")
_ZEROS = re.compile(r"(?:\[\$[^\]]*\])?(0{2,})(?:;.*)?")  # a format of leading zeros
_VALUES = ("v", "is", "f")  # inside a cell that holds something, not only a style
_CHUNK_BYTES = 2**18
_BINARY = ".bin"  # members of .xlsb

# What zipfile and expat raise for a file that is damaged, encrypted, or compressed in another way
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    RuntimeError,
    expat.ExpatError,
    struct.error,
)


def check_workbook(path: Path) -> dict[str, Unread]:
    """{member: the cells of its sheet that readers leave empty}. Raises DataError for a file that
    is no workbook, or one that would fill the memory with empty cells.
    """
    unread = {}
    try:
        with zipfile.ZipFile(path) as book:
            members = [
                one for one in book.infolist() if one.filename.lower().endswith((".xml", _BINARY))
            ]
            if sum(one.file_size for one in members) > MAX_XML_BYTES:
                raise DataError(
                    f"{path}: its members unpack to more than {MAX_XML_BYTES:,} bytes. Give the "
                    "table as .parquet or .csv."
                )
            if not any(one.filename.lower().startswith("xl/") for one in members):
                raise ValueError("it has none of a workbook's members")
            for member in members:
                is_xml = not member.filename.lower().endswith(_BINARY)
                if not is_xml and not member.filename.lower().startswith("xl/worksheets/"):
                    continue
                with book.open(member) as file:
                    extent = _Extent(file) if is_xml else _RecordExtent(file)
                _check_sheet(f"{path}: {member.filename}", extent)
                unread[member.filename] = extent.unread
    except _UNREADABLE as error:
        what = what_is(path, "table")
        is_zip = what is not None and ("zip" in what or "Office" in what)
        if what is not None and not is_zip:  # a truncated workbook begins as a zip does
            raise DataError(f"{path}: not a supported workbook, but {what}") from error
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or not an Excel file."
        ) from error
    return unread


def check_document(path: Path) -> None:
    """As `check_workbook`, for the spreadsheets of LibreOffice (.ods)."""
    try:
        with zipfile.ZipFile(path) as book, book.open("content.xml") as file:
            if book.getinfo("content.xml").file_size > MAX_XML_BYTES:
                raise DataError(f"{path}: too large, unpacked. Give the table as .parquet or .csv.")
            _check_sheet(str(path), _OdsExtent(file))
    except (*_UNREADABLE, KeyError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or not a spreadsheet."
        ) from error


def member_of(path: Path, sheet: str) -> str:
    """The member of a workbook that holds a sheet. The file was checked."""
    with zipfile.ZipFile(path) as book:
        tree = ElementTree.fromstring(book.read("xl/workbook.xml"))
        links = ElementTree.fromstring(book.read("xl/_rels/workbook.xml.rels"))
        target_of = {link.get("Id"): link.get("Target", "") for link in links}
        targets = [
            target_of[value]
            for one in tree.iterfind(".//{*}sheet")
            if one.get("name") == sheet
            for key, value in one.attrib.items()
            if key.endswith("}id")
        ]
    part = targets[0].removeprefix("/xl/") if targets else ""
    return f"xl/{part}"


def find_padded(path: Path, member: str) -> dict[tuple[int, int], int]:
    """{(row, column) of a number shown with leading zeros, as by the format 00000: its width}, both
    from 1, in a sheet. The file was checked.
    """
    with zipfile.ZipFile(path) as book:
        if "xl/styles.xml" not in book.namelist():
            return {}
        width_of = _padded_styles(ElementTree.fromstring(book.read("xl/styles.xml")))
        if not width_of:
            return {}
        found = {}
        with book.open(member) as file:
            for _, cell in ElementTree.iterparse(file):
                reference = _REFERENCE.fullmatch(cell.get("r", ""))
                if cell.tag.endswith("}c") and reference and cell.get("s") in width_of:
                    found[int(reference[2]), _number(reference[1])] = width_of[cell.get("s", "")]
                if cell.tag.endswith("}row"):
                    cell.clear()
    return found


def _padded_styles(styles: ElementTree.Element) -> dict[str, int]:
    """{number of a cell style: digits} of those whose format is zeros alone."""
    width_of = {}
    for one in styles.iterfind(".//{*}numFmt"):
        if form := _ZEROS.fullmatch(one.get("formatCode", "")):
            width_of[one.get("numFmtId")] = len(form[1])
    kinds = styles.iterfind("{*}cellXfs/{*}xf")
    return {
        str(number): width_of[one.get("numFmtId")]
        for number, one in enumerate(kinds)
        if one.get("numFmtId") in width_of
    }


class _Extent:
    """The rectangle around the filled cells of a sheet, how many there are, and the `unread`."""

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
        self._parser = parser = expat.ParserCreate()
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
            reference = _REFERENCE.fullmatch(attributes.get("r", ""))
            if reference is None:
                self._column += 1
            else:
                self._row, self._column = int(reference[2]), _number(reference[1])
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


class _OdsExtent(_Extent):
    """The same of content.xml, whose cells and rows say how often they are repeated."""

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        kind = name.rpartition(":")[2]
        if kind == "table":
            self._row, self._next = 0, 1
        elif kind == "table-row":
            self._row, self._column = self._next, 0
            self._repeated = int(attributes.get("table:number-rows-repeated", "1"))
            self._next += self._repeated
        elif kind in ("table-cell", "covered-table-cell"):
            count = int(attributes.get("table:number-columns-repeated", "1"))
            if any(key.endswith("value-type") for key in attributes):
                self.count += count * self._repeated
                self._rows |= {self._row, self._row + self._repeated - 1}
                self._columns |= {self._column + 1, self._column + count}
            self._column += count


class _RecordExtent(_Extent):
    """The same of a sheet of .xlsb: records of a type, a size and a content ([MS-XLSB] 2.1.4)."""

    def _parse(self, file: BinaryIO | Any) -> None:
        data: bytes = file.read()
        at, row = 0, 0
        while at < len(data):
            kind, at = _leb128(data, at)
            size, at = _leb128(data, at)
            if kind == 0:  # BrtRowHdr
                row = struct.unpack_from("<I", data, at)[0] + 1
            elif 2 <= kind <= 11:  # cells with a value, from BrtCellRk to BrtFmlaError
                self.count += 1
                self._rows.add(row)
                self._columns.add(struct.unpack_from("<I", data, at)[0] + 1)
            at += size


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """A number in bytes of 7 bits, the lowest first, and where it ends."""
    number = shift = 0
    while True:
        (byte,) = struct.unpack_from("B", data, at)
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


@cache
def _number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number


def _check_sheet(where: str, extent: _Extent) -> None:
    if extent.num_cells > MAX_EMPTY:
        refuse_sparse(where, extent.count, extent.num_cells, extent.last)


def refuse_sparse(where: str, count: int, num_cells: int, last: str) -> None:
    """Raise DataError for a sheet of many cells of which few, or too many, are filled; `last`:
    the cell in its corner.
    """
    if count < MIN_FILLED * num_cells or num_cells > MAX_CELLS:
        raise DataError(
            f"{where}: {count:,} filled cells in a sheet of {num_cells:,}, up to {last}: reading "
            "it would fill the memory with empty ones. Delete the cells far from the table."
        )
