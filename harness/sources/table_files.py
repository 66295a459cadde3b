"""Reading the cells of CSV, JSON lines, Excel and Parquet files, before they are converted to
numbers.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from harness.data.written import name_of
from harness.errors import ConfigError, DataError
from harness.sources.cells import Cells, Layout
from harness.sources.csv_files import (
    PACKED,
    TORN,
    csv_pieces,
    ending_of,
    is_packed,
    open_text,
    read_csv,
    why_not_text,
)
from harness.sources.dates import check_timezone
from harness.sources.device_files import DEVICES
from harness.sources.excel_files import EXCEL, read_excel
from harness.sources.headed import refuse_twins, select_names
from harness.sources.mistaken import what_is

_OF_PANDAS = re.compile(r"__index_level_\d+__")  # row numbers that nobody asked pandas to store
_ROWS_AT_ONCE, _CELLS_AT_ONCE = 2**17, 2**21
_Reader = Callable[[Path, Layout, Collection[str] | None], Cells]


def read_cells(path: Path, layout: Layout, columns: Collection[str] | None = None) -> Cells:
    """The columns of a file (all of them if None), in the format of its suffix.

    Raises a DataError that names the file, and the row if there is one.
    """
    reader = _reader_of(path)
    with _explained(path, layout, reader):
        return reader(path, layout, None if columns is None else list(map(name_of, columns)))


def read_pieces(
    path: Path, layout: Layout, columns: Collection[str] | None = None
) -> Iterator[Cells]:
    """The same, some rows at a time where the format allows it; all pieces have the same columns.
    One may have no rows.
    """
    reader = _reader_of(path)
    columns = None if columns is None else list(map(name_of, columns))
    with _explained(path, layout, reader):
        by_pieces = _BY_PIECES.get(reader)
        if by_pieces is None:
            yield reader(path, layout, columns)
            return
        for number, piece in enumerate(by_pieces(path, layout, columns)):
            piece.is_first = number == 0
            yield piece


def _reader_of(path: Path) -> _Reader:
    reader = _READERS.get(ending_of(path))
    if is_packed(path) and reader not in (read_csv, _json_lines, _json):
        reader = None
    if reader is None:
        raise DataError(
            f"{path}: {path.suffix or 'no suffix'} is not one of {', '.join(_READERS)}. "
            "Give a file in one of these formats."
        )
    binary = (*EXCEL, *PACKED, *DEVICES)
    if path.suffix.lower() not in binary and (what := what_is(path, "table")) is not None:
        raise DataError(f"{path}: not a supported table, but {what}")
    return reader


@contextmanager
def _explained(path: Path, layout: Layout, reader: _Reader) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        why = why_not_text(path, layout, error)
        if reader is not read_csv:
            why = f"not UTF-8 ({error}). Store the file as UTF-8."
        raise DataError(f"{path}: {why}") from error
    except TORN as error:
        raise DataError(f"{path}: cannot be unpacked: {error}. It may be truncated.") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or in a format other "
            "than its suffix says."
        ) from error


def _json_lines(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    rows: list[int] = []
    objects: list[dict[str, Any]] = []
    with open_text(path, "utf-8-sig") as file:
        for row, line in enumerate(file, start=1):
            if line.strip():
                try:
                    found = json.loads(line, object_pairs_hook=_object)
                except ValueError as error:
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
    return _of_objects(path, layout, columns, rows, objects)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a name that occurs twice, of which json would drop the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} occurs twice in an object")
    return found


def _of_objects(
    path: Path,
    layout: Layout,
    columns: Collection[str] | None,
    rows: Sequence[int],
    objects: Sequence[dict[str, Any]],
) -> Cells:
    if any(isinstance(cell, dict) for found in objects for cell in found.values()):
        for row, found in zip(rows, objects, strict=True):
            refuse_twins(f"{path}: row {row}", [name for name, _ in _flat(found)])
        objects = [dict(_flat(found)) for found in objects]
    if not all(name.isascii() for found in objects for name in found):
        for row, found in zip(rows, objects, strict=True):
            refuse_twins(f"{path}: row {row}", list(map(name_of, found)))
        objects = [{name_of(name): cell for name, cell in found.items()} for found in objects]
    wanted = select_names(path, list(dict.fromkeys(chain.from_iterable(objects))), columns)
    cells = {name: [found.get(name) for found in objects] for name in wanted}
    return Cells(path, cells, rows, layout)


def _flat(found: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """(name, cell) of an object; the values of an object b in it are called b.x, b.y.z."""
    for name, cell in found.items():
        if isinstance(cell, dict):
            yield from _flat(cell, f"{within}{name}.")
        else:
            yield f"{within}{name}", cell


def _parquet(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    with _opened(path, columns) as (file, wanted):
        table = file.read(list(wanted.values()))
    return _of_table(path, layout, wanted, table, 1)


def _parquet_pieces(path: Path, layout: Layout, columns: Collection[str] | None) -> Iterator[Cells]:
    # Loaded when used
    import pyarrow as pa

    row = 1
    with _opened(path, columns) as (file, wanted):
        count = max(1, min(_ROWS_AT_ONCE, _CELLS_AT_ONCE // max(1, len(wanted))))
        batches = file.iter_batches(count, columns=list(wanted.values()), use_threads=False)
        for batch in batches:
            piece = _of_table(path, layout, wanted, pa.Table.from_batches([batch]), row)
            row += len(batch)
            piece.share = (row - 1) / file.metadata.num_rows
            yield piece
        if row == 1:
            yield _of_table(path, layout, wanted, file.schema_arrow.empty_table(), row)


@contextmanager
def _opened(path: Path, columns: Collection[str] | None) -> Iterator[tuple[Any, dict[str, str]]]:
    """A Parquet file, and {name: as it is stored} of the columns to read. Raises DataError."""
    # Loaded when used
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # which keeps what was read
            stored = _leaves(file.schema_arrow)
            if columns is None:  # as those without a name in CSV
                stored = [name for name in stored if not _OF_PANDAS.fullmatch(name)]
            names = select_names(path, list(map(name_of, stored)), columns)
            refuse_twins(path, names)
            yield file, {name_of(name): name for name in stored if name_of(name) in names}
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or not a Parquet file."
        ) from error


def _of_table(
    path: Path, layout: Layout, wanted: dict[str, str], table: Any, first_row: int
) -> Cells:
    # Loaded when used
    import pyarrow as pa

    while any(pa.types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    cells: dict[str, Any] = {}
    for name, one in wanted.items():
        column = table[one]
        plain = pa.types.is_floating(column.type) or (
            pa.types.is_integer(column.type) and column.null_count == 0
        )
        if _is_text(column.type):
            with suppress(pa.ArrowInvalid):  # bytes that are not text are reported when used
                cells[name] = column.cast(pa.string()).fill_null("")
                continue
        # A null in floats becomes NaN
        cells[name] = column.to_numpy() if plain else _as_objects(path, name, column, first_row)
    return Cells(path, cells, range(first_row, first_row + len(table)), layout)


def _leaves(fields: Any, within: str = "") -> list[str]:
    """The names of the columns of a schema; the fields of a struct b are called b.x, b.y.z."""
    # Loaded when used
    import pyarrow as pa

    names: list[str] = []
    for field in fields:
        name = f"{within}{field.name}"
        nested = pa.types.is_struct(field.type)
        names += _leaves(field.type, f"{name}.") if nested else [name]
    return names


def _is_text(kind: Any) -> bool:
    """Whether a column holds strings, or bytes, as Impala and others write text."""
    # Loaded when used
    import pyarrow.types as of

    if of.is_dictionary(kind):
        return _is_text(kind.value_type)
    bytes_or_text = (of.is_string, of.is_large_string, of.is_string_view, of.is_binary)
    return any(
        check(kind) for check in (*bytes_or_text, of.is_large_binary, of.is_fixed_size_binary)
    )


def _as_objects(path: Path, name: str, column: Any, first_row: int) -> list[Any]:
    # Loaded when used
    import pyarrow as pa

    if pa.types.is_time64(column.type):  # Python's times would lose nanoseconds
        try:
            column = column.cast(pa.time64("us"))
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{path}: column {name!r}: times of day are read to the microsecond ({error}). "
                "Store them as integers, or do not read the column."
            ) from error
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        for row, cell in enumerate(column, start=first_row):
            try:
                cell.as_py()
            except (OverflowError, ValueError) as error:
                raise DataError(
                    f"{path}: row {row}, column {name!r}: {_why_unread(cell, error)}. Correct it, "
                    "or do not read the column."
                ) from error
        raise


def _why_unread(cell: Any, error: Exception) -> str:
    zone = getattr(cell.type, "tz", None)
    try:
        check_timezone(zone if zone and zone[0] not in "+-" else None)
    except ConfigError:
        return f"the time zone {zone!r} is not known"
    return f"{error} (a date before the year 1 or after 9999?)"


def _json(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    with open_text(path, "utf-8-sig") as file:
        text = file.read()
    try:
        objects = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: row {error.lineno}: not JSON: {error.msg}.") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}. Correct it.") from error
    if not isinstance(objects, list) or not all(isinstance(one, dict) for one in objects):
        raise DataError(f"{path}: not a list of objects. Give one, with an object for each row.")
    return _of_objects(path, layout, columns, range(1, len(objects) + 1), objects)


_READERS: dict[str, _Reader] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    **dict.fromkeys(EXCEL, read_excel),
    ".parquet": _parquet,
    **DEVICES,
}
_BY_PIECES: dict[_Reader, Callable[[Path, Layout, Collection[str] | None], Iterator[Cells]]] = {
    read_csv: csv_pieces,
    _parquet: _parquet_pieces,
}
FORMATS = tuple(_READERS)
