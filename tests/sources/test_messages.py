"""A file that is refused is named with the place, the cause, and a way on that exists."""

import inspect
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image

from harness import components
from harness.components import TARGET
from harness.errors import ConfigError, DataError
from harness.sources.audio import Recordings
from harness.sources.images import Images
from harness.sources.series import Series
from harness.sources.tables import Table
from harness.sources.text import Bytes
from harness.sources.video import Clips

CASES = Path(__file__).parents[3] / "shared" / "cases" / "data"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
M4A = b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42" + bytes(40)
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
MP4 = b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + bytes(40)
AVIF = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(40)
AVIF_LATE = b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif" + bytes(40)
PAGE = b"<!DOCTYPE html><title>Sign in</title>"

Read = Callable[[str], Any]
READERS: dict[str, Read] = {
    "table": Table,
    "series": lambda files: Series(files, ["a"], 2, 2),
    "image": Images,
    "sound": lambda files: Recordings(files, 8000, 1.0),
    "film": lambda files: Clips(files, 2),
    "text": lambda files: Bytes(files, 2),
}


@pytest.mark.parametrize(
    ("kind", "name", "content", "what"),
    [
        *(
            (kind, name, POINTER, r"a pointer of Git LFS.*git lfs pull")
            for kind, name in (
                ("table", "a.csv"),
                ("table", "a.parquet"),
                ("table", "a.xlsx"),
                ("table", "a.jsonl"),
                ("series", "a.csv"),
                ("image", "a.png"),
                ("sound", "a.wav"),
                ("film", "a.mp4"),
                ("text", "a.txt"),
            )
        ),
        ("image", "a.heic", HEIC, r"a HEIC photo that cannot be read"),
        ("image", "a.jpg", HEIC, r"a HEIC photo that cannot be read"),
        ("sound", "a.m4a", M4A, r"cannot be decoded as sound: .* It may be truncated\.$"),
        ("image", "a.avif", AVIF, r"not an image: .* It may be truncated\.$"),
        ("image", "a.avif", AVIF_LATE, r"not an image: .* It may be truncated\.$"),
        ("sound", "a.wav", AVIF, r"an AVIF picture\. Give a file of another kind\.$"),
        ("image", "a.png", MP4, r"an MP4 or M4A file.* here\. Give a file of another kind\.$"),
        ("table", "a.csv", MP4, r"an MP4 or M4A file.* here\. Give a file of another kind\.$"),
        ("film", "a.mp4", MP4, r"cannot be decoded as video: .* It may be truncated\.$"),
        ("image", "a.png", PAGE.lower(), r"a web page, not the file.* Download it again"),
        ("sound", "a.wav", PAGE, r"a web page, not the file.* Download it again"),
        ("film", "a.mp4", PAGE, r"a web page, not the file.* Download it again"),
        ("table", "a.csv", PAGE, r"a web page, not the file.* Download it again"),
        ("table", "a.xlsx", OLE, r"an encrypted workbook.* save it as \.xlsx"),
        ("table", "a.csv", b"\x1f\x8b\x08\0" + bytes(20), r"compressed by gzip\. Unpack it"),
        (
            "table",
            "a.csv",
            b"PK\x03\x04" + bytes(26) + b"xl/_rels/",
            r"Excel.* Give it its own end",
        ),
        ("image", "a.png", b"PK\x03\x04" + bytes(40), r"a zip archive\. Unpack it"),
    ],
)
def test_what_a_file_really_is_is_said(
    tmp_path: Path, kind: str, name: str, content: bytes, what: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: .*{what}"):
        READERS[kind](str(path))


def test_a_table_that_begins_as_films_do_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("pct,ftyp\n1,2\n")
    assert len(Table(str(tmp_path / "a.csv"))) == 1


def test_a_truncated_file_of_the_right_kind_is_still_called_truncated(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue()[:40])
    with pytest.raises(DataError, match=r"It may be truncated"):
        Images(str(tmp_path / "a.png"))
    book = openpyxl.Workbook()
    book.save(tmp_path / "a.xlsx")
    (tmp_path / "a.xlsx").write_bytes((tmp_path / "a.xlsx").read_bytes()[:900])
    with pytest.raises(DataError, match=r"may be truncated"):
        Table(str(tmp_path / "a.xlsx"))


@pytest.mark.parametrize("read", [Table, lambda files, **more: Series(files, ["b"], 2, 2, **more)])
def test_another_encoding_is_named_with_its_row_and_the_setting_that_reads_it(
    tmp_path: Path, read: Any
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\u00e4,b\n1,2\n3,4\n".encode("cp1252"))
    with pytest.raises(
        DataError, match=r"row 1: byte 0xe4 is not utf-8\. Set encoding, e\.g\. cp1252"
    ):
        read(str(path))
    assert len(read(str(path), encoding="cp1252")) > 0
    path.write_bytes("a,b\n1,2\n3,4\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.csv: in UTF-16\. Set encoding: utf-16"):
        read(str(path))
    assert len(read(str(path), encoding="utf-16")) > 0
    with pytest.raises(ConfigError, match=r"^encoding: unknown encoding: utf8x\. Give one known"):
        read(str(path), encoding="utf8x")


@pytest.mark.parametrize(("mark", "shown"), [(";", '";"'), ("\t", r'"\\t"'), ("|", r'"\|"')])
def test_another_separator_is_named(tmp_path: Path, mark: str, shown: str) -> None:
    (tmp_path / "a.csv").write_text(f"a{mark}b\n1{mark}2\n")
    for features in (None, ["a"]):
        with pytest.raises(DataError, match=rf"row 1: one column .*Set separator: {shown}\."):
            Table(str(tmp_path / "a.csv"), features=features)
    assert len(Table(str(tmp_path / "a.csv"), separator=mark)) == 1


@pytest.mark.parametrize("mark", ["NULL", "-", "?", "#N/A", "."])
def test_a_mark_of_what_is_missing_is_taken_for_one(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a.csv").write_text(f"a\n1\n{mark}\n3\n")
    what = rf"row 3, column 'a': '{re.escape(mark)}' is not a number\. If it marks a missing value"
    with pytest.raises(DataError, match=rf"{what}, add it to missing_marks \(NA, .* missing: keep"):
        Table(str(tmp_path / "a.csv"))
    table = Table(str(tmp_path / "a.csv"), missing_marks=["NA", mark], missing="keep")
    assert np.isnan(table[1]["features"]).all()
    series = Series(str(tmp_path / "a.csv"), ["a"], 1, 1, missing_marks=[mark], gaps="split")
    assert len(series) == 2


def test_sentinels_of_a_series_are_gaps(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n-200\n3\n4\n")
    series = Series(str(tmp_path / "a.csv"), ["a"], 2, 1, missing_marks=["-200"], gaps="split")
    assert series[0]["series"].tolist() == [[3, 4]]


def test_a_date_in_another_order_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,a\n31/01/2026 12:00,1\n31/01/2026 12:01,2\n")
    with pytest.raises(
        DataError, match=r"row 2, column 't': '31/01/2026 12:00' .*Set time_format, e\.g\."
    ):
        Series(str(tmp_path / "a.csv"), ["a"], 2, 2, time="t", rate_hz=1)


@pytest.mark.parametrize("date", ["2026-01-31", "2026-01-31 12:00:00", "31.01.2026"])
def test_a_date_among_numbers_is_to_be_read_as_text(tmp_path: Path, date: str) -> None:
    (tmp_path / "a.csv").write_text(f"a\n1\n{date}\n")
    what = "If it is a date or time, read the column as text, or in a Series as its time"
    with pytest.raises(DataError, match=rf"row 3, column 'a': '{date}' is not a number\. {what}"):
        Table(str(tmp_path / "a.csv"))
    table = Table(str(tmp_path / "a.csv"), features=[], columns={"a": "text"})
    assert table[1]["a"] == date


@pytest.mark.parametrize(
    ("text", "settings", "thousands"),
    [("1.278,00", {"decimal": ","}, "."), ("1'234'567.5", {}, "'"), ("1 234", {}, " ")],
)
def test_thousands_are_named(
    tmp_path: Path, text: str, settings: dict[str, Any], thousands: str
) -> None:
    (tmp_path / "a.csv").write_text(f"a\n1\n{text}\n")
    what = rf"If \S?{re.escape(thousands)}\S? stands between thousands, set thousands: '"
    with pytest.raises(DataError, match=f"row 3, column 'a': .*{what}"):
        Table(str(tmp_path / "a.csv"), separator=";", **settings)
    assert len(Table(str(tmp_path / "a.csv"), separator=";", thousands=thousands, **settings)) == 2


def test_rows_of_units_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\nDeg C,%\n1,2\n")
    with pytest.raises(DataError, match=r"row 2, column 'a': 'Deg C' .* set skip_rows: 1\."):
        Table(str(tmp_path / "a.csv"))
    assert len(Table(str(tmp_path / "a.csv"), skip_rows=1)) == 1
    (tmp_path / "a.csv").write_text("a,b\nDeg C,%\nAvg,Avg\n1,2\n")
    with pytest.raises(DataError, match=r"row 3, column 'a': 'Avg' .* set skip_rows: 2\."):
        Table(str(tmp_path / "a.csv"), skip_rows=1)


@pytest.mark.parametrize(
    ("text", "settings", "why"),
    [
        (
            "sep=;\na;b\n1;2\n",
            {},
            r"row 1: 'sep=;', by which Excel .* separator: \";\" and header: 2",
        ),
        (
            "sep=;\na;b\n1;2\n",
            {"separator": ";"},
            r"row 1: 'sep=', .* separator: \";\" and header: 2",
        ),
        ("a;b\n1,5;2\n", {}, r"row 1: one column 'a;b', which .* Set separator: \";\""),
        ("a;b\n1,5;2\n", {"separator": ";"}, r"'1,5' is not .* decimal point, set decimal: ','"),
        ("a,b\n", {}, r"no row holds data"),
    ],
)
def test_what_excel_writes_in_half_of_europe_is_named(
    tmp_path: Path, text: str, settings: Any, why: str
) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=rf"a\.csv: .*{why}"):
        Table(str(tmp_path / "a.csv"), **settings)


def test_several_spaces_are_one_separator(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("  a   b  c \n 1  2.5 x\n30 4    'y' \n")
    table = Table(str(tmp_path / "a.txt"), ["a", "b"], {"c": "text"}, separator=" ")
    frame = pd.read_csv(tmp_path / "a.txt", sep=r"\s+")
    assert table.__getitems__([0, 1])["features"].tolist() == frame[["a", "b"]].to_numpy().tolist()
    assert table.known()["c"] == frame["c"].tolist()


# The cases that are refused as their configs stand: file, place and cause, and the way on
REFUSED = {
    "cut_rf64": (r"cut_rf64\.wav: truncated: it ends before the length", r"Download it again\."),
    "dup_parquet": (r"dup\.parquet: two columns are called 'a'\.", r"Rename one of them\."),
    "far_dates": (r"far\.parquet: row 2, column 'until': date value", "Correct it, or do not read"),
    "latin1_message": (r"test_latin1\.csv: row 3: byte 0xa9 is not utf-8", "Set encoding, e"),
    "x_epoch_ms": (r"ms\.csv: rows are 20 s apart by 't', but rate_hz is 50", "set time_unit: ms"),
    "x_mixed_sizes": (
        r"coffee\.png: 600 x 400 RGB, but .* has 451 x 300 RGB",
        "Set size: .* fit: ",
    ),
    "x_series_latin1": (r"latin\.csv: row 1: byte 0xb0 is not utf-8", "Set encoding, e"),
    "x_thousands": (r"it_thousands\.csv: row 39, column 'total_cost': '1", "set thousands: '\\.'"),
    "x_units_row_toa5": (r"toa5\.csv: row 3, column 'AirTC_Avg': 'Deg C'", "set skip_rows: 1"),
}


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
@pytest.mark.filterwarnings("ignore:1 of")
@pytest.mark.parametrize(
    "case", sorted(one.name for one in CASES.iterdir()) if CASES.is_dir() else []
)
def test_every_case_is_read_or_refused_with_a_way_on(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    config: Any = OmegaConf.to_container(OmegaConf.load(CASES / case / "config.yaml"))
    source = config["data"]["train"]["source"]
    settings = {name: value for name, value in source.items() if name != TARGET}
    target = components.find(source[TARGET])
    settings["files"] = str(CASES / case / settings["files"].partition(f"{case}/")[2])
    if case not in REFUSED:
        assert len(target(**settings)) > 0
        return
    why, way = REFUSED[case]
    folder = re.escape(str(CASES / case))
    with pytest.raises(DataError, match=rf"^{folder}/(\w+/)*{why}.*{way}") as refused:
        target(**settings)
    options = inspect.signature(target).parameters
    advised = set(re.findall(r"(?:[Ss]et|with) (\w+)(?=[:,. ])", str(refused.value)))
    assert advised <= options.keys()
