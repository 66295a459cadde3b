"""Reading the cells of CSV, JSON lines, Excel and Parquet files, before they are converted to
numbers.
"""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.data.written import name_of
from harness.errors import DataError
from harness.sources.arrow_cells import cells_of, flattened, names_of_leaves, widened
from harness.sources.cells import Cells, Layout
from harness.sources.csv_files import (
    PACKED,
    TORN,
    csv_pieces,
    ending_of,
    is_packed,
    read_csv,
    why_not_text,
)
from harness.sources.device_files import DEVICES
from harness.sources.excel_files import EXCEL, read_excel
from harness.sources.headed import refuse_twins, select_names
from harness.sources.json_files import json_lines_pieces, read_json, read_json_lines
from harness.sources.mistaken import what_is

_OF_PANDAS = re.compile(r"__index_level_\d+__")  # row numbers that nobody asked pandas to store
# Without a buffer, which keeps what was read; checksums of pages count, where a file has them
_CHECKED: dict[str, Any] = {"pre_buffer": False, "page_checksum_verification": True}
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
    if is_packed(path) and reader not in (read_csv, read_json_lines, read_json):
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


def _parquet(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    # Loaded when used
    import pyarrow as pa

    with _opened(path, columns) as (file, wanted):
        table = pa.concat_tables(_tables(path, file, wanted), promote_options="permissive")
    return _of_table(path, layout, wanted, table, 1)


def _parquet_pieces(path: Path, layout: Layout, columns: Collection[str] | None) -> Iterator[Cells]:
    row = 1
    with _opened(path, columns) as (file, wanted):
        for table in _tables(path, file, wanted):
            piece = _of_table(path, layout, wanted, table, row)
            row += len(table)
            piece.share = (row - 1) / max(1, file.metadata.num_rows)
            yield piece


def _tables(path: Path, file: Any, wanted: dict[str, str]) -> Iterator[Any]:
    """Some rows of a Parquet file at a time, flattened; one without rows if it has none."""
    # Loaded when used
    import pyarrow as pa
    import pyarrow.parquet as pq

    def batches(file: Any) -> Iterator[Any]:
        count = max(1, min(_ROWS_AT_ONCE, _CELLS_AT_ONCE // max(1, len(wanted))))
        for batch in file.iter_batches(count, columns=list(wanted.values()), use_threads=False):
            yield flattened(pa.Table.from_batches([batch]))

    if file.metadata.num_rows == 0:
        yield flattened(file.schema_arrow.empty_table())
        return
    if all(file.schema.column(at).physical_type != "INT96" for at in range(len(file.schema))):
        yield from batches(file)
        return
    with pq.ParquetFile(path, **_CHECKED, coerce_int96_timestamp_unit="us") as coarse:
        for fine, wide in zip(batches(file), batches(coarse), strict=True):
            yield widened(path, fine, wide)


@contextmanager
def _opened(path: Path, columns: Collection[str] | None) -> Iterator[tuple[Any, dict[str, str]]]:
    """A Parquet file, and {name: as it is stored} of the columns to read. Raises DataError."""
    # Loaded when used
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, **_CHECKED) as file:
            stored = names_of_leaves(file.schema_arrow)
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
    cells = {name: cells_of(path, name, table[one], first_row) for name, one in wanted.items()}
    return Cells(path, cells, range(first_row, first_row + len(table)), layout)


_READERS: dict[str, _Reader] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_csv,
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    **dict.fromkeys(EXCEL, read_excel),
    ".parquet": _parquet,
    **DEVICES,
}
_BY_PIECES: dict[_Reader, Callable[[Path, Layout, Collection[str] | None], Iterator[Cells]]] = {
    read_csv: csv_pieces,
    read_json_lines: json_lines_pieces,
    _parquet: _parquet_pieces,
}
FORMATS = tuple(_READERS)
