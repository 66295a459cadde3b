"""Spreadsheets of older Excel and of LibreOffice, and numbers that are shown with zeros."""

import base64
import datetime
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pytest
from openpyxl.utils.datetime import MAC_EPOCH, WINDOWS_EPOCH

from harness.errors import DataError
from harness.sources import extent
from harness.sources.old_excel import read_old
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
# zip, n, e, d, t, h, b; 123 as 00000, 1.5, #DIV/0!, 2026-01-31 12:00, 12:00, 30 hours, True; and
# #N/A alone in the third column
ERRORS_XLS = (
    b"c-rk)O=uHQ5dPj~^J~+lH7T}22nDOwRunH%XrqGmWT{>h6*P4NDK%+Hb7?PDYmS28$)8K1DqgBy{6PzP5Cnya9t5G#=ur"
    b">^MGtM)naL(i+XxM4LEUee*_nAiGrRA-d2jdibnWc;y~Z4tp%V@)m|nO_Y>LQRPy(QG(`2!5_Yj#j{wjDqG>|SQ9{XRpc"
    b"?@~HbI@>Ce?}bmKy(6w=pIPLBWs9#5<^UJ3?0N3u9Kx24H8wI@YBNA3%?^Zp9tS0mW#qWsP3#fhUsW`%Wi8HAJv+qtQy?"
    b"!18MVKEISdx3!cSiFR6T8C-$cMVrTx}g0NnN3DDf=il^df)_u4^h1kIe>ml6aTrf;%OD5Y4Ba%q8CzD~_k6WA(L~9=!nn"
    b"jQ%*95+q5#Vbfi#(0k_O-Pukp0I}yZaY*4~=v=yO+kioZUx5Ue3M_+gI2xYdSCr^OP*^EUNHa=Mo)8EEAhUGtW682Qbn%"
    b"NV76U6elu>GDHcYULS8tlEeZ_l9*o>cNK91H6qu_5)aT*&E5X;=3sA6^rTouW#h_kZ<{zOm^jBRsByKFID~W8Ez)9}@bl"
    b"8^Mv)tZ2Wef<y}2i32?xfc&IKuLCO^9bZ=;(_<Sis;KOK4)&VGz;C3&(dHxitD7ad0vy=jBm^EHN6)vB&uVLXZ!?#fDqG"
    b"r}8Iq(zSwuwpl@J-i0<@QGL}Jg@QFQAJI&-c??6kme|AI%#@QbCTvPYA(`TmRGgR>l8(*Bz1pQ?EAPTNk;P!XMb)rg$*P"
    b"-DDrFd4JwG2R6B(4ioN9Pxg<*NU6Z&Ld*^aZ`e{*}S{?3l1=<J};e!nuHf-3iVZ(+E>(HxNM_gSFbot}6+xo9FPqbkFCi"
    b"!P^7z1===;LfZQglyaxT5(}52q^hrB>Od@V}68guJKGk6wwRzvB5zpFgVfc~;#p@cWifrT!NxiSrNp{|QxD`78"
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


def binary_book(
    path: Path, cells: dict[tuple[int, int], float | str | bytes], form: int = 170
) -> str:
    """An .xlsb, of rows and columns from 0, as [MS-XLSB] says; bytes are the type of a cell's
    record and its content, in the second style, whose format is 00000.
    """

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
        if isinstance(value, bytes):
            rows += record(value[0], struct.pack("<II", column, 1) + value[1:])
            continue
        written = (6, text(value)) if isinstance(value, str) else (5, struct.pack("<d", value))
        rows += record(written[0], place + written[1])
    sheet = record(129) + record(148, bytes(16)) + record(145) + rows + record(146) + record(130)
    bundle = record(156, struct.pack("<II", 0, 1) + text("rId1") + text("data"))
    of = "http://schemas.openxmlformats.org"
    with zipfile.ZipFile(path, "w") as book:
        whole = record(131) + record(143) + bundle + record(144) + record(132)
        book.writestr("xl/workbook.bin", whole)
        book.writestr("xl/worksheets/sheet1.bin", sheet)
        count = struct.pack("<I", 1)
        zeros = record(615, count) + record(44, struct.pack("<H", 170) + text("00000"))
        styles = [record(47, struct.pack("<HH", 0, one).ljust(16, b"\0")) for one in (0, form)]
        book.writestr("xl/styles.bin", zeros + record(617, struct.pack("<I", 2)) + b"".join(styles))
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


def test_errors_and_zeros_of_other_workbooks_are_what_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.xls").write_bytes(zlib.decompress(base64.b85decode(ERRORS_XLS)))
    heads: dict[tuple[int, int], float | str | bytes] = {(0, 0): "zip", (0, 1): "n", (0, 2): "e"}
    whole = struct.pack("<BI", 2, 123 << 2 | 2)
    cells = {(1, 0): whole, (1, 1): 1.5, (1, 2): b"\x03\x07", (2, 2): b"\x0b\x2a" + bytes(4)}
    binary_book(tmp_path / "b.xlsb", heads | cells)
    real = b"\x05" + struct.pack("<d", 123)
    binary_book(tmp_path / "c.xlsb", heads | cells | {(1, 0): real})
    # As LibreOffice of today and older ones write errors
    error = 'table:formula="of:=1/0" office:value-type='
    divided, missing = (
        f"<table:table-cell {error}{of}><text:p>{shown}</text:p></table:table-cell>"
        for of, shown in (
            ('"string" office:string-value=""', "#DIV/0!"),
            ('"float" office:value="0"', "#N/A"),
        )
    )
    number = '<table:table-cell office:value-type="float" office:value='
    note = "<office:annotation><text:p>1</text:p></office:annotation>"
    second = (
        f'<table:table-row>{number}"123">{note}<text:p>00123</text:p></table:table-cell>'
        f'{number}"1.5"><text:p>1.5</text:p></table:table-cell>{divided}</table:table-row>'
    )
    third = f"<table:table-row><table:table-cell/><table:table-cell/>{missing}</table:table-row>"
    document(tmp_path / "d.ods", row("zip", "n", "e") + second + third)
    for name in ("a.xls", "b.xlsb", "c.xlsb", "d.ods"):
        columns: Any = {"zip": "text", "e": "text"}
        read = Table(str(tmp_path / name), ["n"], columns, missing="keep").__getitems__([0, 1])
        assert (read["zip"], read["e"]) == (["00123", ""], ["#DIV/0!", "#N/A"]), name
        assert str(read["features"].tolist()) == "[[1.5], [nan]]", name
        with pytest.raises(DataError, match=r"row 2, column 'e': '#DIV/0!' .*to missing_marks"):
            Table(str(tmp_path / name), ["e"], missing="keep")
    formula = '<table:table-cell table:formula="of:=1+1"/>'
    document(tmp_path / "e.ods", row("n") + f"<table:table-row>{formula}</table:table-row>")
    with pytest.raises(DataError, match=r"row 2, column 'n': a formula whose value is not stored"):
        Table(str(tmp_path / "e.ods"), ["n"])


def test_cells_of_old_workbooks_are_those_of_another_reader(tmp_path: Path) -> None:
    for number, content in enumerate((XLS, ERRORS_XLS)):
        path = tmp_path / f"{number}.xls"
        path.write_bytes(zlib.decompress(base64.b85decode(content)))
        found = read_old(path, 1)
        # Calamine does not read the errors, nor the zeros
        same = {"#DIV/0!": "", "#N/A": "", "00123": 123}
        frame = pd.read_excel(
            path, header=None, engine="calamine", dtype=object, keep_default_na=False
        )
        cells = [[same.get(cell, cell) for cell in of] for of in found]
        count = len(frame)  # which leaves out the row of an error alone
        assert cells[:count] == frame.to_numpy().tolist()
        assert all(cell == "" for of in cells[count:] for cell in of)
        kinds = [[type(cell) for cell in of] for of in frame.to_numpy().tolist()]
        assert [[type(cell) for cell in of] for of in cells[:count]] == kinds


@pytest.mark.parametrize("epoch", [WINDOWS_EPOCH, MAC_EPOCH])
def test_dates_are_those_of_the_date_system_of_a_workbook(tmp_path: Path, epoch: Any) -> None:
    """SheetJS/sheetjs#1821 and miraisolutions/xlconnect#32: four years and a day away; and
    pandas-dev/pandas#10001: a number far beyond all dates in the format of one.
    """
    book = openpyxl.Workbook()
    book.epoch = epoch
    sheet: Any = book.active
    moment = datetime.datetime(2026, 2, 1, 12, 30, 15)
    for cells in (["d", "t"], [moment, 10_000_000], [moment.date(), datetime.time(7, 45)]):
        sheet.append(cells)
    sheet["B2"].number_format = "yyyy-mm-dd"
    book.save(tmp_path / "a.xlsx")
    known = Table(str(tmp_path / "a.xlsx"), [], {"d": "text", "t": "text"}).known()
    assert known["d"] == ["2026-02-01 12:30:15", "2026-02-01"]
    assert known["t"] == ["10000000", "07:45:00"]


def test_negative_times_are_no_times_of_day(tmp_path: Path) -> None:
    """Excel shows them as ####; calamine and pandas make -0.25 18:00:00."""
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for cells in (["a", "b"], [-0.25, -0.25], [0.75, -3], [-5, 0]):
        sheet.append(cells)
    for cell in ("A2", "A3", "A4"):
        sheet[cell].number_format = "h:mm:ss"
    sheet["B2"].number_format = "[h]:mm:ss"
    book.save(tmp_path / "a.xlsx")
    real = {row: bytes([5]) + struct.pack("<d", value) for row, value in ((1, 0.75), (2, -0.25))}
    head: dict[tuple[int, int], Any] = {(0, 0): "a", (0, 1): "b", (1, 1): -1.0, (2, 1): -2.0}
    binary_book(tmp_path / "b.xlsb", head | {(row, 0): cell for row, cell in real.items()}, 21)
    old = zlib.decompress(base64.b85decode(XLS))
    date, negative = (struct.pack("<i", value << 2 | 3) for value in (4_605_450, -25))  # hundredths
    assert old.count(date) == 1
    (tmp_path / "c.xls").write_bytes(old.replace(date, negative))
    for name, row, column in (("a.xlsx", 2, "a"), ("b.xlsb", 3, "a"), ("c.xls", 3, "d")):
        what = rf"row {row}, column '{column}': a negative number in the format .* \[h\]:mm:ss"
        with pytest.raises(DataError, match=rf"{re.escape(name)}: {what}"):
            Table(str(tmp_path / name), [], {column: "text"})
    found = Table(str(tmp_path / "a.xlsx"), [], {"b": "text"}).known()["b"]
    assert found == ["-1 day, 18:00:00", "-3", "0"]
    assert Table(str(tmp_path / "b.xlsb"), ["b"])[1]["features"] == [-2]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<html><table><tr><td>n</td></tr></table>", "not a supported workbook, but a web page"),
        (b"n\tm\n1\t2\n", r"cannot be read: .* not an Excel file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "cannot be read: .* truncated"),
    ],
)
def test_what_is_no_old_workbook_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.xls").write_bytes(content)
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path))}/a\.xls: {why}"):
        Table(str(tmp_path / "a.xls"))


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
    with (
        zipfile.ZipFile(tmp_path / "a.xlsb") as whole,
        zipfile.ZipFile(tmp_path / "d.xlsb", "w") as book,
    ):
        for name in whole.namelist():
            # Styles without their number are a panic of calamine, which is no Exception
            is_styles = name == "xl/styles.bin"
            book.writestr(name, b"\xe9\x04\0" if is_styles else whole.read(name))
    with pytest.raises(DataError, match=r"d\.xlsb: cannot be read: .* truncated"):
        Table(str(tmp_path / "d.xlsb"), ["n"])


def test_a_cell_far_away_in_an_old_workbook_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.xls").write_bytes(zlib.decompress(base64.b85decode(FAR_XLS)))
    monkeypatch.setattr(extent, "MAX_EMPTY", 10_000)
    with pytest.raises(DataError, match=r"3 filled cells in a sheet of 15,003, up to row 5001"):
        Table(str(tmp_path / "a.xls"), ["n"], missing="keep")


def test_whole_numbers_beyond_those_of_excel_keep_the_digits_of_the_file(tmp_path: Path) -> None:
    """Numbers of accounts and posts, as programs write them; calamine reads ...464 for ...357."""
    numbers = [-8086931554011838357, 2**53 + 1, 7]
    pd.DataFrame({"n": [1.5, 2.5, 7], "x": 0.5}).to_excel(tmp_path / "a.xlsx", index=False)
    with zipfile.ZipFile(tmp_path / "a.xlsx") as book:
        members = {one: book.read(one) for one in book.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    for name, first in (("a.xlsx", str(numbers[0])), ("c.xlsx", "-8.086931554011838e+18")):
        written = members[sheet].replace(b"<v>1.5<", f"<v>{first}<".encode())
        members_now = members | {sheet: written.replace(b"<v>2.5<", f"<v>{numbers[1]}<".encode())}
        with zipfile.ZipFile(tmp_path / name, "w") as book:
            for one, content in members_now.items():
                book.writestr(one, content)
    document(tmp_path / "b.ods", row("n") + "".join(map(row, numbers)))
    for name in ("a.xlsx", "b.ods"):
        exact = Table(str(tmp_path / name), [], {"n": "integer"}).__getitems__([0, 1, 2])
        assert exact["n"].tolist() == numbers, name
        texts = Table(str(tmp_path / name), [], {"n": "text"}).known()["n"]
        assert texts == list(map(str, numbers))
        features = Table(str(tmp_path / name), ["n"]).__getitems__([0, 1, 2])["features"]
        assert features.ravel().tolist() == np.float32(numbers).tolist()
    with pytest.raises(DataError, match=r"row 2, column 'n': -8\.086\S*e\+18 is too large for an"):
        Table(str(tmp_path / "c.xlsx"), [], {"n": "integer"})


def test_white_space_in_texts_of_libreoffice_is_kept(tmp_path: Path) -> None:
    """As Open Document 1.3, part 3, 6.1 says; calamine and pandas drop tabs and line breaks."""
    note = "<office:annotation><text:p>a<text:tab/>note</text:p></office:annotation>"
    written = "x<text:s text:c='2'/>y<text:tab/>z<text:line-break/><text:span>w</text:span>"
    plain = "one</text:p><text:p>two<text:s/>words"
    table = document(tmp_path / "a.ods", row("t", "n") + row(written, 1) + row(plain, 2))
    assert Table(str(table), ["n"], {"t": "text"}).known()["t"] == ["x  y\tz\nw", "one\ntwo words"]
    noted = row(plain, 1).replace("<text:p>", f"{note}<text:p>", 1)
    table = document(tmp_path / "b.ods", row("t", "n") + noted)
    assert Table(str(table), ["n"], {"t": "text"}).known()["t"] == ["one\ntwo words"]
