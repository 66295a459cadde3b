"""JSON: blocks of lines by pyarrow where it gives what they say, else by Python's reader, which
names what is wrong. Both give the same cells (tests compare them).
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.written import name_of
from harness.errors import DataError
from harness.sources.arrow_cells import cells_of, flattened
from harness.sources.cells import Cells, Layout, as_list
from harness.sources.csv_files import PACKED, is_packed, open_text
from harness.sources.headed import refuse_twins, select_names

_BLOCK = 2**24  # bytes
_HELD = 2**28  # bytes of columns that are kept while names are looked for
_EXACT = 2.0**53  # from which on float64 does not hold each integer
_DEEPEST = 100  # brackets in a line
_NEWLINE, _RETURN, _OPEN, _LIST, _CLOSE = b"\n\r{[}"


def read_json_lines(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    """The columns of a file with an object a line, all of them if None. Raises DataError with its
    row.
    """
    pieces = list(json_lines_pieces(path, layout, columns))
    cells = {name: _concat([piece.cells[name] for piece in pieces]) for name in pieces[0].cells}
    return Cells(path, cells, np.concatenate([piece.rows for piece in pieces]), layout)


def json_lines_pieces(
    path: Path, layout: Layout, columns: Collection[str] | None
) -> Iterator[Cells]:
    """The same, a part of the file at a time. Any line may have a further name: lines that are more
    than can be held are read twice if all names are wanted.
    """
    begun: list[_Block] = []
    blocks = _blocks(path)
    names: dict[str, None] = {}
    size = 0
    for block in blocks:
        names |= dict.fromkeys(block.names)
        size += block.size
        begun = [*begun, block] if size <= _HELD else []
        if columns is not None and set(columns) <= set(names) and begun:
            break
    wanted = select_names(path, list(names), columns)
    for block in chain(begun, blocks) if size <= _HELD or begun else _blocks(path):
        cells = {name: block.cells(name) for name in wanted}
        piece = Cells(path, cells, block.rows, layout)
        piece.share = block.share
        yield piece
    if not names:
        yield Cells(path, {}, np.empty(0, np.int64), layout)


@dataclass
class _Block:
    """Some rows: `names` in normal form C, in the order in which they appear, and their `cells`."""

    names: Sequence[str]
    cells: Callable[[str], Any]
    rows: NDArray[np.int64]
    size: int  # in bytes, of what it holds
    share: float = 1.0  # of the file, up to its end


def _blocks(path: Path) -> Iterator[_Block]:
    """Raises DataError, UnicodeError, OSError and what unpacking does."""
    size, row = path.stat().st_size, 0
    texts: dict[str, Any] = {}  # columns that pyarrow would take for times
    with PACKED[path.suffix.lower()](path) if is_packed(path) else path.open("rb") as file:
        for data in _lines(file):
            text = str(data, "utf-8")
            block = _by_pyarrow(path, data, row, texts) or _by_python(path, text, row)
            if not is_packed(path):
                block.share = min(1.0, file.tell() / max(1, size))
            row += data.count(b"\n") if b"\r" not in data else len(StringIO(text, "").readlines())
            yield block


def _lines(file: Any) -> Iterator[bytes]:
    """Blocks of whole lines, without a byte order mark."""
    begun: list[bytes] = [file.read(3).removeprefix(b"\xef\xbb\xbf")]
    while read := file.read(_BLOCK):
        end = read.rfind(b"\n") + 1
        if end:
            yield b"".join([*begun, read[:end]])
            begun = []
        begun.append(read[end:])
    if any(begun):
        yield b"".join(begun)


def _by_pyarrow(path: Path, data: bytes, before: int, texts: dict[str, Any]) -> _Block | None:
    """A block, `before` lines of the file before it; None if Python's reader has to read it.
    `texts`: {column: type} of columns with texts that look like times, which is added to.
    """
    # Loaded when used
    import pyarrow as pa

    rows = _rows_of(data if data.endswith(b"\n") else data + b"\n")
    if rows is None or not len(rows):
        return None
    try:
        table = _parse(data, texts)
        kinds = {field.name: _as_text(field.type) for field in table.schema}
        if times := {name: kind for name, kind in kinds.items() if kind != table[name].type}:
            texts |= times
            table = _parse(data, kinds)
    except pa.ArrowInvalid:
        return None
    if len(table) != len(rows) or any(map(_is_gappy, table.columns)):
        return None
    first = data[: data.find(b"\n") + 1 or None] if rows[0] == 1 else b"{}"
    table = flattened(table)
    names = list(map(name_of, table.column_names))
    begun = [name_of(name) for name, _ in _flat(json.loads(first))]
    is_nested = any("." in name for name in names)
    if len(set(names)) < len(names) or (is_nested and set(begun) != set(names)):
        return None
    if not all(_is_exact(column) for column in table.columns):
        return None
    column_of: Mapping[str, Any] = dict(zip(names, table.columns, strict=True))
    number_of = rows + before

    def cells(name: str) -> Any:
        if name not in column_of:
            return [None] * len(number_of)
        return cells_of(path, name, column_of[name], int(number_of[0]))

    ordered = [*dict.fromkeys([*begun, *names])] if is_nested else names
    return _Block(ordered, cells, number_of, table.nbytes)


def _rows_of(data: bytes) -> NDArray[np.int64] | None:
    """The lines (N,) that hold an object, from 1; None if an object may span lines, or be so deep
    that pyarrow would end the process.
    """
    if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):
        return None
    values = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(values == _NEWLINE)
    begins = np.concatenate([[0], ends[:-1] + 1])
    ends = ends - (values[ends - 1] == _RETURN)
    filled = ends > begins
    begins, ends = begins[filled], ends[filled]
    if data.count(b"{") + data.count(b"[") > len(begins) + _DEEPEST:
        opened = np.add.reduceat((values == _OPEN) | (values == _LIST), begins, dtype=np.int64)
        if opened.max() > _DEEPEST:
            return None
    if not ((values[begins] == _OPEN) & (values[ends - 1] == _CLOSE)).all():
        return None
    return np.flatnonzero(filled) + 1


def _parse(data: bytes, texts: Mapping[str, Any]) -> Any:
    """Raises pyarrow.ArrowInvalid."""
    # Loaded when used
    import pyarrow as pa
    from pyarrow import json as arrow

    return arrow.read_json(
        pa.BufferReader(data),
        arrow.ReadOptions(use_threads=False, block_size=len(data) + 1),
        arrow.ParseOptions(explicit_schema=pa.schema(list(texts.items()))),
    )


def _as_text(kind: Any) -> Any:
    """A type, with strings instead of the times that pyarrow makes of them."""
    # Loaded when used
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _as_text(field.type)) for field in kind])
    return pa.string() if pa.types.is_timestamp(kind) else kind


def _is_gappy(column: Any) -> bool:
    """Whether an object is null or missing in some row: these are not told apart."""
    # Loaded when used
    import pyarrow as pa

    if not pa.types.is_struct(column.type):
        return False
    return column.null_count > 0 or any(map(_is_gappy, column.flatten()))


def _is_exact(column: Any) -> bool:
    """Whether a column holds what Python would read: no lists, and no integers as floats that do
    not hold them.
    """
    # Loaded when used
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_floating(kind):
        ends = pc.min_max(column).as_py()
        return all(end is None or abs(end) < _EXACT for end in ends.values())
    plain = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    return any(check(kind) for check in plain)


def _by_python(path: Path, text: str, before: int) -> _Block:
    rows: list[int] = []
    objects: list[dict[str, Any]] = []
    for row, line in enumerate(StringIO(text, ""), start=before + 1):
        if line.strip():
            try:
                found = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}: row {row}: not JSON: {error}. Correct the line, or remove it."
                ) from error
            if not isinstance(found, dict):
                raise DataError(
                    f"{path}: row {row}: {type(found).__name__} is not an object. Give one "
                    "object per line."
                )
            rows.append(row)
            objects.append(found)
    plain = _plain(path, rows, objects)
    names = list(dict.fromkeys(chain.from_iterable(plain)))

    def cells(name: str) -> list[Any]:
        return [found.get(name) for found in plain]

    return _Block(names, cells, np.array(rows, np.int64), 8 * len(text))


def read_json(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    """The columns of a list of objects, all of them if None. Raises DataError with its row."""
    with open_text(path, "utf-8-sig") as file:
        text = file.read()
    try:
        objects = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        way = "Correct it."
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            way = "If it has an object on each line, name it .jsonl."
        raise DataError(f"{path}: row {error.lineno}: not JSON: {error.msg}. {way}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}. Correct it.") from error
    if not isinstance(objects, list) or not all(isinstance(one, dict) for one in objects):
        raise DataError(
            f"{path}: not a list of objects. Give one, with an object for each row, as "
            "pandas writes with orient='records'."
        )
    rows = range(1, len(objects) + 1)
    objects = _plain(path, rows, objects)
    wanted = select_names(path, list(dict.fromkeys(chain.from_iterable(objects))), columns)
    cells = {name: [found.get(name) for found in objects] for name in wanted}
    return Cells(path, cells, rows, layout)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a name that occurs twice, of which json would drop the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} occurs twice in an object")
    return found


def _plain(
    path: Path, rows: Sequence[int], objects: Sequence[dict[str, Any]]
) -> Sequence[dict[str, Any]]:
    """Objects without objects in them, under names in normal form C."""
    if any(isinstance(cell, dict) for found in objects for cell in found.values()):
        for row, found in zip(rows, objects, strict=True):
            refuse_twins(f"{path}: row {row}", [name for name, _ in _flat(found)])
        objects = [dict(_flat(found)) for found in objects]
    if not all(name.isascii() for found in objects for name in found):
        for row, found in zip(rows, objects, strict=True):
            refuse_twins(f"{path}: row {row}", list(map(name_of, found)))
        objects = [{name_of(name): cell for name, cell in found.items()} for found in objects]
    return objects


def _flat(found: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """(name, cell) of an object; the values of an object b in it are called b.x, b.y.z."""
    for name, cell in found.items():
        if isinstance(cell, dict):
            yield from _flat(cell, f"{within}{name}.")
        else:
            yield f"{within}{name}", cell


def _concat(parts: Sequence[Any]) -> Any:
    """Cells of one column, one after another."""
    # Loaded when used
    import pyarrow as pa

    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, np.ndarray) and part.dtype == parts[0].dtype for part in parts):
        return np.concatenate(parts)
    if all(isinstance(part, pa.ChunkedArray) for part in parts):
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())
    return [cell for part in parts for cell in as_list(part)]
