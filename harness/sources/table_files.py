"""Reading the cells of CSV, JSON lines, Excel and Parquet files, before they are converted to
numbers.
"""

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from harness.data.written import name_of
from harness.errors import DataError
from harness.sources.cells import Cells, Layout
from harness.sources.csv_files import PACKED, ending_of, is_packed, read_csv, why_not_text
from harness.sources.files import need
from harness.sources.headed import by_column, read_head, refuse_twins, rows_below, select_names
from harness.sources.mistaken import what_is
from harness.sources.workbook import check_workbook
from harness.wording import did_you_mean

_Reader = Callable[[Path, Layout, Collection[str] | None], Cells]


def read_cells(path: Path, layout: Layout, columns: Collection[str] | None = None) -> Cells:
    """The columns of a file (all of them if None), in the format of its suffix.

    Raises a DataError that names the file, and the row if there is one.
    """
    reader = _READERS.get(ending_of(path))
    if is_packed(path) and reader is not read_csv:
        reader = None
    if reader is None:
        raise DataError(
            f"{path}: {path.suffix or 'no suffix'} is not one of {', '.join(_READERS)}. "
            "Give a file in one of these formats."
        )
    binary = (".xlsx", ".xlsm", *PACKED)
    if path.suffix.lower() not in binary and (what := what_is(path, "table")) is not None:
        raise DataError(f"{path}: not a table that is read, but {what}")
    columns = None if columns is None else list(map(name_of, columns))
    try:
        return reader(path, layout, columns)
    except UnicodeError as error:
        why = why_not_text(path, layout, error)
        if reader is not read_csv:
            why = f"not UTF-8 ({error}). Store the file as UTF-8."
        raise DataError(f"{path}: {why}") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or in a format other "
            "than its suffix says."
        ) from error


def _excel(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    calamine = need("python_calamine", "tables", f"{path}: Excel")
    # Loaded when used
    import pandas as pd

    check_workbook(path)
    try:
        with pd.ExcelFile(path, engine="calamine") as book:
            sheets = [str(name) for name in book.sheet_names]
            named = layout.sheet
            if isinstance(named, int) and 1 <= named <= len(sheets):
                named = sheets[named - 1]
            if named not in sheets:
                raise DataError(
                    f"{path}: no sheet {named!r}, only {', '.join(sheets)}."
                    f"{did_you_mean(str(named), sheets, quoted=True)} Set sheet to one of them."
                )
            grid = pd.read_excel(
                book, sheet_name=named, header=None, dtype=object, keep_default_na=False
            ).to_numpy(dtype=object)
    except (calamine.CalamineError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or not an Excel file."
        ) from error
    lines = enumerate(grid.tolist(), start=1)
    head = read_head(path, layout, columns, lines)
    kept = list(rows_below(head, layout, lines))
    cells = by_column(head, [cells for _, cells in kept])
    return Cells(path, cells, [row for row, _ in kept], layout)


def _json_lines(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    rows: list[int] = []
    objects: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for row, line in enumerate(file, start=1):
            if line.strip():
                try:
                    found = json.loads(line)
                except json.JSONDecodeError as error:
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


def _of_objects(
    path: Path,
    layout: Layout,
    columns: Collection[str] | None,
    rows: Sequence[int],
    objects: Sequence[dict[str, Any]],
) -> Cells:
    if not all(name.isascii() for found in objects for name in found):
        for row, found in zip(rows, objects, strict=True):
            refuse_twins(f"{path}: row {row}", list(map(name_of, found)))
        objects = [{name_of(name): cell for name, cell in found.items()} for found in objects]
    wanted = select_names(path, list(dict.fromkeys(chain.from_iterable(objects))), columns)
    cells = {name: [found.get(name) for found in objects] for name in wanted}
    return Cells(path, cells, rows, layout)


def _parquet(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    # Loaded when used
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            stored = file.schema_arrow.names
            names = select_names(path, list(map(name_of, stored)), columns)
            refuse_twins(path, names)
            wanted = {name_of(name): name for name in stored if name_of(name) in names}
            table = file.read(list(wanted.values()))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or not a Parquet file."
        ) from error
    cells: dict[str, Any] = {}
    for name, one in wanted.items():
        column = table[one]
        plain = pa.types.is_floating(column.type) or (
            pa.types.is_integer(column.type) and column.null_count == 0
        )
        if _is_bytes(column.type):  # text, as Impala and others write it
            with suppress(pa.ArrowInvalid):  # some are not: named where they are used
                column = column.cast(pa.large_string())
        # A null in floats becomes NaN
        cells[name] = column.to_numpy() if plain else _as_objects(path, name, column)
    return Cells(path, cells, range(1, len(table) + 1), layout)


def _is_bytes(kind: Any) -> bool:
    # Loaded when used
    import pyarrow as pa

    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(is_kind(kind) for is_kind in kinds)


def _as_objects(path: Path, name: str, column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        for row, cell in enumerate(column, start=1):
            try:
                cell.as_py()
            except (OverflowError, ValueError) as error:
                raise DataError(
                    f"{path}: row {row}, column {name!r}: {error} (a date after the year 9999?). "
                    "Correct it, or do not read the column."
                ) from error
        raise


def _json(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    with path.open(encoding="utf-8-sig") as file:
        try:
            objects = json.load(file)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: row {error.lineno}: not JSON: {error.msg}.") from error
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
    ".xlsx": _excel,
    ".xlsm": _excel,
    ".parquet": _parquet,
}
