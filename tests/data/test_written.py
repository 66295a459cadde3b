"""One text for a value, whatever file it stands in and whoever wrote it."""

import csv
import datetime
import json
import struct
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.data.written import text_of
from harness.errors import DataError
from harness.sources.series import Series
from harness.sources.tables import Table
from harness.treatments import Encode

CASES = Path(__file__).parents[3] / "shared" / "cases" / "data"
WORDS = st.text("aeàé zZ-_.0123456789e:TF,'\u0301\U0001f600", min_size=1, max_size=9)
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "integers": st.integers(-(2**53), 2**53),
    # As many digits as openpyxl writes
    "floats": st.floats(-1e300, 1e300).map(lambda x: float(f"{x:.14g}")),
    "halves": st.integers(-8, 8).map(lambda x: x / 2),
    "logical": st.booleans(),
    "dates": st.dates(datetime.date(1950, 1, 1), datetime.date(2100, 1, 1)),
    "moments": st.datetimes(datetime.datetime(1950, 1, 1), datetime.datetime(2100, 1, 1)).map(
        lambda moment: moment.replace(microsecond=0)
    ),
    "words": WORDS.filter(lambda word: word.strip() != ""),
}


def meaning(value: Any) -> str:
    """What a person would call the text of a value that is no text itself."""
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, float):
        return format(Decimal(value), "f") if value.is_integer() else repr(value)
    if isinstance(value, datetime.datetime):
        is_date = value.time() == datetime.time()
        return value.strftime("%Y-%m-%d" if is_date else "%Y-%m-%d %H:%M:%S")
    return str(value)


def files_of(folder: Path, values: Sequence[Any]) -> dict[str, str]:
    """The same column as csv, json, openpyxl, pyarrow and pandas write it."""
    plain = [value.isoformat() if isinstance(value, datetime.date) else value for value in values]
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["c"], *([value] for value in values)])
    lines = (json.dumps({"c": value}) for value in plain)
    (folder / "b.jsonl").write_text("\n".join(lines))
    book = openpyxl.Workbook()
    sheet: Any = book.active
    sheet.cell(1, 1, "c")
    for row, value in enumerate(values, start=2):
        cell = sheet.cell(row, 1)
        cell.value = value
        if isinstance(value, str):
            cell.data_type = "s"  # no formula
    book.save(folder / "c.xlsx")
    table = pa.table({"c": pa.array(list(values))})
    pq.write_table(table, folder / "d.parquet")
    table.to_pandas().to_csv(folder / "e.csv", index=False)
    frame = pd.DataFrame({"c": list(values)})
    frame.to_json(
        folder / "f.jsonl", orient="records", lines=True, date_format="iso", double_precision=15
    )
    return {
        path.name: path.as_posix()
        for path in sorted(folder.iterdir())
        # pandas rounds floats to 15 digits there
        if path.name != "f.jsonl" or not isinstance(values[0], float)
    }


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.parametrize("kind", COLUMNS)
@given(data=st.data())
def test_a_column_has_the_same_texts_from_every_format(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    values = data.draw(st.lists(COLUMNS[kind], min_size=1, max_size=5))
    for old in tmp_path.iterdir():
        old.unlink()
    found = {
        name: Table(path, features=[], columns={"c": "text"}).__getitems__(
            list(range(len(values)))
        )["c"]
        for name, path in files_of(tmp_path, values).items()
    }
    assert len({tuple(texts) for texts in found.values()}) == 1, found
    if kind != "words":
        assert found["d.parquet"] == [meaning(value) for value in values]
    else:
        for text, value in zip(found["d.parquet"], values, strict=True):
            # A word that a program writes for a number or a date counts as that
            assert text in (unicodedata.normalize("NFC", value), text_of(value))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1.0", "1"),
        (1.0, "1"),
        (1, "1"),
        ("-0.0", "0"),
        ("1e-07", "1e-07"),
        ("1e+16", "10000000000000000"),
        (1e16, "10000000000000000"),
        # Not as a program writes a number: codes, versions, telephone numbers
        *((text, text) for text in ("1.10", "001", "+39", "1,5", ".5", "1.", "1e5", "0x1", "1_0")),
        ("2024-01-01 00:00:00", "2024-01-01"),
        ("2024-01-01T00:00:00.000", "2024-01-01"),
        (datetime.date(2024, 1, 1), "2024-01-01"),
        (pd.Timestamp("2024-01-01"), "2024-01-01"),
        ("2024-01-01T12:30", "2024-01-01 12:30:00"),
        ("2024-01-01T12:30:00.500", "2024-01-01 12:30:00.5"),
        (pd.Timestamp("2024-01-01 12:30:00.123456789"), "2024-01-01 12:30:00.123456789"),
        ("2024-01-01T12:30:00.123456789", "2024-01-01 12:30:00.123456789"),
        ("2024-01-01T12:30:00+02:00", "2024-01-01 10:30:00+00:00"),
        ("2024-01-01T10:30:00Z", "2024-01-01 10:30:00+00:00"),
        ("2024-13-01", "2024-13-01"),
        ("0001-01-01T00:00:00+02:00", "0001-01-01T00:00:00+02:00"),
        ("9999999-01-01", "9999999-01-01"),
        (datetime.time(12, 30, 0, 500_000), "12:30:00.5"),
        (np.float32(0.1), "0.1"),
        (np.float16(0.1), "0.1"),
        (Decimal("1.50"), "1.50"),
        (True, "True"),
        ("true", "True"),
        ("FALSE", "False"),
        ("t", "t"),
        (b"03/01/09", "03/01/09"),
        ("e\u0301", "\u00e9"),
    ],
)
def test_a_value_has_one_text(value: Any, text: str) -> None:
    assert text_of(value) == text
    assert text_of(text) == text, "and that stays as it is"


def test_a_decimal_comma_is_that_of_the_column() -> None:
    assert [text_of(text, ",") for text in ("1,0", "1,5", "1.000,0", "1.5")] == [
        "1",
        "1.5",
        "1.000,0",
        "1.5",
    ]


def test_narrow_floats_of_parquet_have_the_digits_that_csv_shows(tmp_path: Path) -> None:
    column = pa.array([0.1, 2.0, 0.3], pa.float32())
    pq.write_table(pa.table({"c": column}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("c\n0.1\n2\n0.3\n")
    for name in ("a.parquet", "b.csv"):
        table = Table(str(tmp_path / name), features=[], columns={"c": "text"})
        assert table.__getitems__([0, 1, 2])["c"] == ["0.1", "2", "0.3"]


def test_categories_learned_from_one_format_are_known_in_another(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("c\n1.0\n2.0\n")
    book = openpyxl.Workbook()
    for row in (["c"], [1.0], [2.0]):
        book.active.append(row)  # type: ignore[union-attr] # a new book has a sheet
    book.save(tmp_path / "b.xlsx")
    encode = Encode("c")
    for number, name in enumerate(("a.csv", "b.xlsx")):
        batch = Table(str(tmp_path / name), features=[], columns={"c": "text"}).__getitems__([0, 1])
        if number == 0:
            encode.observe(batch)
            encode.finish()
        assert encode(batch)["c"].tolist() == [0, 1]


def test_what_an_earlier_release_learned_still_counts() -> None:
    encode = Encode("c")
    encode.restore({"categories": ["1.0", "2.0", "2024-01-01 00:00:00"]})
    assert encode({"c": ["1", "2.0", "2024-01-01"]})["c"].tolist() == [0, 1, 2]
    assert encode.state() == {"categories": ["1.0", "2.0", "2024-01-01 00:00:00"]}


def test_binary_columns_of_parquet_are_text_or_named(tmp_path: Path) -> None:
    kinds = (pa.binary(), pa.large_binary(), pa.binary(2))
    for kind in kinds:
        pq.write_table(
            pa.table({"c": pa.array([b"ab", b"1\xc3"[:2]], kind), "x": [1.0, 2.0]}),
            tmp_path / "bad.parquet",
        )
        with pytest.raises(
            DataError, match=r"bad\.parquet: row 2, column 'c': .*Store text as UTF-8"
        ):
            Table(str(tmp_path / "bad.parquet"), features=["x"], columns={"c": "text"})
        assert len(Table(str(tmp_path / "bad.parquet"), features=["x"])) == 2
        pq.write_table(pa.table({"c": pa.array([b"ab", b"12"], kind)}), tmp_path / "a.parquet")
        table = Table(str(tmp_path / "a.parquet"), features=[], columns={"c": "text"})
        assert table.__getitems__([0, 1])["c"] == ["ab", "12"]
    pq.write_table(pa.table({"c": [b"1.5", b"2"]}), tmp_path / "a.parquet")
    assert Table(str(tmp_path / "a.parquet"))[1]["features"].tolist() == [2.0]


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
def test_dates_that_impala_wrote_as_bytes_are_text() -> None:
    path = CASES / "impala_text" / "alltypes_plain.parquet"
    table = Table(str(path), features=["int_col"], columns={"date_string_col": "text"})
    words = table.__getitems__(list(range(8)))["date_string_col"]
    assert (
        words
        == ["03/01/09", "03/01/09", "04/01/09", "04/01/09"] + ["02/01/09"] * 2 + ["01/01/09"] * 2
    )


def write_int96(path: Path, days: Sequence[tuple[int, int]]) -> None:
    """Dates of 96 bits, from (days, nanoseconds) since 1970, as Impala and Spark write them."""

    def packed(day: int, nanoseconds: int) -> bytes:
        return struct.pack("<qI", nanoseconds, day + 2_440_588)  # of the Julian calendar

    near = [(20_000 + row, row) for row in range(len(days))]
    times = pa.array([day * 86_400 * 10**9 + rest for day, rest in near], pa.timestamp("ns"))
    options: dict[str, Any] = {"use_dictionary": False, "compression": "NONE"}
    options |= {"write_statistics": False, "use_deprecated_int96_timestamps": True}
    table = pa.table({"until": times, "x": np.arange(len(days)) / 2})
    pq.write_table(table, path, row_group_size=2, **options)
    data = path.read_bytes()
    for before, after in zip(near, days, strict=True):
        assert data.count(packed(*before)) == 1
        data = data.replace(packed(*before), packed(*after))
    path.write_bytes(data)


def test_dates_of_96_bits_are_those_that_were_written(tmp_path: Path) -> None:
    """apache/arrow#44112: 9999-12-23, "for ever" in many databases, was read as 1816-03-22."""
    path = tmp_path / "a.parquet"
    second = 10**9
    known = [
        ((2_932_888, 86_399 * second), "9999-12-23 23:59:59"),
        ((20_454, 1), "2026-01-01 00:00:00.000000001"),
        ((-200_000, 3 * second // 2), "1422-06-03 00:00:01.5"),
        ((-1, 500), "1969-12-31 00:00:00.0000005"),
        ((20_454, 2000), "2026-01-01 00:00:00.000002"),
    ]
    for rows in (known[:1], known[1:2], known[3:], [known[0], known[4], known[2]]):
        write_int96(path, [row for row, _ in rows])
        for features in (["x"], []):
            table = Table(str(path), features=features, columns={"until": "text"})
            words = table.__getitems__(list(range(len(rows))))["until"]
            assert words == [text for _, text in rows]
    write_int96(path, [known[4][0], known[2][0]])
    series = Series(str(path), ["x"], 1, 1, time="until", gap_s=1e12, sort=True)
    times = list(map(float, series.known()["time"]))
    assert times == [-200_000 * 86_400 + 1.5, 20_454 * 86_400 + 2e-6]
    write_int96(path, [known[0][0], known[1][0]])
    with pytest.raises(DataError, match=r"column 'until': dates before 1677 or after 2262 beside"):
        Table(str(path), features=["x"], columns={"until": "text"})
    assert len(Table(str(path), features=["x"])) == 2


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
def test_a_date_beyond_the_calendar_is_named() -> None:
    with pytest.raises(
        DataError, match=r"far\.parquet: row 2, column 'until': .*Correct it, or do"
    ):
        Table(str(CASES / "far_dates" / "far.parquet"), features=["v"], columns={"until": "text"})
    assert len(Table(str(CASES / "far_dates" / "far.parquet"), features=["v"])) == 2


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
def test_two_columns_of_one_name_are_named() -> None:
    with pytest.raises(DataError, match=r"dup\.parquet: two columns are called 'a'\. Rename one"):
        Table(str(CASES / "dup_parquet" / "dup.parquet"))
