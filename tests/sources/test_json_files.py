"""JSON lines by pyarrow and by Python's reader: the same cells, rows, names and refusals."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness.data.written import text_of
from harness.errors import DataError
from harness.sources import json_files
from harness.sources.cells import Layout, is_empty
from harness.sources.table_files import read_cells, read_pieces
from harness.sources.tables import Table


def flat(found: Any, within: str = "") -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, cell in found.items():
        cells |= flat(cell, f"{within}{name}.") if isinstance(cell, dict) else {within + name: cell}
    return cells


def read_plainly(text: str) -> tuple[list[int], list[dict[str, Any]]]:
    """The oracle: a line at a time."""
    lines = [(row, line) for row, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [row for row, _ in lines], [flat(json.loads(line)) for _, line in lines]


LITERALS = [
    *("0", "-0", "-0.0", "1", "1.0", "1.50", "1e2", "0.1", "-7", "2e-7", "1e16", "1e22", "5e-324"),
    *("9007199254740993", "-9223372036854775808", "18446744073709551617", "1.7976931348623159e308"),
    *("null", "true", "false", "NaN", "Infinity", "[1, 2.5]", "[]", "{}", '{"x": 1}', '{"x": "t"}'),
    *('{"y": null}', '{"x": {"z": 2}}', '""', '" "', '"1"', '"1.0"', '"a b"', '"ü"', '"u\\u0308"'),
    *('"2024-01-01"', '"2024-01-01 00:00:00"', '"2024-01-01T00:00:00Z"', '"12:00:00"', '"\\u0000"'),
    *('"}"', '"{"', '"\\n"', '"\\ud800"'),
]
NAMES = ["a", "b", "day", "b.x", "ü", "u\u0308"]
KINDS = st.sampled_from([LITERALS, LITERALS[:10], LITERALS[10:16], ['"a"', '"2024-01-01"', "null"]])
CELLS = st.dictionaries(st.sampled_from(NAMES[:3]), KINDS.flatmap(st.sampled_from), max_size=3)
ODD = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(LITERALS), max_size=4)
LINES = st.lists(st.one_of(CELLS, CELLS, ODD), max_size=8)
ENDS = st.sampled_from(["\n", "\n", "\n\n", "\r\n", " \n", ""])


@given(LINES, ENDS, st.sampled_from([4, 60, 2**24]), st.sampled_from([0, 2**28]))
@example([{"x": "1", "day": '"2024-01-01"'}, {"day": '"2024-01-02"', "c": "1"}], "\n", 60, 0)
@example([{"b": '{"x": 1}', "a": "1"}, {"b": '{"x": 1, "z": 2}', "a": "1"}], "\n", 2**24, 0)
@example([{"b": '{"x": {"z": 2}, "y": 1}'}, {"b": '{"x": {"z": 3}, "y": 1}'}], "\n", 2**24, 0)
@example([{"b": '{"x": {"z": 2}}'}, {"b": '{"x": null}'}], "\n", 2**24, 0)
@example([{"a": "9007199254740993"}, {"a": "1.5"}], "\n", 2**24, 2**28)
@example([{"a": '{"x": 1} '}, {"a": '{"x": null}', "b": "1"}], "\n", 2**24, 2**28)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_text_gives_the_cells_that_python_gives(
    tmp_path: Path, lines: list[dict[str, str]], end: str, block: int, held: int
) -> None:
    written = ["{" + ", ".join(f'"{n}": {c}' for n, c in one.items()) + "}" for one in lines]
    text = (end or "\n").join(written) + end
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "_BLOCK", block)
        patch.setattr(json_files, "_HELD", held)
        with pytest.MonkeyPatch.context() as python:
            python.setattr(json_files, "_by_pyarrow", lambda *_: None)
            strictly = outcome(path)
        assert outcome(path) == strictly
    if isinstance(strictly, str):
        return
    rows, objects = read_plainly(text)
    found = read_cells(path, Layout(missing="keep"))
    assert list(found.rows) == rows
    for name, (texts, _) in strictly.items():
        of = [next((one[n] for n in one if same(n, name)), None) for one in objects]
        assert texts == ["" if is_empty(cell) else text_of(cell) for cell in of]


def same(name: str, other: str) -> bool:
    return name.replace("u\u0308", "ü") == other


def outcome(path: Path) -> Any:
    """{name: texts and numbers}, in order; or the message."""
    try:
        pieces = list(read_pieces(path, Layout(missing="keep")))
        names = list(pieces[0].cells)
        assert all(list(piece.cells) == names for piece in pieces)
        whole = read_cells(path, Layout(missing="keep"))
        assert [row for piece in pieces for row in piece.rows] == list(whole.rows)
        texts = {name: list(whole.texts(name)) for name in names}
        parts = {name: [text for one in pieces for text in one.texts(name)] for name in names}
        assert texts == parts
    except DataError as error:
        return str(error)
    found: dict[str, Any] = {}
    for name in names:
        numbers: list[Any] = []
        for number in (whole.numbers, whole.integers):
            try:
                numbers.append(number(name).tolist())
            except DataError as error:
                numbers.append(str(error))
        found[name] = (texts[name], repr(numbers))
    return found


def test_a_table_of_json_lines_is_read_in_pieces_and_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"x": at / 4, "label": f"w{at % 3}", "day": "2024-01-01"} for at in range(300)]
    lines[200] = {"late": 1.0, **lines[200]}
    text = "\ufeff" + "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.setattr(json_files, "_BLOCK", 1000)
    monkeypatch.setattr(json_files, "_by_python", None)
    for name in ("a.jsonl", "a.jsonl.gz"):
        table = Table(str(tmp_path / name), ["x"], {"label": "text", "day": "text"})
        found = table.__getitems__(list(range(300)))
        np.testing.assert_array_equal(found["features"][:, 0], np.arange(300) / 4)
        assert found["label"] == [f"w{at % 3}" for at in range(300)]
        assert set(found["day"]) == {"2024-01-01"}
        pieces = list(read_pieces(tmp_path / name, Layout(missing="keep")))
        assert len(pieces) > 9
        assert list(pieces[0].cells) == ["x", "label", "day", "late"]
        with pytest.raises(DataError, match=r"row 1, column 'late': empty, expected a number"):
            Table(str(tmp_path / name), ["x", "late"])
        with pytest.raises(DataError, match="no column 'w', only x, label, day, late"):
            Table(str(tmp_path / name), ["x", "w"])


def test_lines_that_would_end_the_process_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for count in (101, 200_000):
        path.write_text('{"a": 1}\n{"a": ' + "[" * count + "]" * count + "}\n")
        if count == 101:
            assert Table(str(path), [], {"a": "text"})[0]["a"] == "1"
        else:
            with pytest.raises(DataError, match=r"row 2: not JSON: maximum recursion depth"):
                Table(str(path))
    path.write_text('{"a": ' * 100_000 + "1" + "}" * 100_000)
    for ending in (".jsonl", ".json"):
        with pytest.raises(DataError, match=r"not JSON: maximum recursion depth"):
            Table(str(path.rename(path.with_suffix(ending))))
        path = path.with_suffix(ending)
