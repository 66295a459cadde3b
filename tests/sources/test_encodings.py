"""A file in another encoding than the one that is set is refused with one message."""

import codecs
import gzip
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError, DataError
from harness.sources.series import Series
from harness.sources.tables import Table
from harness.sources.text import Characters

READERS: dict[str, Any] = {
    "table": lambda path, **more: Table(str(path), ["a"], **more),
    "series": lambda path, **more: Series(str(path), ["a"], 2, 2, **more),
    "text": lambda path, **more: Characters(str(path), 2, **more),
}
ROWS = "a,b\n1,2\n3,4\n"


@pytest.fixture(params=READERS)
def read(request: pytest.FixtureRequest) -> Any:
    return READERS[request.param]


@pytest.mark.parametrize("name", ["rot13", "hex", "zlib", "klingon", "utf-8\0", ""])
def test_only_encodings_of_text_are_accepted(tmp_path: Path, read: Any, name: str) -> None:
    (tmp_path / "a.csv").write_text(ROWS)
    with pytest.raises(ConfigError, match=r"^encoding: .*\. Give one known to Python, e\.g\."):
        read(tmp_path / "a.csv", encoding=name)


@pytest.mark.parametrize("name", ["utf-16", "U16", "utf_32"])
def test_a_byte_order_mark_is_not_guessed(tmp_path: Path, read: Any, name: str) -> None:
    path = tmp_path / "a.csv"
    for encoding in ("utf-8", "utf-16-be", "utf-32-le"):
        path.write_bytes(ROWS.encode(encoding))
        wide = rf"utf-{name[-2:]}"
        with pytest.raises(DataError, match=rf"a\.csv: no byte order mark.* encoding: {wide}-le,"):
            read(path, encoding=name)
        assert len(read(path, encoding=encoding)) > 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8", "shift_jis"])
def test_a_file_that_ends_within_a_character_is_called_truncated(
    tmp_path: Path, read: Any, encoding: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes((ROWS + "5,\u3042").encode(encoding)[:-1])
    with pytest.raises(DataError, match=rf"a\.csv: ends within a character of {encoding}.* trunca"):
        read(path, encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_the_encoding_of_a_byte_order_mark_is_named(
    tmp_path: Path, read: Any, encoding: str
) -> None:
    (tmp_path / "a.csv").write_bytes(ROWS.encode(encoding))
    with pytest.raises(DataError, match=rf"a\.csv: in {encoding.upper()}\. Set .*: {encoding}\."):
        read(tmp_path / "a.csv", encoding="utf-8")
    assert len(read(tmp_path / "a.csv", encoding=encoding)) > 0


def test_a_pair_of_surrogates_that_is_torn_is_named(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.csv").write_bytes(ROWS.encode("utf-16") + b"\0\xdc\0\0")
    with pytest.raises(DataError, match=r"a\.csv: byte 26 is not utf-16 \(illegal"):
        read(tmp_path / "a.csv", encoding="utf-16")


@pytest.mark.parametrize("name", ["a.csv.gz", "a.CSV.GZ"])
def test_a_packed_file_in_another_encoding_is_named_even_if_it_is_cut(
    tmp_path: Path, name: str
) -> None:
    packed = gzip.compress("a,b\n\u00e41,2\n".encode("cp1252") * 5000, compresslevel=0)
    (tmp_path / name).write_bytes(packed)
    with pytest.raises(DataError, match=r"row 2: byte 0xe4 is not utf-8\. Set encoding"):
        Table(str(tmp_path / name))
    (tmp_path / name).write_bytes(packed[:-9])
    with pytest.raises(DataError, match=rf"{name}: cannot be unpacked: .* may be truncated"):
        Table(str(tmp_path / name))


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path, mark: bytes, encoding: str) -> None:
    content = mark + '"a",b\n1,2\n'.encode(encoding)
    (tmp_path / "a.csv").write_bytes(content)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content))
    for name in ("a.csv", "a.csv.gz"):
        assert Table(str(tmp_path / name), encoding=encoding).features == ["a", "b"]
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"a": 1}\n')
    assert Table(str(tmp_path / "a.jsonl")).features == ["a"]
