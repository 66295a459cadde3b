"""Workbooks of Excel (.xlsx, .xlsm, .xlsb): how large their sheets are, before they are read, and
what readers leave out of them.
"""

import struct
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from harness.errors import DataError
from harness.sources.binary_excel import RecordExtent, padded_records, sheet_links
from harness.sources.extent import (
    Extent,
    Unread,
    check_sheet,
    is_plain,
    position,
    width_of_zeros,
)
from harness.sources.mistaken import what_is
from harness.wording import did_you_mean

MAX_XML_BYTES = 4 * 2**30  # of all members, unpacked
BINARY = ".bin"  # members of .xlsb

# What zipfile and expat raise for a file that is damaged, encrypted, or compressed in another way
UNREADABLE = (
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
                one for one in book.infolist() if one.filename.lower().endswith((".xml", BINARY))
            ]
            if sum(one.file_size for one in members) > MAX_XML_BYTES:
                raise DataError(
                    f"{path}: its members unpack to more than {MAX_XML_BYTES:,} bytes. Give the "
                    "table as .parquet or .csv."
                )
            if not any(one.filename.lower().startswith("xl/") for one in members):
                raise ValueError("it has none of a workbook's members")
            styles = "xl/styles.bin"
            width_of = padded_records(book.read(styles)) if styles in book.namelist() else {}
            for member in members:
                is_xml = not member.filename.lower().endswith(BINARY)
                if not is_xml and not member.filename.lower().startswith("xl/worksheets/"):
                    continue
                if is_xml:
                    with book.open(member) as file:
                        if is_plain(file):
                            continue
                with book.open(member) as file:
                    extent = Extent(file) if is_xml else RecordExtent(file, width_of)
                check_sheet(f"{path}: {member.filename}", extent)
                unread[member.filename] = extent.unread
    except UNREADABLE as error:
        what = what_is(path, "table")
        is_zip = what is not None and ("zip" in what or "Office" in what)
        if what is not None and not is_zip:  # a truncated workbook begins as a zip does
            raise DataError(f"{path}: not a supported workbook, but {what}") from error
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or not an Excel file."
        ) from error
    return unread


def member_of(path: Path, sheet: str) -> str:
    """The member of a workbook that holds a sheet. The file was checked."""
    with zipfile.ZipFile(path) as book:
        if "xl/workbook.bin" in book.namelist():
            main = "xl/_rels/workbook.bin.rels"
            link_of = sheet_links(book.read("xl/workbook.bin"))
        else:
            main = "xl/_rels/workbook.xml.rels"
            link_of = {
                one.get("name", ""): value
                for one in ElementTree.fromstring(book.read("xl/workbook.xml")).iterfind(
                    ".//{*}sheet"
                )
                for key, value in one.attrib.items()
                if key.endswith("}id")
            }
        links = ElementTree.fromstring(book.read(main))
    target_of = {link.get("Id"): link.get("Target", "") for link in links}
    return f"xl/{target_of.get(link_of.get(sheet), '').removeprefix('/xl/')}"


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
                at = position(cell.get("r", ""))
                if cell.tag.endswith("}c") and at and cell.get("s") in width_of:
                    found[at] = width_of[cell.get("s", "")]
                if cell.tag.endswith("}row"):
                    cell.clear()
    return found


def _padded_styles(styles: ElementTree.Element) -> dict[str, int]:
    """{number of a cell style: digits} of those whose format is zeros alone."""
    width_of = {}
    for one in styles.iterfind(".//{*}numFmt"):
        if width := width_of_zeros(one.get("formatCode", "")):
            width_of[one.get("numFmtId")] = width
    kinds = styles.iterfind("{*}cellXfs/{*}xf")
    return {
        str(number): width_of[one.get("numFmtId")]
        for number, one in enumerate(kinds)
        if one.get("numFmtId") in width_of
    }


def choose_sheet(path: Path, named: str | int, sheets: list[str]) -> str:
    """The sheet of a name or of a number from 1. Raises DataError."""
    if isinstance(named, int) and 1 <= named <= len(sheets):
        named = sheets[named - 1]
    if named not in sheets:
        raise DataError(
            f"{path}: no sheet {named!r}, only {', '.join(sheets)}."
            f"{did_you_mean(str(named), sheets, quoted=True)} Set sheet to one of them."
        )
    return str(named)
