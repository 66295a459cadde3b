"""Tables as offices and devices export them; pandas says what is in them."""

import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pytest

from harness.errors import ConfigError, DataError
from harness.sources.series import Series
from harness.sources.split import ByValue
from harness.sources.tables import Table

CASES = Path(__file__).parents[3] / "shared" / "cases" / "data"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")


def features(table: Table) -> list[list[float]]:
    found: list[list[float]] = table.__getitems__(list(range(len(table))))["features"].tolist()
    return found


@needs_cases
def test_rows_of_units_under_the_header_are_passed_over() -> None:
    path = CASES / "x_units_row_toa5" / "toa5.csv"
    names = ["AirTC_Avg", "RH"]
    table = Table(str(path), names, header=2, skip_rows=2, missing="keep")
    frame = pd.read_csv(path, header=1, skiprows=[2, 3])[names]
    assert np.array_equal(features(table), frame.to_numpy(np.float32), equal_nan=True)
    assert table.known()["row"][0] == "5"
    series = Series(str(path), names, 1, 1, header=2, skip_rows=2, gaps="split")
    assert series[0]["series"][:, 0].tolist() == features(table)[0]


@needs_cases
def test_thousands_are_read_as_pandas_reads_them() -> None:
    path = CASES / "x_thousands" / "it_thousands.csv"
    settings: dict[str, Any] = {"decimal": ",", "thousands": ".", "encoding": "cp1252"}
    table = Table(str(path), ["total_cost"], separator=";", **settings)
    frame = pd.read_csv(path, sep=";", **settings)
    assert features(table) == frame[["total_cost"]].to_numpy(np.float32).tolist()


@pytest.mark.parametrize("text", ["1.23", "12.34.567", "1234.567", "1.2345"])
def test_digits_that_are_in_no_groups_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(f"a\n1.000\n{text}\n")
    with pytest.raises(DataError, match=rf"row 3, column 'a': '{text}' is not a number"):
        Table(str(tmp_path / "a.csv"), decimal=",", separator=";", thousands=".")


def test_comments_and_long_fields_are_no_trouble(tmp_path: Path) -> None:
    long = "x" * 200_000
    (tmp_path / "a.csv").write_text(f"# by a logger, v2\na,b\n1,{long}\n # pause\n2,y\n")
    table = Table(str(tmp_path / "a.csv"), ["a"], {"b": "text"}, comment="#")
    assert table.__getitems__([0, 1])["b"] == [long, "y"]
    assert table.known()["row"] == ["3", "5"]


def test_quoted_cells_that_begin_as_comments_do_are_data(tmp_path: Path) -> None:
    text = '#one\nt,n\n"#tag",1\n# an "odd one\n"a\n#b",2\n#,3\n'
    (tmp_path / "a.csv").write_text(text)
    table = Table(str(tmp_path / "a.csv"), ["n"], {"t": "text"}, comment="#")
    assert (table.known()["t"], table.known()["row"]) == (["#tag", "a\n#b"], ["3", "6"])
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for cells in (["# by a logger"], ["t", "n"], ["#pause"], ["x", 2]):
        sheet.append(cells)
    book.save(tmp_path / "a.xlsx")
    assert Table(str(tmp_path / "a.xlsx"), ["n"], {"t": "text"}, comment="#").known()["t"] == ["x"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le"])
def test_a_byte_order_mark_is_no_part_of_the_first_cell(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    for text, escape in (("1,x\n2,y\n", None), ("1,x\\,\n2,y\n", "\\")):  # the latter by Python
        path.write_bytes(f"\ufeff{text}".encode(encoding.removesuffix("-sig")))
        table = Table(str(path), ["n"], names=["n", "t"], encoding=encoding, escape=escape)
        assert table.__getitems__([0, 1])["features"].tolist() == [[1], [2]]


def test_large_integers_are_exact_or_refused(tmp_path: Path) -> None:
    wanted = [2**53 + 1, -(2**63), 2**63 - 1, 7]
    (tmp_path / "a.csv").write_text("n\n" + "".join(f" {one}\n" for one in wanted))
    (tmp_path / "a.jsonl").write_text("".join(f'{{"n": {one}}}\n' for one in wanted))
    (tmp_path / "b.jsonl").write_text("".join(f'{{"n": "{one}"}}\n' for one in wanted))
    for path in sorted(tmp_path.iterdir()):
        table = Table(str(path), [], {"n": "integer"})
        assert table.__getitems__([0, 1, 2, 3])["n"].tolist() == wanted, path
    (tmp_path / "c.csv").write_text("n\n9.007.199.254.740.993\n1.000\n")
    table = Table(
        str(tmp_path / "c.csv"), [], {"n": "integer"}, thousands=".", decimal=",", separator=";"
    )
    assert table.__getitems__([0, 1])["n"].tolist() == [2**53 + 1, 1000]
    (tmp_path / "e.jsonl").write_text(f'{{"n": 1{"0" * 400}}}\n')
    with pytest.raises(DataError, match="row 1, column 'n': infinite"):
        Table(str(tmp_path / "e.jsonl"), ["n"])
    for cell in ("9223372036854775808", "1e18", "9007199254740993.0"):
        (tmp_path / "d.csv").write_text(f"n\n1\n{cell}\n")
        with pytest.raises(DataError, match=rf"row 3, column 'n': {cell} is too large .* as text"):
            Table(str(tmp_path / "d.csv"), [], {"n": "integer"})


def test_a_file_without_a_header_is_given_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("5.1,3.5,setosa\n4.9,3.0,setosa\n")
    names = ["length", "width", "kind"]
    table = Table(str(tmp_path / "a.csv"), columns={"kind": "text"}, names=names)
    assert (table.features, len(table)) == (["length", "width"], 2)
    assert features(table) == np.float32([[5.1, 3.5], [4.9, 3.0]]).tolist()
    assert table.known()["row"] == ["1", "2"]
    with pytest.raises(DataError, match=r"no column 'size', only length, width, kind"):
        Table(str(tmp_path / "a.csv"), ["size"], names=names)
    with pytest.raises(DataError, match=r"row 1: 3 cells for 2 columns"):
        Table(str(tmp_path / "a.csv"), names=names[:2])
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for row in (["by a person"], [5.1, 3.5], [4.9, 3.0]):
        sheet.append(row)
    book.save(tmp_path / "a.xlsx")
    table = Table(str(tmp_path / "a.xlsx"), names=names[:2], header=2)
    assert features(table) == np.float32([[5.1, 3.5], [4.9, 3.0]]).tolist()


@needs_cases
def test_tabs_are_the_separator_of_tsv() -> None:
    path = CASES / "x_tsv" / "dummy.tsv"
    assert features(Table(str(path))) == pd.read_csv(path, sep="\t").to_numpy(np.float32).tolist()


def test_tabs_go_with_decimal_commas(tmp_path: Path) -> None:
    for name in ("a.tsv", "a.csv"):
        (tmp_path / name).write_text("a\tb\n1,5\t2\n")
    assert features(Table(str(tmp_path / "a.tsv"), decimal=",")) == [[1.5, 2]]
    assert features(Table(str(tmp_path / "a.csv"), decimal=",", separator="\t")) == [[1.5, 2]]
    for settings in ({}, {"separator": ","}):
        with pytest.raises(ConfigError, match=r"separator, decimal: ',' and ','\. Set separator"):
            Table(str(tmp_path / "a.csv"), decimal=",", **settings)


def test_the_same_table_has_many_endings(tmp_path: Path) -> None:
    rows = [{"a": 1.5, "b": 2}, {"a": -3.25, "b": 4}]
    lines = "a,b\n1.5,2\n-3.25,4\n"
    (tmp_path / "a.csv").write_text(lines)
    (tmp_path / "a.txt").write_text(lines)
    (tmp_path / "a.tsv").write_text(lines.replace(",", "\t"))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write(lines)
    with gzip.open(tmp_path / "a.tsv.gz", "wt") as file:
        file.write(lines.replace(",", "\t"))
    pd.DataFrame(rows).to_excel(tmp_path / "a.xlsm", index=False, engine="openpyxl")
    for path in sorted(tmp_path.iterdir()):
        assert features(Table(str(path))) == [[1.5, 2], [-3.25, 4]], path


def test_packed_and_json_files_that_are_torn_are_named(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("a,b\n" + "".join(f"{index},{index * index}\n" for index in range(5000)))
    whole = (tmp_path / "a.csv.gz").read_bytes()
    (tmp_path / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.csv\.gz: cannot be unpacked: .* truncated"):
        Table(str(tmp_path / "a.csv.gz"))
    (tmp_path / "a.csv.gz").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(DataError, match=r"a\.csv\.gz: cannot be read: Not a gzipped file"):
        Table(str(tmp_path / "a.csv.gz"))
    for text, what in (
        ('[{"a": 1},\n {"a": ]', r"row 2: not JSON: .* Correct it\."),
        ('{"a": [1, 2]}', r"not a list of objects\. Give one"),
        ("[1, 2]", r"not a list of objects\. Give one, .*orient='records'"),
        ('{"a": 1}\n{"a": 2}\n', r"row 2: not JSON: Extra data\. If it .* name it \.jsonl\."),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DataError, match=rf"a\.json: {what}"):
            Table(str(tmp_path / "a.json"))
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.parquet\.gz: \.gz is not one of \.csv"):
        Table(str(tmp_path / "a.parquet.gz"))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"skip_rows": -1}, r"^skip_rows, comment: -1"),
        ({"comment": ""}, r"^skip_rows, comment: 0 and ''"),
        ({"names": ["a", "a"]}, r"^names: \['a', 'a'\]: a name occurs twice"),
        ({"thousands": "."}, r"^thousands: '\.'\. Give one character"),
        ({"thousands": "12"}, r"^thousands: '12'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Table("a.csv", **settings)


@pytest.mark.parametrize("name", ["400.0", "2024-01-01 00:00:00", "true"])
def test_names_that_are_text_are_taken_as_they_stand(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({name: [1.0, 2.0], "1.0": [3.0, 4.0], "2.0": [1.0, 2.0]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    for ending in ("csv", "parquet"):
        path = str(tmp_path / f"a.{ending}")
        assert features(Table(path, [name])) == [[1], [2]]
        assert Table(path, ["1.0"], {name: "number"})[1].keys() == {"features", name}
        assert Series(path, ["1.0", "2.0"], 2, 1)[0]["series"].tolist() == [[3, 4], [1, 2]]


def test_names_that_are_numbers_in_the_config_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("2019,2020\n1,2\n3,4\n")
    years: Any = [2019, 2020]
    assert features(Table(str(tmp_path / "a.csv"), years)) == [[1, 2], [3, 4]]
    rule = ByValue(years[0], train=[1], test=[3])
    assert features(Table(str(tmp_path / "a.csv"), years, split=rule, part="test")) == [[3, 4]]
    units: Any = {2019: "degC -> K"}
    series = Series(str(tmp_path / "a.csv"), years[:1], 1, 1, label=years[1], units=units)
    assert series.__getitems__([0, 1])["series"].ravel().tolist() == pytest.approx([274.15, 276.15])
    (tmp_path / "b.csv").write_text("1,2\n3,4\n")
    for asked in (years, ["2019", "2020"]):
        assert features(Table(str(tmp_path / "b.csv"), asked, names=years)) == [[1, 2], [3, 4]]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "xlsx"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_a_name_is_found_in_either_normal_form(tmp_path: Path, ending: str, stored: Any) -> None:
    size = unicodedata.normalize(stored, "gr\u00f6\u00dfe")
    frame = pd.DataFrame({size: [1.0, 2.0], "part": ["train", "test"]})
    path = tmp_path / f"a.{ending}"
    if ending == "csv":
        frame.to_csv(path, index=False)
    elif ending == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif ending == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_excel(path, index=False)
    for form in ("NFC", "NFD"):
        asked = unicodedata.normalize(form, "gr\u00f6\u00dfe")  # type: ignore[arg-type] # the two
        assert features(Table(str(path), [asked])) == [[1], [2]]
        assert Table(str(path), [], {asked: "number"})[1] == {asked: 2}
        part = Table(str(path), [asked], split=ByValue(asked, train=[1], test=[2]), part="test")
        assert features(part) == [[2]]
        assert Series(str(path), [asked], 1, 1)[0]["series"].tolist() == [[1]]


def test_a_quoted_header_of_one_column_may_hold_separators(tmp_path: Path) -> None:
    for name in ("Height, cm", "Height; cm", "a|b, c"):
        (tmp_path / "a.csv").write_text(f'"{name}"\n1\n2\n')
        assert features(Table(str(tmp_path / "a.csv"))) == [[1], [2]]
        assert features(Table(str(tmp_path / "a.csv"), [name])) == [[1], [2]]
    (tmp_path / "a.csv").write_text("a;b, c\n1;2\n")
    with pytest.raises(
        DataError, match=r'row 1: one column .* which looks like several. Set separator: ";"'
    ):
        Table(str(tmp_path / "a.csv"), separator="|")


def test_suffixes_may_be_in_capitals(tmp_path: Path) -> None:
    for name in ("a.tsv", "A.TSV", "B.Tsv.GZ"):
        text = "a\tb\n1.5\t2\n"
        packed = gzip.compress(text.encode()) if name.endswith("GZ") else text.encode()
        (tmp_path / name).write_bytes(packed)
        assert Table(str(tmp_path / name))[0]["features"].tolist() == [1.5, 2]
    (tmp_path / "a.tsv.csv").write_text("a,b\n1,2\n")
    assert Table(str(tmp_path / "a.tsv.csv"))[0]["features"].tolist() == [1, 2]
    (tmp_path / "A.CSV").write_text("a;b\n1;2\n")
    with pytest.raises(DataError, match="Set separator: "):
        Table(str(tmp_path / "A.CSV"))
    np.save(tmp_path / "a.npy", np.arange(6.0))
    (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
    assert len(Series(str(tmp_path / "A.NPY"), ["x"], 3, 3)) == 2


def test_a_space_between_thousands_is_not_one_around_a_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n  12\n 1 234 \n-5 \n")
    table = Table(str(tmp_path / "a.csv"), thousands=" ")
    assert [table[row]["features"].item() for row in range(3)] == [12, 1234, -5]
    (tmp_path / "a.csv").write_text("a\n 1 2\n")
    with pytest.raises(DataError, match="' 1 2' is not a number"):
        Table(str(tmp_path / "a.csv"), thousands=" ")
