"""Files that are replaced at once."""

from pathlib import Path

import pytest

from harness.durable import read_json, write_json
from harness.errors import DataError


@pytest.mark.parametrize("sync", [False, True])
def test_a_json_file_is_replaced_whole(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 0.1]}, sync=sync)
    assert path.read_text() == '{"a": [1, 0.1]}'
    write_json(path, [1], sync=sync, indent=2, end="\n")
    assert path.read_text() == "[\n  1\n]\n"
    assert read_json(path) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.mkdir()
    with pytest.raises(OSError, match=r"a\.json"):
        write_json(path, 1, sync=True)
    with pytest.raises(TypeError):
        write_json(tmp_path / "b.json", object(), sync=True)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_no_json_says_what_to_delete(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{")
    with pytest.raises(DataError, match=f"Delete {tmp_path}"):
        read_json(path)
