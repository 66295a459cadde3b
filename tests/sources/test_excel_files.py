"""Spreadsheets of older Excel and of LibreOffice, and numbers that are shown with zeros."""

import base64
import zipfile
import zlib
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from harness.errors import DataError
from harness.sources.tables import Table

# n, t, d; 1.5, "a", 2026-01-31; 2, "ü", 2026-02-01 12:00, written by xlwt 1.3
XLS = (
    b"c-rk)O=uHA6#izqX?{qPO`D3TQbNJ1{W*vpytJ!Q?J1>t@fS2TIY=dykc%F)T5}WxK~TID>cLCZi$CZ=Zytn*9t1"
    b"&1^yo=Y@Q`MG^LDqUH9`YgFwD2SH*emXxAQXd<|q566f4g^?5SWCM$v|v9YlMbP7npXiV3pYwi3NEKxAwDR|p1ZB"
    b"HMj<*74e}=1|Rd1riU8m&AcjL?>_#6EnGNaviacV@L}X!w7MKJEVyq!BKTGKh3<0`F(ErocSKsTw^{$ZOh^qO4h`"
    b"{Za0gM$Ue43px*nKeLk>e2fFb}W$~r!!fETn-u#*L*;X<18euGeW_moE%jQ)*in|B_M+w8J)bQ9?8F9*j1$?)Yz&"
    b"CHXzesBR`sxKp|6`@z{|9}5Cb5w|*g$_n8o(^<Q@pB*2xFI_ECw>^Lb{60lq+DO)X5PQh%!WJqH0K;0la6JEB1^I"
    b"UQ1!(8AMr*@rp7jw(7mFZ&Oo~)=AdP@;Tw0CR<c2uyI*=kaL7BZOeRsJqDRy;kRyLxrce2qNK8avfC97%yFBmZ0)"
    b"Chb~4^sTkGU)Bp1INe9~L|Y;7lbalCRNzWCmnM<0z>hWynthaoW}Zr@UPYI&t_cb<>T6Tj_30cpCi+wPGW#gbZHg"
    b"cx(Drbb6B*Q7gE%3G}Rz9>Vii{ZF*+6(qpqvO~l#dNbI*;_X7mh2sJdvj*SaJ?lxT^QV$5Tmjak5p6IJ%1qt4Gj$"
    b"q4Gj$qjn;zT`=@i;Hr#u^y3hOF?>b9FHT{{SWpM~I^c3hn;(p|)%;S7h`Lh8&;k`?&(Z~B<sBoBi&tn=>9LIFi`A"
    b"h%DME&nsv!nU<mQb_(*P4m*ANT(gW^UP("
)
ODS = "application/vnd.oasis.opendocument.spreadsheet"


def document(path: Path, rows: str) -> Path:
    """A spreadsheet of LibreOffice."""
    spaces = "".join(
        f' xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for name in ("office", "table", "text")
    )
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("mimetype", ODS)
        book.writestr("META-INF/manifest.xml", "<manifest/>")
        book.writestr(
            "content.xml",
            f"<office:document-content{spaces}><office:body><office:spreadsheet>"
            f'<table:table table:name="data">{rows}</table:table>'
            "</office:spreadsheet></office:body></office:document-content>",
        )
    return path


def row(*cells: Any, repeated: int = 1) -> str:
    written = "".join(
        f'<table:table-cell office:value-type="string"><text:p>{cell}</text:p></table:table-cell>'
        if isinstance(cell, str)
        else f'<table:table-cell office:value-type="float" office:value="{cell}"/>'
        for cell in cells
    )
    empty = '<table:table-cell table:number-columns-repeated="16380"/>'
    begin = f'<table:table-row table:number-rows-repeated="{repeated}">'
    return f"{begin}{written}{empty}</table:table-row>"


def test_old_workbooks_are_read_as_calamine_reads_them(tmp_path: Path) -> None:
    (tmp_path / "a.xls").write_bytes(zlib.decompress(base64.b85decode(XLS)))
    table = Table(str(tmp_path / "a.xls"), ["n"], {"t": "text", "d": "text"}, sheet="data")
    assert table.__getitems__([0, 1])["features"].tolist() == [[1.5], [2]]
    assert table.__getitems__([0, 1])["d"] == ["2026-01-31", "2026-02-01 12:00:00"]
    assert table.known()["t"] == ["a", "ü"]
    (tmp_path / "a.xls").write_bytes((tmp_path / "a.xls").read_bytes()[:700])
    with pytest.raises(DataError, match=r"a\.xls: cannot be read: .* truncated"):
        Table(str(tmp_path / "a.xls"), ["n"])


def test_sheets_of_libreoffice_are_read_unless_they_would_fill_the_memory(tmp_path: Path) -> None:
    rows = row("n", "t") + row(1.5, "a") + row(2, "b", repeated=3)
    empty = row(repeated=1048570)
    table = Table(str(document(tmp_path / "a.ods", rows + empty)), ["n"], {"t": "text"})
    assert table.__getitems__([0, 3])["features"].tolist() == [[1.5], [2]]
    assert table.known()["row"] == ["2", "3", "4", "5"]
    far = rows + row(repeated=1048570) + row(*[""] * 16380, "x")
    for name, content in (("far", far), ("many", rows + row(*range(2000), repeated=1000000))):
        path = document(tmp_path / f"{name}.ods", content)
        with pytest.raises(DataError, match=r"\.ods: .* filled cells in a sheet of"):
            Table(str(path), ["n"])


def test_numbers_that_excel_shows_with_zeros_keep_them(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.create_sheet("data")
    sheet: Any = book["data"]
    for values in (["zip", "n", "other"], [123, 5, 7], [45678, 6, 8], ["0x", 7, 9]):
        sheet.append(values)
    for number in (2, 3, 4):
        sheet.cell(number, 1).number_format = "00000"
        sheet.cell(number, 3).number_format = "0.00"
    for row, column in ((100, 1), (2, 40)):  # empty ones of that format, far from the data
        sheet.cell(row, column).number_format = "00000"
    book.save(tmp_path / "a.xlsx")
    columns: Any = {"zip": "text", "other": "text"}
    table = Table(str(tmp_path / "a.xlsx"), ["n"], columns, sheet="data")
    read = table.__getitems__([0, 1, 2])
    assert (read["zip"], read["other"]) == (["00123", "45678", "0x"], ["7", "8", "9"])
    sheet.delete_rows(4)
    book.save(tmp_path / "a.xlsx")
    numbers = Table(str(tmp_path / "a.xlsx"), ["zip"], sheet="data")
    assert numbers.__getitems__([0, 1])["features"].tolist() == [[123], [45678]]


def test_errors_and_formulas_without_values_are_no_empty_cells(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for values in (["n", "t"], ["#DIV/0!", "a"], [2, "#N/A"], ["#N/A", "#REF!"]):
        sheet.append(values)
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match=r"row 2, column 'n': '#DIV/0!' .*add it to missing_marks"):
        Table(str(tmp_path / "a.xlsx"), ["n"])
    marks = ["#DIV/0!", "#N/A"]
    table = Table(
        str(tmp_path / "a.xlsx"), ["n"], {"t": "text"}, missing="keep", missing_marks=marks
    )
    read = table.__getitems__([0, 1, 2])  # the last row was lost, whose cells calamine has as ""
    assert (str(read["features"].ravel().tolist()), read["t"]) == (
        "[nan, 2.0, nan]",
        ["a", "#N/A", "#REF!"],
    )
    sheet.append(["=1+1", "b"])  # whose value openpyxl does not compute
    sheet.append([3, "c"])
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match=r"row 5, column 'n': a formula whose value is not stored"):
        Table(str(tmp_path / "a.xlsx"), ["n"], missing="keep", missing_marks=marks)
    assert len(Table(str(tmp_path / "a.xlsx"), [], {"t": "text"})) == 5


def test_formulas_that_excel_computed_are_values(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for values in (["n", "t"], [1, "x"], [2, "y"]):
        sheet.append(values)
    book.save(tmp_path / "plain.xlsx")
    computed = {b'<c r="A2" t="n"><v>1</v></c>': b'<c r="A2"><f>2+3</f><v>5</v></c>'}
    computed[b'<c r="A3" t="n"><v>2</v></c>'] = b'<c r="A3"><f>A2*2</f><v>10</v></c>'
    with (
        zipfile.ZipFile(tmp_path / "plain.xlsx") as plain,
        zipfile.ZipFile(tmp_path / "a.xlsx", "w") as made,
    ):
        for name in plain.namelist():
            content = plain.read(name)
            if name.endswith("sheet1.xml"):
                for before, after in computed.items():
                    assert before in content
                    content = content.replace(before, after)
            made.writestr(name, content)
    assert Table(str(tmp_path / "a.xlsx"), ["n"]).__getitems__([0, 1])["features"].tolist() == [
        [5],
        [10],
    ]
