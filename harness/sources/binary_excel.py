"""The members of .xlsb files: records of a type, a size and a content ([MS-XLSB] 2.1.4)."""

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from harness.sources.extent import Extent, padded, width_of_zeros

# The types of records, [MS-XLSB] 2.3.2
_ROW = 0  # BrtRowHdr
_CELLS = range(2, 12)  # with a value, from BrtCellRk to BrtFmlaError
_RK, _ERRORS, _REALS = 2, (3, 11), (5, 9)  # BrtCellRk; BrtCellError, BrtFmlaError; BrtCellReal, ...
_FORMAT, _STYLE, _STYLES, _NO_STYLES = 44, 47, 617, 618  # BrtFmt, BrtXF, Brt{Begin,End}CellXFs
_SHEET = 156  # BrtBundleSh
# [MS-XLSB] 2.5.97.2
_ERROR_OF = {
    0x00: "#NULL!",
    0x07: "#DIV/0!",
    0x0F: "#VALUE!",
    0x17: "#REF!",
    0x1D: "#NAME?",
    0x24: "#NUM!",
    0x2A: "#N/A",
    0x2B: "#GETTING_DATA",
}


class RecordExtent(Extent):
    """As `Extent`, of a sheet of .xlsb; `width_of`: what `padded_records` found."""

    def __init__(self, file: BinaryIO | Any, width_of: dict[int, int]) -> None:
        self._width_of = width_of
        super().__init__(file)

    def _parse(self, file: BinaryIO | Any) -> None:
        row = 0
        for kind, content in _records(file.read()):
            if kind == _ROW:
                row = struct.unpack_from("<I", content)[0] + 1
            elif kind in _CELLS:
                column, style = struct.unpack_from("<II", content)
                self.count += 1
                self._rows.add(row)
                self._columns.add(column + 1)
                if kind in _ERRORS:
                    code = content[8]
                    self.unread[row, column + 1] = _ERROR_OF.get(code, f"error {code}")
                elif (width := self._width_of.get(style & 0xFFFFFF)) and kind in (_RK, *_REALS):
                    text = padded(_number(kind, content), width)
                    if isinstance(text, str):
                        self.unread[row, column + 1] = text


def negative_records(file: BinaryIO | Any) -> Iterator[tuple[int, int]]:
    """(row, column) from 1 of the cells of a sheet that hold negative numbers."""
    row = 0
    for kind, content in _records(file.read()):
        if kind == _ROW:
            row = struct.unpack_from("<I", content)[0] + 1
        elif kind in (_RK, *_REALS) and _number(kind, content) < 0:
            yield row, struct.unpack_from("<I", content)[0] + 1


def padded_records(styles: bytes) -> dict[int, int]:
    """{number of a cell style: digits} of those whose format is zeros alone, in xl/styles.bin."""
    width_of_format, width_of = {}, {}
    number: int | None = None
    for kind, content in _records(styles):
        if kind == _FORMAT and (width := width_of_zeros(_text(content, 2)[0])):
            width_of_format[struct.unpack_from("<H", content)[0]] = width
        elif kind in (_STYLES, _NO_STYLES):
            number = 0 if kind == _STYLES else None
        elif kind == _STYLE and number is not None:
            form = struct.unpack_from("<H", content, 2)[0]
            if form in width_of_format:
                width_of[number] = width_of_format[form]
            number += 1
    return width_of


def sheet_links(book: bytes) -> dict[str, str]:
    """{name of a sheet: the id of its relationship}, of xl/workbook.bin."""
    found = {}
    for kind, content in _records(book):
        if kind == _SHEET:
            link, end = _text(content, 8)
            found[_text(content, end)[0]] = link
    return found


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Raises struct.error for data that end within a record."""
    at = 0
    while at < len(data):
        kind, at = _leb128(data, at)
        size, at = _leb128(data, at)
        yield kind, data[at : at + size]
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


def _text(data: bytes, at: int) -> tuple[str, int]:
    """A text of two bytes a character after its length, and where it ends."""
    (length,) = struct.unpack_from("<I", data, at)
    end = at + 4 + 2 * length
    return data[at + 4 : end].decode("utf-16-le"), end


def _number(kind: int, content: bytes) -> float:
    """The number of a cell; of a BrtCellRk ([MS-XLSB] 2.5.122) an integer or the upper half of a
    double, in hundredths or not.
    """
    if kind != _RK:
        return float(struct.unpack_from("<d", content, 8)[0])
    (bits,) = struct.unpack_from("<I", content, 8)
    if bits & 2:
        number = float(struct.unpack("<i", struct.pack("<I", bits))[0] >> 2)
    else:
        number = float(struct.unpack("<d", struct.pack("<Q", (bits & ~3) << 32))[0])
    return number / 100 if bits & 1 else number
