"""Numbers beside predictions are those of the files, by pandas, though samples have float32."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import DataError
from harness.sources.given import Arrays
from harness.sources.mixtures import Subset
from harness.sources.tables import MOST_REPEATED, Table

numbers = st.floats(-1e30, 1e30, allow_nan=False) | st.integers(-(2**53), 2**53).map(float)
rows = st.lists(st.tuples(numbers, numbers, numbers | st.none()), min_size=1, max_size=20)


@settings(max_examples=25, deadline=None)
@given(rows, st.sampled_from([".csv", ".parquet", ".jsonl"]), st.data())
def test_any_numbers_of_any_format(
    cells: list[tuple[float]], suffix: str, data: st.DataObject
) -> None:
    frame = pd.DataFrame(cells, columns=["a", "b", "y"]).astype(float)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"new{suffix}"
        if suffix == ".parquet":
            frame.to_parquet(file)
        else:  # each number by the shortest text that is this one
            lines = ["a,b,y"] if suffix == ".csv" else []
            for record in frame.to_dict("records"):
                kept = {name: one for name, one in record.items() if one == one}
                texts = [repr(kept[name]) if name in kept else "" for name in frame]
                fields = [f'"{name}": {one!r}' for name, one in kept.items()]
                lines.append(",".join(texts) if suffix == ".csv" else f"{{{', '.join(fields)}}}")
            file.write_text("\n".join(lines) + "\n")
        if suffix == ".jsonl" and frame["y"].isna().all():
            return  # no line has this column
        table = Table(str(file), ["a", "b"], {"y": "number"}, missing="keep")
        wanted = data.draw(st.lists(st.integers(0, len(frame) - 1), max_size=5))
        found = table.own_numbers()(np.array(wanted, dtype=np.int64))
    assert list(found) == ["a", "b", "y"]
    for name, values in found.items():
        np.testing.assert_array_equal(values, frame[name].to_numpy()[wanted])
        whole = frame[name].mod(1).eq(0) & frame[name].abs().le(2**53)
        assert values.dtype == (np.int64 if whole.all() else np.float64)


def test_wide_tables_and_parts_and_arrays(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(MOST_REPEATED + 1)]
    frame = pd.DataFrame(np.arange(3.0)[:, None] + np.zeros(len(names)), columns=names)
    frame["price"] = [338600, 0.1, 1e9 + 0.5]
    frame.to_csv(tmp_path / "wide.csv", index=False)
    table = Table(str(tmp_path / "wide.csv"), names, {"price": "number"})
    with pytest.warns(UserWarning, match="its 65 features are not repeated beside the predictions"):
        own = Subset(table, indices=[2, 1]).own_numbers()(np.array([0, 1]))
    assert {name: values.tolist() for name, values in own.items()} == {"price": [1e9 + 0.5, 0.1]}
    arrays = Arrays(x=np.ones((3, 2)), price=frame["price"].to_numpy(), word=["a", "b", "c"])
    assert arrays.own_numbers()(np.array([2]))["price"].tolist() == [1e9 + 0.5]
    assert list(arrays.own_numbers()(np.array([2]))) == ["price"]
    frame[:2].to_csv(tmp_path / "wide.csv", index=False)
    table.features = names[:1]
    with pytest.raises(DataError, match="files changed while they were read"):
        table.own_numbers()
