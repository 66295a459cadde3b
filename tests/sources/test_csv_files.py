"""CSV by pyarrow and by Python's strict reader: the same cells, rows and refusals, and one reading
for all parts.
"""

import csv
import os
import random
import time
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError, DataError
from harness.sources import csv_files, recording, tables
from harness.sources.cells import Layout
from harness.sources.series import Series
from harness.sources.split import ByValue, Part
from harness.sources.table_files import read_cells, read_pieces
from harness.sources.tables import Table


def read_strictly(text: str) -> list[tuple[int, list[str]]]:
    """Python's own reader over the whole text: the oracle."""
    lines = csv.reader(StringIO(text, newline=""), strict=True)
    return [(lines.line_num, cells) for cells in lines if any(cells)]


PIECES = [
    "a",
    "b1",
    "0",
    " ",
    "ü",
    ",",
    ",",
    "\n",
    "\r\n",
    "\n",
    "\r",
    '"',
    '""',
    '"x,y"',
    '"p\nq"',
    '"p\r\nq"',
]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.sampled_from([4, 16, 2**24]))
def test_every_text_gives_the_cells_and_rows_that_the_strict_reader_gives(
    tmp_path_factory: Any, body: str, block: int
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    text = f"x,y\n{body}"
    path.write_text(text, newline="", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_files, "_BLOCK", block)
        try:
            read = read_cells(path, Layout())
            found: Any = list(zip(*(read.cells[name].to_pylist() for name in "xy"), strict=True))
        except DataError:
            found = None
    try:
        lines = read_strictly(text)[1:]
        regular = all(len(cells) == 2 or not any(cells[2:]) for _, cells in lines)
        wanted = [tuple(cells[:2]) for _, cells in lines]
        if not regular or any(len(cells) < 2 for _, cells in lines):
            wanted = None  # type: ignore[assignment] # refused
    except csv.Error:
        wanted = None  # type: ignore[assignment] # refused
    assert found == wanted
    if found is not None:
        assert np.asarray(read.rows).tolist() == [row for row, _ in lines]


def regular(count: int) -> str:
    return "n,t,g\n" + "".join(f'{row},"t {row % 7}",{row % 3}\n' for row in range(count))


def test_python_reads_no_row_of_a_regular_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text(regular(1000))
    monkeypatch.setattr(csv_files, "rows_below", lambda head, layout, lines: iter([]))
    table = Table(str(tmp_path / "a.csv"), ["n"], {"t": "text"})
    assert len(table) == 1000


def test_a_bad_row_after_many_blocks_has_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_files, "_BLOCK", 1000)
    for line, what in (
        ("1,2", "2 cells for 3"),
        ('1,"a"b,2', r"'.' expected after"),
        ("x,a,2", "not a number"),
    ):
        (tmp_path / "a.csv").write_text(f"{regular(500)}\n{line}\n{regular(500)[6:]}")
        with pytest.raises(DataError, match=rf"a\.csv: row 503(, column 'n')?: .*{what}"):
            Table(str(tmp_path / "a.csv"), ["n"], {"t": "text"})


def test_lines_in_a_cell_stay_whole_wherever_pyarrow_cuts_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # https://github.com/apache/arrow/issues/51368
    monkeypatch.setattr(csv_files, "_BLOCK", 512)
    path = tmp_path / "a.csv"
    for length in range(100, 160):
        cell = "z" * length + "\r\nB"
        path.write_text(f'id,s\r\n0,"{cell}"\r\n1,plain\r\n', newline="")
        assert list(Table(str(path), [], {"s": "text"})[0].values()) == [cell]


def test_an_odd_quote_does_not_make_a_file_be_looked_through_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_files, "_BLOCK", 1000)
    looked: list[int] = []
    end_of_rows = csv_files._end_of_rows
    monkeypatch.setattr(
        csv_files, "_end_of_rows", lambda text: looked.append(len(text)) or end_of_rows(text)
    )
    (tmp_path / "a.csv").write_text("n,t\n" + '0,"odd\n' + "1,plain\n" * 2000)
    with pytest.raises(DataError, match=r"row 2002: unexpected end of data"):
        Table(str(tmp_path / "a.csv"), ["n"], {"t": "text"})
    (tmp_path / "b.csv").write_text("n,t\n" + '0,"' + "1,plain\n" * 2000 + '"\n1,x\n')
    for skip in (0, 1):
        table = Table(str(tmp_path / "b.csv"), ["n"], {"t": "text"}, skip_footer=skip)
        assert table.known()["t"] == ["1,plain\n" * 2000, "x"][: 2 - skip]
    assert sum(looked) < 5000


@pytest.mark.parametrize("block", [100, 2**24])
def test_rows_at_the_end_that_are_no_data_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(csv_files, "_BLOCK", block)
    (tmp_path / "a.csv").write_text(f"{regular(50)}Total,1225\n\nby a person\n\n")
    with pytest.raises(DataError, match=r"row 52: 2 cells .* skip_footer"):
        Table(str(tmp_path / "a.csv"), ["n"])
    table = Table(str(tmp_path / "a.csv"), ["n"], skip_footer=2)
    assert table.__getitems__([0, 49])["features"].tolist() == [[0], [49]]
    assert len(table) == 50
    with pytest.raises(ConfigError, match="skip_footer: -1"):
        Table(str(tmp_path / "a.csv"), ["n"], skip_footer=-1)


def test_characters_that_are_escaped_are_meant_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('n,t\n1,say \\"no\\"\n2,"a\\"b"\n3,c\\,d\n')
    table = Table(str(tmp_path / "a.csv"), ["n"], {"t": "text"}, escape="\\")
    assert table.__getitems__([0, 1, 2])["t"] == ['say "no"', 'a"b', "c,d"]
    with pytest.raises(ConfigError, match="escape: 'xy'"):
        Table(str(tmp_path / "a.csv"), ["n"], escape="xy")


@pytest.mark.parametrize("kind", ["zst", "bz2", "xz", "gz"])
def test_compressed_files_are_read_and_torn_ones_named(tmp_path: Path, kind: str) -> None:
    names = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}
    path = tmp_path / f"a.CSV.{kind}"
    text = "n,t\n" + "".join(f"{row},{random.Random(row).random()}\n" for row in range(3000))
    if kind == "xz":
        import lzma

        path.write_bytes(lzma.compress(text.encode()))
    else:
        with pa.output_stream(str(path), compression=names[kind]) as file:
            file.write(text.encode())
    table = Table(str(path), ["n"], {"t": "text"})
    assert table.__getitems__([2999])["features"].tolist() == [[2999]]
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=rf"a\.CSV\.{kind}: .*[Tt]runcated"):
        Table(str(path), ["n"], {"t": "text"})


def test_all_parts_of_a_table_share_one_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(regular(90))
    read: list[Path] = []
    monkeypatch.setattr(
        tables, "read_pieces", lambda path, *rest: read.append(path) or read_pieces(path, *rest)
    )

    def parts(**more: Any) -> list[Table]:
        rule = ByValue("g", val=["1"], test=["2"])
        return [
            Table(str(path), ["n"], part=part, split=rule, **more)
            for part in ("train", "val", "test")
        ]  # type: ignore[arg-type] # they are parts

    first = parts()
    assert len(read) == 3  # a file this new may change again within the precision of its time
    os.utime(path, (time.time() - 60, time.time() - 60))
    monkeypatch.setattr(time, "time_ns", lambda: int((time.time() + 60) * 1e9))
    read.clear()
    train, val, test = parts()
    assert len(read) == 1
    assert test.__getitems__([0])["features"].tolist() == [[2]]
    assert [one.known() for one in first] == [one.known() for one in (train, val, test)]
    assert np.shares_memory(*(one._whole.values["features"] for one in (train, val)))
    parts(missing="keep")  # other settings read anew
    path.write_text(regular(60))  # and another content
    assert len(read) == 2
    assert [len(one) for one in parts()] == [20, 20, 20]


def test_all_parts_of_a_series_share_one_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(
        recording, "read_cells", lambda path, *rest: read.append(path) or read_cells(path, *rest)
    )
    for who in "abc":
        (tmp_path / f"{who}.csv").write_text(regular(20))
    monkeypatch.setattr(time, "time_ns", lambda: int((time.time() + 60) * 1e9))
    names: tuple[Part, ...] = ("train", "val", "test")
    rule = ByValue("who", val=["b"], test=["c"])
    files = str(tmp_path / "{who}.csv")
    parts = [Series(files, ["n"], 10, 10, part=part, split=rule) for part in names]
    assert (len(read), [one.known()["who"] for one in parts]) == (
        3,
        [["a", "a"], ["b", "b"], ["c", "c"]],
    )
    Series(files, ["n"], 10, 10, units={"n": "degC"})
    assert len(read) == 6


def test_what_comes_late_in_a_file_is_read_as_what_comes_first(tmp_path: Path) -> None:
    # https://github.com/pandas-dev/pandas/issues/68706 joins the two; #36103 has a column of both
    # floats and texts; https://github.com/pola-rs/polars/issues/10544 fails after 100 rows
    path = tmp_path / "a.csv"
    large = [2**64 - 1, 2**64 - 2]
    rows = ["1,1,0.5", *["1,1,0.5"] * 2**16, *(f"{number},CASE-NO0A60,0.5" for number in large)]
    path.write_text("\n".join(["a,b,c", *rows]))
    table = Table(str(path), ["c"], {"a": "text", "b": "text"})
    assert [table[-at]["a"] for at in (2, 1)] == list(map(str, large))
    assert [table[at]["b"] for at in (0, -1)] == ["1", "CASE-NO0A60"]
    with pytest.raises(
        DataError, match=r"row 65539, column 'a': 18446744073709551615 is too large"
    ):
        Table(str(path), ["c"], {"a": "integer"})
    with pytest.raises(DataError, match=r"row 65539, column 'b': 'CASE-NO0A60' is not a number"):
        Table(str(path), ["b", "c"])
