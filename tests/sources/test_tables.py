"""Tables: the same samples from every format, and the cell named that is no good."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness.data.split import Split
from harness.errors import ConfigError, DataError
from harness.sources import files as files_module
from harness.sources.split import ByGroup, ByValue, Stratified
from harness.sources.tables import Table
from harness.treatments.learned import Rescale, Standardise
from harness.treatments.tables import Encode, Impute, Join, OneHot

FORMATS = [".csv", ".jsonl", ".parquet", ".xlsx"]


def write(frame: pd.DataFrame, path: Path, **excel: Any) -> str:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        # Pandas' own to_json rounds to 15 places after the point
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_excel(path, index=False, **excel)
    return str(path)


def wines(count: int = 40) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "acid": draw.normal(size=count),
            "colour": draw.choice(["red", "white", "007"], count),
            "year": draw.integers(1990, 2020, count),
            "sweet": draw.integers(0, 2, count).astype(bool),
            "grower": draw.choice(["a", "b", "c", "d", "è"], count),
        }
    )


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, column in one.items():
        if isinstance(column, np.ndarray):
            assert column.dtype == other[name].dtype
            np.testing.assert_array_equal(column, other[name])
        else:
            assert column == other[name]


COLUMNS = {"colour": "text", "year": "integer"}


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_what_was_written(tmp_path: Path, ending: str) -> None:
    frame = wines()
    table = Table(write(frame, tmp_path / f"a{ending}"), ["sweet", "acid"], COLUMNS)  # type: ignore[arg-type]
    batch = table.__getitems__([3, 0])
    assert batch["features"].dtype == np.float32
    np.testing.assert_allclose(
        batch["features"], frame[["sweet", "acid"]].to_numpy(dtype=np.float64)[[3, 0]], rtol=1e-7
    )
    assert batch["colour"] == frame["colour"].iloc[[3, 0]].tolist()
    assert batch["year"].dtype == np.int64
    assert batch["year"].tolist() == frame["year"].iloc[[3, 0]].tolist()
    assert (table[3]["features"] == batch["features"][0]).all()
    assert table[3]["colour"] == batch["colour"][0]
    assert len(table) == 40


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.floats(-1e9, 1e9, width=32) | st.none(),
            st.integers(-(2**40), 2**40),
            st.text(
                st.characters(categories=["L", "N", "P"], exclude_characters="_"),
                min_size=1,
                max_size=6,
            ),
        ),
        min_size=1,
        max_size=12,
    )
)
@example([(2.7398471946077363e-12, 0, "0")])
def test_all_formats_give_identical_samples(
    tmp_path: Path, rows: list[tuple[float | None, int, str]]
) -> None:
    frame = pd.DataFrame(
        {
            "x": [row[0] for row in rows],
            "n": [row[1] for row in rows],
            "word": [f"w{row[2]}" for row in rows],
        }
    ).astype({"x": float})
    tables = [
        Table(
            write(frame, tmp_path / f"a{ending}"),
            ["x"],
            {"n": "integer", "word": "text"},
            missing="keep",
        ).__getitems__(list(range(len(rows))))
        for ending in FORMATS
    ]
    for other in tables[1:]:
        same(tables[0], other)


@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_treatments_give_identical_tensors(tmp_path: Path, ending: str) -> None:
    frame = wines()
    frame.loc[5, "acid"] = None
    treatments = [
        Encode("colour", ["red", "white", "007"]),
        OneHot("colour", 3),
        Impute(0.5, mark=True),
        Join(["features", "colour"]),
    ]

    def batch(path: Path) -> dict[str, Any]:
        split = Split(
            Table(write(frame, path), ["acid", "year"], {"colour": "text"}, missing="keep"),
            treatments,
            "data.train",
            lambda batch: None,
        )
        return split.fetch(np.arange(40), np.arange(40, dtype=np.uint64), 0, training=True)

    found, reference = batch(tmp_path / f"a{ending}"), batch(tmp_path / "reference.csv")
    assert found["features"].shape == (40, 7)
    assert found["features"][5, :4].tolist() == [0.5, frame["year"][5], 1, 0]
    assert (found["features"] == reference["features"]).all()


NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=3).map(
    lambda text: f"w{text}"
)
CELLS = st.tuples(
    st.floats(-1e6, 1e6, width=32) | st.none(),
    st.integers(-999, 999),
    NAMES,
    st.sampled_from(["red", "white", "007"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(
    st.lists(CELLS, min_size=2, max_size=12).filter(
        lambda rows: any(row[0] is not None for row in rows)
    )
)
def test_treatments_that_learn_give_identical_tensors_from_every_format(
    tmp_path: Path, rows: list[tuple[float | None, int, str, str]]
) -> None:
    frame = pd.DataFrame(rows, columns=["x", "n", "word", "colour"]).astype({"x": float})

    def batch(path: Path) -> dict[str, Any]:
        columns: Any = {"word": "text", "colour": "text"}
        treatments: list[Any] = [
            Impute("median", mark=True),
            Standardise(),
            Encode("word"),
            Encode("colour", ["red", "white", "007"]),
        ]
        treatments += [OneHot("colour", 3), Join(["features", "colour"]), Rescale(key="features")]
        split = Split(
            Table(write(frame, path), ["x", "n"], columns, missing="keep"),
            [],
            "data.train",
            lambda batch: None,
        )
        found = split.fetch(
            np.arange(len(rows)), np.arange(len(rows), dtype=np.uint64), 0, training=True
        )
        for treatment in treatments:
            if hasattr(treatment, "observe"):
                treatment.observe(found)
                treatment.finish()
            found = treatment(found)
        return found

    reference, *others = (batch(tmp_path / f"a{ending}") for ending in FORMATS)
    assert reference["features"].shape == (len(rows), 7)
    assert not reference["features"].isnan().any()
    for other in others:
        assert other["features"].dtype == reference["features"].dtype == torch.float32
        assert torch.equal(other["features"], reference["features"])
        assert torch.equal(other["word"], reference["word"])


@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_known_of_rows_and_where_they_lie(tmp_path: Path, ending: str) -> None:
    path = write(wines(), tmp_path / f"red{ending}")
    table = Table(
        str(tmp_path / f"{{kind}}{ending}"),
        ["acid"],
        {"year": "integer", "colour": "text"},
        "test",
        ByGroup("grower", 0, 0.3),
    )
    known = table.known()
    frame = wines()
    chosen = frame[frame["grower"].isin(set(known["grower"]))]
    assert 0 < len(chosen) < 40
    assert known["grower"] == chosen["grower"].tolist()
    assert known["year"] == chosen["year"].astype(str).tolist()
    assert known["colour"] == chosen["colour"].tolist()
    assert known["kind"] == ["red"] * len(chosen)
    assert known["path"] == [path] * len(chosen)
    assert known["row"] == [
        str(row + (2 if ending in (".csv", ".xlsx") else 1)) for row in chosen.index
    ]
    assert table.paths() == Table.paths_of(path, sheet=2) == [Path(path)]


@pytest.mark.parametrize("ending", FORMATS)
def test_a_number_that_marks_what_is_missing_does_so_in_every_format(
    tmp_path: Path, ending: str
) -> None:
    path = write(pd.DataFrame({"x": [1.5, -999, 2], "n": [1, 2, -999]}), tmp_path / f"a{ending}")
    features = Table(path, ["x", "n"], missing="keep", missing_marks=[-999]).__getitems__(
        [0, 1, 2]
    )["features"]  # type: ignore[list-item]
    np.testing.assert_array_equal(
        features, np.array([[1.5, 1], [np.nan, 2], [2, np.nan]], np.float32)
    )
    with pytest.raises(DataError, match=r"column 'n': nan is not an integer"):
        Table(path, ["x"], {"n": "integer"}, missing="keep", missing_marks=["-999"])


def test_a_large_table_is_read_in_pieces_and_its_last_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    count = 70_000
    numbers = np.random.default_rng(0).normal(size=count).tolist()
    lines = [f"{number!r},{'ab'[row % 2]}{row % 7}" for row, number in enumerate(numbers)]
    path.write_text("\n".join(["x,word", *lines, " 2.5 ,c", "NA,c"]))
    table = Table(str(path), ["x"], {"word": "text"}, missing="keep")
    batch = table.__getitems__(list(range(len(table))))
    np.testing.assert_array_equal(
        batch["features"][:, 0], np.array([*numbers, 2.5, np.nan], np.float32)
    )
    assert batch["word"][:3] == ["a0", "b1", "a2"]
    path.write_text("\n".join(["x,word", *lines, "2,5x,c"]))
    with pytest.raises(DataError, match=r"row 70002: 3 cells for 2 columns"):
        Table(str(path), ["x"])
    path.write_text("\n".join(["x,word", *lines, "2.5x,c"]))
    with pytest.raises(DataError, match=r"row 70002, column 'x': '2\.5x' is not a number"):
        Table(str(path), ["x"])


def test_several_files_are_rows_of_one_table_and_their_paths_a_column(tmp_path: Path) -> None:
    for name in "ba":
        (tmp_path / name).mkdir()
        write(wines(5), tmp_path / name / "x.csv")
    table = Table(
        str(tmp_path / "{place}/*.csv"),
        ["acid"],
        {"place": "text"},
        part="val",
        split=ByValue("place", val=["b"]),
    )
    assert table.__getitems__(list(range(5)))["place"] == ["b"] * 5
    assert len(Table([str(tmp_path / "b/x.csv"), str(tmp_path / "a/x.csv")], ["acid"])) == 10


def test_without_a_list_every_other_column_is_a_feature(tmp_path: Path) -> None:
    path = write(wines(), tmp_path / "a.csv")
    table = Table(
        path, columns={"colour": "text"}, part="train", split=ByGroup("grower", val=0.2, test=0.2)
    )
    assert table.features == ["acid", "year", "sweet"]
    parts = {
        part: Table(path, ["acid"], {"grower": "text"}, part, ByGroup("grower", val=0.2, test=0.2))
        for part in ("train", "val", "test")
    }  # type: ignore[arg-type]
    growers = {
        part: set(one.__getitems__(list(range(len(one))))["grower"]) for part, one in parts.items()
    }
    assert sum(len(one) for one in parts.values()) == 40
    assert sum(map(len, growers.values())) == len(set.union(*growers.values()))


def test_a_stratified_split_is_the_same_in_every_format(tmp_path: Path) -> None:
    rule = Stratified("colour", key=["grower", "year"])
    acids = [
        Table(write(wines(), tmp_path / f"a{ending}"), ["acid"], part="test", split=rule)
        for ending in FORMATS
    ]
    for one in acids[1:]:
        same(
            acids[0].__getitems__(list(range(len(acids[0])))),
            one.__getitems__(list(range(len(one)))),
        )


def test_a_sheet_is_taken_by_name_or_number_and_its_header_from_any_row(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    with pd.ExcelWriter(path) as book:
        wines(4).to_excel(book, sheet_name="first", index=False)
        wines(7).to_excel(book, sheet_name="second", index=False, startrow=3)
    assert len(Table(str(path), ["acid"])) == 4
    assert len(Table(str(path), ["acid"], sheet=2, header=4)) == 7
    assert len(Table(str(path), ["acid"], sheet="second", header=4)) == 7
    with pytest.raises(
        DataError, match=rf"{path}: the column names are in row 4\. Set header: 4\."
    ):
        Table(str(path), ["acid"], sheet="second")
    with pytest.raises(
        DataError, match=rf"{path}: no sheet 'secnd', only first, second\. Did you mean 'second'\?"
    ):
        Table(str(path), ["acid"], sheet="secnd")
    with pytest.raises(DataError, match=rf"{path}: no sheet 3, only first, second"):
        Table(str(path), ["acid"], sheet=3)


def test_a_header_above_the_given_row_is_found_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("made by hand\n\nx,y\n1,2\n3,4\n")
    assert Table(str(path), ["x", "y"], header=3)[1]["features"].tolist() == [3, 4]
    for header in (1, 4):
        with pytest.raises(DataError, match=r"the column names are in row 3\. Set header: 3"):
            Table(str(path), ["x", "y"], header=header)
    with pytest.raises(DataError, match=r"row 2 is empty, where the column names should be"):
        Table(str(path), header=2)
    with pytest.raises(DataError, match=r"row 9 is empty, where the column names should be"):
        Table(str(path), header=9)


def test_italian_numbers_are_read_as_they_are_meant(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("x;città\n1,5;Forlì\n-2;Roma\n".encode("latin-1"))
    table = Table(
        str(path), ["x"], {"città": "text"}, separator=";", decimal=",", encoding="latin-1"
    )
    assert table.__getitems__([0, 1])["features"].tolist() == [[1.5], [-2]]
    assert table[0]["città"] == "Forlì"
    with pytest.raises(DataError, match=rf"{path}: row 1: byte 0xe0 is not utf-8\. Set encoding"):
        Table(str(path), ["x"], separator=";")
    path.write_text("x\n1.234\n")
    with pytest.raises(DataError, match=r"row 2, column 'x': '1\.234' is not a number"):
        Table(str(path), ["x"], decimal=",", separator=";")


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".xlsx"])
def test_text_where_a_number_belongs_is_named_with_file_row_and_column(
    tmp_path: Path, ending: str
) -> None:
    frame = pd.DataFrame({"x": [1, 2, "12_5"], "y": [1, 2, 3]})
    path = write(frame, tmp_path / f"a{ending}")
    row = 3 if ending == ".jsonl" else 4
    with pytest.raises(
        DataError,
        match=(
            rf"{path}: row {row}, column 'x': '12_5' is not a number\. Correct it, or read "
            r"the column as text"
        ),
    ):
        Table(path, ["x", "y"])


@pytest.mark.parametrize("ending", FORMATS)
def test_a_gap_is_refused_or_kept(tmp_path: Path, ending: str) -> None:
    path = write(
        pd.DataFrame({"x": [1.5, None, 2], "word": ["a", "b", None], "n": [1, 2, 3]}),
        tmp_path / f"a{ending}",
    )
    row = 3 if ending in (".csv", ".xlsx") else 2
    with pytest.raises(
        DataError,
        match=(
            rf"row {row}, column 'x': empty, expected a number\. Fill it in, or set "
            r"missing: keep"
        ),
    ):
        Table(path, ["x"])
    with pytest.raises(DataError, match=rf"row {row + 1}, column 'word': empty, expected text"):
        Table(path, ["n"], {"word": "text"})
    kept = Table(path, ["x"], {"word": "text"}, missing="keep").__getitems__([0, 1, 2])
    np.testing.assert_array_equal(kept["features"], np.array([[1.5], [np.nan], [2]], np.float32))
    assert kept["word"] == ["a", "b", ""]
    with pytest.raises(
        DataError,
        match=(
            rf"row {row}, column 'x': 1\.5 is not an integer|row {row - 1}, column 'x': 1\.5 is "
            r"not an integer"
        ),
    ):
        Table(path, ["n"], {"x": "integer"}, missing="keep")


def test_marks_of_missing_values_are_missing_among_numbers_and_words_among_text(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,word\n-,NA\nNA,b\n")
    table = Table(str(path), ["x"], {"word": "text"}, missing="keep", missing_marks=["-", "NA"])
    assert np.isnan(table.__getitems__([0, 1])["features"]).all()
    assert table[0]["word"] == "NA"


def test_rows_without_anything_are_passed_over_and_keep_the_numbers_of_the_others(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n\n1,2\n,\n\nx,4\n\n")
    with pytest.raises(DataError, match=r"row 6, column 'x': 'x' is not a number"):
        Table(str(path), ["x"])
    assert len(Table(str(path), ["y"])) == 2


CONTENTS: list[tuple[str, bytes, str]] = [
    (
        "a.csv",
        b"x,y\n1,2,3\n",
        r"row 2: 3 cells for 2 columns\. Correct the row, or set header or separator",
    ),
    ("a.csv", b"x,y\n1,2\n3\n", r"row 3: 1 cells for 2 columns"),
    ("a.csv", b'x,y\n"1,2\n', r"row 2: unexpected end of data"),
    ("a.csv", b"x,x,y\n1,2,3\n", r"two columns are called 'x'"),
    ("a.csv", b"X ,y\n1,2\n", r"no column 'x', only X, y\. Did you mean 'X'\?"),
    ("a.csv", b"", r"row 1 is empty"),
    ("a.csv", b"x,y\n1,inf\n", r"row 2, column 'y': infinite"),
    ("a.csv", b"x,y\n1,1e300\n", r"row 2, column 'y': too large for float32"),
    ("a.jsonl", b'{"x": 1, "y": 2}\n{"x": 1\n', r"row 2: not JSON"),
    ("a.jsonl", b'{"x": 1, "y": 2}\n\n[1, 2]\n', r"row 3: list is not an object"),
    ("a.jsonl", b'{"x": 1, "y": [2]}\n', r"row 1, column 'y': \[2\] is not a number"),
    ("a.jsonl", b'{"x": 1}\n', r"no column 'y', only x"),
    (
        "a.xlsx",
        b"PK\x03\x04 and so on",
        r"cannot be read: .* It may be truncated, or not an Excel file",
    ),
    (
        "a.parquet",
        b"PAR1 and so on",
        r"cannot be read: .* It may be truncated, or not a Parquet file",
    ),
    ("a.sav", b"x", r"\.sav is not one of \.csv, \.tsv"),
    ("a.ods", b"x", r"cannot be read: .* truncated, or not a spreadsheet"),
    ("a.numbers", b"x", r"\.numbers is not one of \.csv, \.tsv"),
]


@pytest.mark.parametrize(("name", "content", "message"), CONTENTS)
def test_a_file_that_is_no_good_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^{tmp_path / name}: {message}"):
        Table(str(tmp_path / name), ["x", "y"])


def test_a_corrupt_file_among_many_stops_or_is_left_out_and_counted(tmp_path: Path) -> None:
    for number in range(5):
        write(wines(3), tmp_path / f"{number}.parquet")
    (tmp_path / "3.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        DataError,
        match=(
            rf"^{tmp_path}/3\.parquet: cannot be read: .* Or skip such files with on_error: "
            r"skip"
        ),
    ):
        Table(str(tmp_path / "*.parquet"), ["acid"])
    with pytest.warns(
        UserWarning, match=rf"^1 of 5 files skipped: {tmp_path}/3\.parquet: cannot be read"
    ):
        table = Table(str(tmp_path / "*.parquet"), ["acid"], on_error="skip")
    assert len(table) == 12
    assert len(table.skipped) == 1
    with pytest.raises(DataError, match=r"^1 of 1 files skipped: "):
        Table(str(tmp_path / "3.parquet"), ["acid"], on_error="skip")
    with pytest.raises(ConfigError, match=r"^on_error: 'go on' is neither stop nor skip"):
        Table(str(tmp_path / "3.parquet"), ["acid"], on_error="go on")  # type: ignore[arg-type]


def test_files_with_other_columns_are_refused_where_all_are_taken(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("y,x\n2,1\n")
    assert Table(str(tmp_path / "*.csv")).__getitems__([0, 1])["features"].tolist() == [
        [1, 2],
        [1, 2],
    ]
    (tmp_path / "c.csv").write_text("x,y,z\n1,2,3\n")
    with pytest.raises(DataError, match=r"c\.csv: column 'z' is not in all files"):
        Table(str(tmp_path / "*.csv"))


def test_what_reads_excel_is_named_when_it_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    path = write(wines(), tmp_path / "a.xlsx")
    monkeypatch.setattr(files_module.importlib, "import_module", absent)
    with pytest.raises(
        DataError,
        match=(
            r"Excel needs python_calamine, which is not installed .* Install it: pip install "
            r"'fermarsi\[tables\]'"
        ),
    ):
        Table(path, ["acid"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"columns": {"colour": "category"}},
            r"^columns\.colour: 'category' is not one of number, integer, text",
        ),
        (
            {"features": ["acid"], "columns": {"acid": "number"}},
            r"^columns\.acid: samples already have",
        ),
        ({"columns": {"features": "text"}}, r"^columns\.features: samples already have"),
        ({"header": 0}, r"^header: 0: rows are counted from 1"),
        ({"missing": "drop"}, r"^missing: 'drop' is neither refuse nor keep"),
        ({"separator": ";;"}, r"^separator, decimal: "),
    ],
)
def test_a_mistake_in_a_tables_settings_is_named(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Table(write(wines(), tmp_path / "a.csv"), **arguments)


def test_dates_and_json_booleans_are_read_as_text_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"day": "2026-11-24", "on": True}) + "\n")
    pd.DataFrame({"day": [datetime.date(2026, 11, 24)], "on": [True]}).to_parquet(
        tmp_path / "b.parquet"
    )
    for name in ("a.jsonl", "b.parquet"):
        assert Table(str(tmp_path / name), ["on"], {"day": "text"})[0]["day"] == "2026-11-24"


def test_the_index_that_pandas_stores_in_parquet_is_no_feature(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"a": [1.0, 2.0, 3.0]}).iloc[[1, 2, 0]].to_parquet(path)
    whole = Table(str(path))
    assert whole.features == ["a"]
    assert whole[0]["features"].tolist() == [2.0]
    named = Table(str(path), features=["__index_level_0__"])
    assert named[0]["features"].tolist() == [1.0]


def test_a_time_zone_that_is_unknown_is_named(tmp_path: Path) -> None:
    stamps = pa.array([0, 1], pa.timestamp("s", tz="Mars/Phobos"))
    pq.write_table(pa.table({"t": stamps, "a": [1.0, 2.0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 1, column 't': the time zone 'Mars/Phobos' is not"):
        Table(str(tmp_path / "a.parquet"), features=["a"], columns={"t": "text"})
    assert len(Table(str(tmp_path / "a.parquet"), features=["a"])) == 2


def test_times_of_day_keep_all_their_digits_or_are_refused(tmp_path: Path) -> None:
    for name, times in (("a", [1_000, 2_000]), ("b", [1, 2])):
        table = pa.table({"t": pa.array(times, pa.time64("ns"))})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    read = Table(str(tmp_path / "a.parquet"), [], {"t": "text"})
    assert read.known()["t"] == ["00:00:00.000001", "00:00:00.000002"]
    with pytest.raises(DataError, match="'t': times of day are read to the microsecond"):
        Table(str(tmp_path / "b.parquet"), [], {"t": "text"})


def test_half_a_character_is_refused_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"t": "a"}\n{"t": "\\ud800"}\n')
    with pytest.raises(DataError, match=r"row 2, column 't': .*surrogates not allowed"):
        Table(str(tmp_path / "a.jsonl"), [], {"t": "text"})


def test_a_page_of_parquet_that_its_checksum_belies_is_refused(tmp_path: Path) -> None:
    """Without a codec, a page of numbers decodes whatever its bytes are."""
    path, numbers = tmp_path / "a.parquet", np.random.default_rng(0).normal(size=500)
    plain: dict[str, Any] = {"use_dictionary": False, "compression": "none"}
    pq.write_table(pa.table({"a": numbers}), path, write_page_checksum=True, **plain)
    assert len(Table(str(path))) == 500
    data, number = path.read_bytes(), numbers[250].tobytes()
    assert data.count(number) == 1
    path.write_bytes(data.replace(number, numbers[251].tobytes()))
    assert pq.read_table(path).num_rows == 500, "pyarrow does not look by itself"
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read: .*page integrity"):
        Table(str(path))
