"""Columns within columns: objects of JSON, structs of Parquet."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.errors import DataError
from harness.sources.series import Series
from harness.sources.tables import Table

OBJECTS: list[dict[str, Any]] = [
    {"id": 1, "b": {"x": 1.5, "of": {"name": "ä", "on": True}}, "y": 7},
    {"id": 2, "b": {"x": -2.0, "of": {"name": "u", "on": False}}, "y": 8},
    {"id": 3, "b": {"x": 0.25, "of": {"name": "", "on": True}}, "y": 9},
]


def files(folder: Path, objects: list[dict[str, Any]]) -> list[Path]:
    lines, whole, columns = (folder / f"t{end}" for end in (".jsonl", ".json", ".parquet"))
    lines.write_text("".join(json.dumps(one) + "\n" for one in objects), encoding="utf-8")
    whole.write_text(json.dumps(objects), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(objects), columns)
    return [lines, whole, columns]


def test_a_name_that_occurs_twice_in_an_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}\n')
    with pytest.raises(DataError, match=r"row 2: not JSON: the name 'c' occurs twice in an obj"):
        Table(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.json").write_text('[{"a": 1, "a": 2}]')
    with pytest.raises(DataError, match=r"a\.json: not JSON: the name 'a' occurs twice"):
        Table(str(tmp_path / "a.json"))


def test_nested_columns_are_those_that_pandas_makes_of_them(tmp_path: Path) -> None:
    flat = pd.json_normalize(OBJECTS)
    for path in files(tmp_path, OBJECTS):
        table = Table(
            str(path),
            features=["b.x", "y"],
            columns={"b.of.name": "text", "b.of.on": "text", "id": "integer"},
            missing="keep",
        )
        batch = table.__getitems__([2, 0, 1])
        rows = flat.iloc[[2, 0, 1]]
        assert batch["features"].tolist() == rows[["b.x", "y"]].to_numpy().tolist()
        assert batch["b.of.name"] == rows["b.of.name"].tolist()
        assert batch["b.of.on"] == rows["b.of.on"].map(str).tolist()
        every = Table(str(path), columns={"b.of.name": "text", "b.of.on": "text"}, missing="keep")
        assert every.features is not None
        assert {*every.features} == {"id", "b.x", "y"}
        series = Series(str(path), channels=["b.x", "y"], length=3, stride=1)
        assert series[0]["series"].tolist() == flat[["b.x", "y"]].T.to_numpy().tolist()


def test_an_object_that_is_missing_is_a_missing_cell_in_each_of_its_columns(tmp_path: Path) -> None:
    objects = [*OBJECTS, {"id": 4, "b": None, "y": 1}, {"id": 5, "b": {"x": None}, "y": 2}]
    for path in files(tmp_path, objects):
        with pytest.raises(DataError, match=r"row 4, column 'b\.x'"):
            Table(str(path), features=["b.x"])
        table = Table(str(path), features=["b.x"], columns={"b.of.name": "text"}, missing="keep")
        values = table.__getitems__([0, 3, 4])
        assert np.isnan(values["features"][1:]).all()
        assert values["b.of.name"] == ["ä", "", ""]


# As reported of other readers: a dot in a name, a struct, and both at once
@pytest.mark.parametrize("both", [False, True])
def test_a_dot_in_a_name_is_read_and_refused_where_it_means_two_columns(
    tmp_path: Path, both: bool
) -> None:
    objects = [{"b.x": number, "b": number} for number in (1, 2)]
    if both:
        objects = [{"b.x": 1, "b": {"x": 2}}, {"b.x": 3, "b": {"x": 4}}]  # type: ignore[dict-item]
    for path in files(tmp_path, objects):
        if both:
            with pytest.raises(DataError, match=r"two columns are called 'b\.x'"):
                Table(str(path), features=["b.x"])
        else:
            table = Table(str(path), features=["b.x", "b"])
            assert table[1]["features"].tolist() == [2, 2]


def test_a_struct_asked_for_as_a_column_is_answered_by_its_columns(tmp_path: Path) -> None:
    for path in files(tmp_path, OBJECTS):
        with pytest.raises(DataError, match=r"no column 'b', only .*b\.x"):
            Table(str(path), features=["b"])
        with pytest.raises(DataError, match=r"no column 'b\.z', only .* Did you mean 'b\.x'"):
            Table(str(path), features=["b.z"])
