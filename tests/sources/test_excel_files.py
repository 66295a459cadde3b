"""Spreadsheets of older Excel and of LibreOffice, and numbers that are shown with zeros."""

import base64
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from harness.errors import DataError
from harness.sources import workbook
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
# n, 1.5 and, in row 5001, 2, in the third column
FAR_XLS = (
    b"c-rk)J!lj`6#iy%m;2#z*~?voL<mQ~s4<P$*d(ihrZPkuMFrh>S4hGo9BH)BXgr98AXq6jfiyOWHvXW6b{0ZJ3qcU>"
    b"w6qcwERtK_dpC=BF+~nE7@2RGZ{EInZ+@6Jvpe%<IaQv2*j>RI450;8KZe#iouU*AUK~)l@3R=>QA)nWmO?B_6WJQZ"
    b"v$od}o<pAR3N#*sUJ?VJD4oF+MkWjS>?Y!n^ubfyhe2Y6d!$LCOM2BId|o&$yd;*-g%614rtl!ymenaNyCePkO%$Kh"
    b"y;7D0*ZWv}K8R*7I`N95_{uF+vkl{5@q#z;Zx-}~5?BDu+i<>+FM1PYWM~2x@ZHY>--4C;B5U=Vt5+cXk4AlD9sO+`"
    b"0%qW!lK?Lvfu$BM2_ffAdn@#=%(hFZ5a;bzmaEgST-zj!6T~^Ri=2{Rc4$Lhx&QU;(XmnYtY~Iri>}qUgWHCWtL#C}"
    b"Nh!IJX68=xi^m?}Yf|fWk-LR66oQoZjdmL0$gJ30m(o6JXP@AmyR%N-MRMuOu_ryH&+cxL7l$jCGK=rsdGykUB}e}J"
    b"%wj+dsJnL<Pu(C_X3>8X?)q&5h-$}-%{O1GcB~>UVoI1T)EbM+Ixe~tPV1V*T$;z<Xfc=8WWjX}=?*;N=4g}og*YrM"
    b"EG#T6EG#T6wgmX+SDRmcJ`jY>p(0}Lbyg`=?KR1Ni{qH2XPOSChf$!sh>K0d&o+crP?y@EPjFwzI6<u!F^)0m$9U86"
    b"ONT;LKb{RcI)82nHQRo*nSTD|_J0EM`@I7"
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


def binary_book(path: Path, cells: dict[tuple[int, int], float | str]) -> str:
    """An .xlsb, of rows and columns from 0, as [MS-XLSB] says."""

    def record(kind: int, content: bytes = b"") -> bytes:
        types = [kind] if kind < 128 else [kind & 0x7F | 0x80, kind >> 7]
        assert len(content) < 128
        return bytes([*types, len(content)]) + content

    def text(words: str) -> bytes:
        return struct.pack("<I", len(words)) + words.encode("utf-16-le")

    rows, before = b"", -1
    for (row, column), value in sorted(cells.items()):
        if row != before:
            rows += record(0, struct.pack("<I", row).ljust(25, b"\0"))
        before, place = row, struct.pack("<II", column, 0)
        written = (6, text(value)) if isinstance(value, str) else (5, struct.pack("<d", value))
        rows += record(written[0], place + written[1])
    sheet = record(129) + record(148, bytes(16)) + record(145) + rows + record(146) + record(130)
    bundle = record(156, struct.pack("<II", 0, 1) + text("rId1") + text("data"))
    of = "http://schemas.openxmlformats.org"
    with zipfile.ZipFile(path, "w") as book:
        whole = record(131) + record(143) + bundle + record(144) + record(132)
        book.writestr("xl/workbook.bin", whole)
        book.writestr("xl/worksheets/sheet1.bin", sheet)
        book.writestr(
            "xl/_rels/workbook.bin.rels",
            f'<Relationships xmlns="{of}/package/2006/relationships"><Relationship Id="rId1" '
            f'Type="{of}/officeDocument/2006/relationships/worksheet" '
            'Target="worksheets/sheet1.bin"/></Relationships>',
        )
    return str(path)


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
    # Portals give workbooks older endings; calamine goes by their content
    (tmp_path / "a.xls").write_bytes((tmp_path / "a.xlsx").read_bytes())
    old = Table(str(tmp_path / "a.xls"), [], {"t": "text"})
    assert old.__getitems__([0, 1, 2])["t"] == read["t"]
    sheet.append(["=1+1", "b"])  # whose value openpyxl does not compute
    sheet.append([3, "c"])
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match=r"whose value is not stored.* Open the file in"):
        Table(str(tmp_path / "a.xlsx"), ["n"], missing="keep", missing_marks=marks)
    assert len(Table(str(tmp_path / "a.xlsx"), [], {"t": "text"})) == 5


def test_formulas_beside_the_cells_are_of_no_cell(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for values in (["n", "t"], [1, "x"], [2, "#N/A"]):
        sheet.append(values)
    book.save(tmp_path / "plain.xlsx")
    # As Excel writes conditional formats: those of other sheets in elements named f
    rules = b"</sheetData><conditionalFormatting><cfRule><formula>A1&gt;3</formula></cfRule>"
    rules += b"</conditionalFormatting>"
    listed = b"<extLst><ext><xm:f xmlns:xm='urn:xm'>Sheet2!$A$1</xm:f></ext></extLst></worksheet>"
    with (
        zipfile.ZipFile(tmp_path / "plain.xlsx") as plain,
        zipfile.ZipFile(tmp_path / "a.xlsx", "w") as made,
    ):
        for name in plain.namelist():
            content = plain.read(name)
            if name.endswith("sheet1.xml"):
                content = content.replace(b"</sheetData>", rules)
                content = content.replace(b"</worksheet>", listed)
            made.writestr(name, content)
    table = Table(str(tmp_path / "a.xlsx"), ["n"], {"t": "text"})
    assert table.known()["t"].array().tolist() == ["x", "#N/A"]


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


def test_binary_workbooks_are_read_unless_they_would_fill_the_memory(tmp_path: Path) -> None:
    cells: dict[tuple[int, int], float | str] = {(0, 0): "n", (0, 1): "t", (1, 0): 1.5, (1, 1): "a"}
    path = binary_book(tmp_path / "a.xlsb", {**cells, (2, 0): 2.0, (2, 1): "ü"})
    table = Table(path, ["n"], {"t": "text"}, sheet="data")
    assert table.__getitems__([0, 1])["features"].tolist() == [[1.5], [2]]
    assert table.known()["t"] == ["a", "ü"]
    path = binary_book(tmp_path / "b.xlsb", {**cells, (1048575, 16383): 1.0})  # 549 GB to calamine
    with pytest.raises(DataError, match=r"5 filled cells in a sheet of 17,179,869,184, up to XFD1"):
        Table(path, ["n"])
    (tmp_path / "c.xlsb").write_bytes((tmp_path / "a.xlsb").read_bytes()[:-50])
    with pytest.raises(DataError, match=r"c\.xlsb: cannot be read: .* truncated"):
        Table(str(tmp_path / "c.xlsb"), ["n"])


def test_a_cell_far_away_in_an_old_workbook_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.xls").write_bytes(zlib.decompress(base64.b85decode(FAR_XLS)))
    monkeypatch.setattr(workbook, "MAX_EMPTY", 10_000)
    with pytest.raises(DataError, match=r"3 filled cells in a sheet of 15,003, up to row 5001"):
        Table(str(tmp_path / "a.xls"), ["n"], missing="keep")
