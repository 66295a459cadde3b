"""An Excel file that would fill the memory is refused before it is read."""

import re
import time
import zipfile
from io import BytesIO
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from harness.errors import DataError
from harness.sources.extent import MAX_EMPTY, Extent, is_plain
from harness.sources.tables import Table
from harness.sources.workbook import check_workbook

SHEET = "xl/worksheets/sheet1.xml"


def workbook(path: Path, sheet: str, name: str = SHEET) -> Path:
    """An Excel file of two rows whose sheet is given in XML."""
    pd.DataFrame({"a": [1, 2], "b": [3, 4]}).to_excel(path, index=False)
    with zipfile.ZipFile(path) as book:
        parts = {one: book.read(one) for one in book.namelist()}
    parts["xl/_rels/workbook.xml.rels"] = parts["xl/_rels/workbook.xml.rels"].replace(
        b"worksheets/sheet1.xml", name.removeprefix("xl/").encode()
    )
    parts[name] = sheet.replace("<SHEET>", "<worksheet xmlns='x'><sheetData>").encode()
    if name != SHEET:
        del parts[SHEET]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        for one, content in parts.items():
            book.writestr(one, content)
    return path


def prefixed(text: str) -> str:
    return re.sub(r"<(/?)(?=\w)", r"<\1p:", text)


END = "</sheetData></worksheet>"
CORNER = '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
FIRST = '<row r="1"><c r="A1"><v>1</v></c></row>'


@pytest.mark.parametrize(
    "sheet",
    [
        f"<SHEET>{FIRST}{CORNER}{END}",
        f"<worksheet><dimension ref='A1:B2'/><sheetData>{FIRST}{CORNER}{END}",
        f"<SHEET>{FIRST}<row r='1048576'>{'<c><v>1</v></c>' * 99}</row>{END}",
        f"<SHEET>{FIRST}<row><c z='>' q=' r=\"A1\"' r='XFD1048576'><v>1</v></c></row>{END}",
        f"<SHEET>{FIRST}<row><c{' ' * 2**20} r='XFD1048576'><f>1</f></c></row>{END}",
        f"<p:worksheet xmlns:p='x'><p:sheetData>{prefixed(FIRST + CORNER + END)}",
    ],
    ids=["corner", "false dimension", "no references", "attributes", "blanks", "prefixes"],
)
def test_a_cell_far_away_is_refused(tmp_path: Path, sheet: str) -> None:
    for name in (SHEET, "xl/elsewhere.xml"):
        path = workbook(tmp_path / "a.xlsx", sheet, name)
        began = time.monotonic()
        with pytest.raises(DataError, match=r"filled cells in a sheet of .* far from the table"):
            Table(str(path), features=["a"])
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "sheet",
    [
        f"<!DOCTYPE x [<!ENTITY a 'XFD1048576'>]><SHEET>{FIRST}{END}",
        "<SHEET>",
        "",
        f"<SHEET>{FIRST}{'<a>' * 200_000}",
    ],
)
def test_a_sheet_that_is_none_is_refused(tmp_path: Path, sheet: str) -> None:
    with pytest.raises(DataError, match=r"a\.xlsx: cannot be read: "):
        Table(str(workbook(tmp_path / "a.xlsx", sheet)), features=["a"])


def test_another_kind_of_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
        archive.writestr("content.xml", "<table number-rows-repeated='1048576'/>")
    with pytest.raises(DataError, match="it has none of a workbook's members"):
        Table(str(tmp_path / "a.xlsx"), features=["a"])


def test_empty_cells_with_a_style_and_tables_far_down_are_fine(tmp_path: Path) -> None:
    styled = f"<SHEET>{FIRST}<row r='1048576'><c r='XFD1048576' s='1'/></row></sheetData>"
    styled += "<pageMargins left='1'/></worksheet>"
    check_workbook(workbook(tmp_path / "a.xlsx", styled))
    low = "".join(
        f"<row r='{row}'><c r='XFC{row}'><v>1</v></c></row>" for row in range(9**6, 9**6 + 9)
    )
    check_workbook(workbook(tmp_path / "b.xlsx", f"<SHEET>{low}{END}"))


CELLS = (
    '<c r="B7" s="1"><v>1</v></c>',
    '<c r="C9" t="inlineStr"><is><t>x &lt;c r="ZZ99"></t></is></c>',
    "<c r='D9'><v>1</v></c>",
    '<c s="1" r="XFD1048576"><v>1</v></c>',
    '<c\nr="XFD1048576"><v>1</v></c>',
    '<c r="E2" t="e"><v>#N/A</v></c>',
    '<c r="F2" t = "e"><v>#N/A</v></c>',
    "<c r='G2' t='&#101;'><v>#N/A</v></c>",
    '<c r="H2"><f>1+1</f></c>',
    '<c r="H3"><f\n/></c>',
    "<c><v>1</v></c>",
    '<c r="XFD1048576"/>',
    '<!-- --><c r="A1"><v>2</v></c>',
)


def test_what_tags_tell_of_a_sheet_is_what_a_parser_tells() -> None:
    accepted = 0
    for chosen in product(CELLS, repeat=2):
        sheet = f'<worksheet><sheetData><row r="1">{"".join(chosen)}</row></sheetData></worksheet>'
        for data in (sheet.encode(), sheet.encode("utf-16")):
            parsed = Extent(BytesIO(data))
            if is_plain(BytesIO(data)):
                accepted += 1
                assert not parsed.unread, chosen
                assert parsed.num_cells <= MAX_EMPTY, chosen
    assert accepted == 4 + 1  # two cells as Excel writes them, and an empty one beside itself
