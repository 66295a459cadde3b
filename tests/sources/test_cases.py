"""Files from bug reports that no other test names; pandas says what they hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.errors import DataError
from harness.sources.given import Arrays
from harness.sources.series import Series
from harness.sources.tables import Table

CASES = Path(__file__).parents[3] / "shared" / "cases" / "data"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")


def read(table: Table) -> dict[str, Any]:
    return table.__getitems__(list(range(len(table))))


def test_a_table_in_latin_1_is_read_in_it() -> None:
    path = CASES / "latin1_message" / "test_latin1.csv"
    with pytest.raises(DataError, match=r"row 3: byte 0xa9 is not utf-8\. Set encoding, e\.g\."):
        Table(str(path), ["a", "b"])
    found = read(Table(str(path), ["a", "b"], {"c": "text"}, encoding="latin-1"))
    frame = pd.read_csv(path, encoding="latin-1", dtype={"c": str})
    np.testing.assert_array_equal(found["features"], frame[["a", "b"]])
    assert found["c"] == frame["c"].tolist()


def test_a_series_in_latin_1_is_read_in_it() -> None:
    path, name = CASES / "x_series_latin1" / "latin.csv", "temperatura °C"
    with pytest.raises(DataError, match=r"row 1: byte 0xb0 is not utf-8\. Set encoding, e\.g\."):
        Series(str(path), [name], 5, 5)
    series = Series(str(path), [name], 5, 5, encoding="latin-1")
    frame = pd.read_csv(path, encoding="latin-1")
    windows = series.__getitems__(list(range(len(series))))["series"]
    np.testing.assert_array_equal(windows.ravel(), frame[name].to_numpy(np.float32))


def test_a_text_of_140_000_letters_is_whole() -> None:
    path = CASES / "long_text" / "long.csv"
    found, frame = read(Table(str(path), ["y"], {"text": "text"})), pd.read_csv(path)
    assert found["text"] == frame["text"].tolist()
    assert max(map(len, found["text"])) == 140_000
    np.testing.assert_array_equal(found["features"], frame[["y"]])


def test_columns_called_by_years_are_found() -> None:
    path, years = CASES / "year_names" / "yearcols.xlsx", [2019, 2020]
    frame = pd.read_excel(path, engine="openpyxl")
    table = Table(str(path), years)  # type: ignore[arg-type] # as YAML reads them
    np.testing.assert_array_equal(read(table)["features"], frame[years])


def test_arrays_tell_what_float32_loses() -> None:
    counter = 123456789 + 0.25 * np.arange(100)
    with pytest.warns(UserWarning, match=r"float32 has 7 digits.* x: 4 of 100 distinct numbers"):
        Arrays(x=np.stack([np.arange(100.0), counter], axis=1))


def test_every_case_is_in_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    names = [path.name for path in CASES.iterdir() if path.is_dir()]
    assert names
    assert [name for name in names if f'"{name}"' not in tests and f'"{name}/' not in tests] == []
