"""Spreadsheets of LibreOffice (.ods): how large their sheets are, and what readers leave out."""

import re
import zipfile
from pathlib import Path
from typing import Any
from xml.parsers import expat

from harness.errors import DataError
from harness.sources.extent import MAX_EMPTY, NO_VALUE, Extent, Unread, check_sheet
from harness.sources.workbook import MAX_XML_BYTES, UNREADABLE

# What a cell shows whose formula has no result, and what a number in a format of zeros shows
_ERROR = re.compile(r"#(?:DIV/0!|N/A|NAME\?|NULL!|NUM!|REF!|VALUE!)|Err:[0-9]{3}")
_CELLS = ("table-cell", "covered-table-cell")
_BREAKS = {"tab": "\t", "line-break": "\n"}
_TYPE, _VALUE, _FORMULA = "office:value-type", "office:value", "table:formula"
_PADDED = re.compile(r"0[0-9]+")
_DIGITS = re.compile(r"-?[1-9][0-9]{15,}")  # more than float64 holds


def check_document(path: Path) -> dict[str, Unread]:
    """{sheet: cells of which readers leave something out, such as tabs or digits of a number}.
    Raises DataError as `check_workbook`.
    """
    try:
        with zipfile.ZipFile(path) as book, book.open("content.xml") as file:
            if book.getinfo("content.xml").file_size > MAX_XML_BYTES:
                raise DataError(f"{path}: too large, unpacked. Give the table as .parquet or .csv.")
            extent = _OdsExtent(file)
            check_sheet(str(path), extent)
            if extent.has_breaks:
                file.seek(0)
                extent = _OdsExtent(file, texts=True)
    except (*UNREADABLE, KeyError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or not a spreadsheet."
        ) from error
    return extent.unread_of


class _OdsExtent(Extent):
    """As `Extent`, of content.xml, whose cells and rows say how often they are repeated; of all its
    sheets together. `texts`: whether texts with tabs and line breaks are among what readers leave
    out, as calamine and pandas do.
    """

    def __init__(self, file: Any, *, texts: bool = False) -> None:
        self.has_breaks = False
        self._with_texts = texts
        self._is_broken = False  # the text of the cell
        self.unread_of: dict[str, Unread] = {}
        self._num_unread = 0
        self._cell: dict[str, str] | None = None  # attributes of one whose text counts
        self._text: list[str] = []
        self._is_note = False
        super().__init__(file)

    def _parse(self, file: Any) -> None:
        self._parser = expat.ParserCreate()
        self._parser.EndElementHandler = self._end
        self._feed(file)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        kind = name.rpartition(":")[2]
        if kind == "table":
            self.unread = self.unread_of.setdefault(attributes.get("table:name", ""), {})
            self._row, self._next = 0, 1
        elif kind == "table-row":
            self._row, self._column = self._next, 0
            self._repeated = int(attributes.get("table:number-rows-repeated", "1"))
            self._next += self._repeated
        elif kind in _CELLS:
            self._count = int(attributes.get("table:number-columns-repeated", "1"))
            is_formula = _FORMULA in attributes
            if is_formula or any(key.endswith("value-type") for key in attributes):
                self.count += self._count * self._repeated
                self._rows |= {self._row, self._row + self._repeated - 1}
                self._columns |= {self._column + 1, self._column + self._count}
            is_number = attributes.get(_TYPE) == "float"
            is_text = self._with_texts and attributes.get(_TYPE) == "string"
            self._cell = attributes if is_formula or is_number or is_text else None
            self._text, self._is_broken = [], False
            self._column += self._count
        elif kind == "annotation":
            self._is_note = True
        elif not self._is_note:
            self._add_text(kind, attributes)

    def _add_text(self, kind: str, attributes: dict[str, str]) -> None:
        """What begins within a cell: a paragraph, or what stands for white space in one."""
        if kind in _BREAKS:
            self.has_breaks = self._is_broken = True
            self._text.append(_BREAKS[kind])
        elif kind == "s":
            self._text.append(" " * int(attributes.get("text:c", "1")))
        elif kind == "p" and self._cell is not None:
            if self._text:
                self._text.append("\n")
            self._parser.CharacterDataHandler = self._text.append

    def _end(self, name: str) -> None:
        kind = name.rpartition(":")[2]
        if kind == "annotation":
            self._is_note = False
        elif kind == "p":
            self._parser.CharacterDataHandler = None
        elif kind in _CELLS and self._cell is not None:
            text = "".join(self._text)
            unread = text if self._is_broken else _unread(self._cell, text.strip())
            if unread is not None:
                self._add(unread)
            self._cell = None

    def _add(self, text: str) -> None:
        self._num_unread += self._count * self._repeated
        if self._num_unread > MAX_EMPTY:
            raise ValueError(f"{text} in {self._num_unread:,} cells")
        for row in range(self._row, self._row + self._repeated):
            for column in range(self._column - self._count, self._column):
                self.unread[row, column + 1] = text


def _unread(cell: dict[str, str], text: str) -> str | None:
    """What readers do not see of a cell that shows this text."""
    if _FORMULA in cell:
        if _ERROR.fullmatch(text):
            return text
        if _TYPE not in cell:
            return NO_VALUE
    if cell.get(_TYPE) == "float" and _DIGITS.fullmatch(cell.get(_VALUE, "")):
        return cell[_VALUE]
    is_padded = cell.get(_TYPE) == "float" and _PADDED.fullmatch(text)
    return text if is_padded and float(cell.get(_VALUE, "nan")) == int(text) else None
