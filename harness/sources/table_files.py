"""Reading the cells of CSV, JSON lines, Excel and Parquet files, before they are converted to
numbers.
"""

import csv
import gzip
import json
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice, pairwise
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

from harness.data.written import name_of
from harness.errors import DataError
from harness.sources.cells import Cells, Layout, number_or_none
from harness.sources.encodings import why_undecoded
from harness.sources.files import need
from harness.sources.mistaken import what_is
from harness.sources.workbook import check_workbook
from harness.wording import did_you_mean, some

_Reader = Callable[[Path, Layout, Collection[str] | None], Cells]
_Pack = Callable[[list[list[Any]], Sequence[str], Sequence[str]], dict[str, Any]]
_PACKED = 2**15  # rows held as Python objects at a time
_SEPARATORS = (";", "\t", "|", ",")
_LONGEST_FIELD = 2**31 - 1  # bytes
_LOOKED_THROUGH = 20  # rows searched for a header that is not where it should be


def read_cells(path: Path, layout: Layout, columns: Collection[str] | None = None) -> Cells:
    """The columns of a file (all of them if None), in the format of its suffix.

    Raises a DataError that names the file, and the row if there is one.
    """
    reader = _READERS.get(_ending(path))
    if path.suffix.lower() == ".gz" and reader is not _csv:
        reader = None
    if reader is None:
        raise DataError(
            f"{path}: {path.suffix or 'no suffix'} is not one of {', '.join(_READERS)}. "
            "Give a file in one of these formats."
        )
    binary = (".xlsx", ".xlsm", ".gz")
    if path.suffix.lower() not in binary and (what := what_is(path, "table")) is not None:
        raise DataError(f"{path}: not a table that is read, but {what}")
    columns = None if columns is None else list(map(name_of, columns))
    try:
        return reader(path, layout, columns)
    except UnicodeError as error:
        raise DataError(f"{path}: {_why_undecoded(path, layout, error)}") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated, or in a format other "
            "than its suffix says."
        ) from error


def _ending(path: Path) -> str:
    """The suffix in lower case, of a file in .gz the one before it."""
    packed = path.suffix.lower() == ".gz"
    return Path(path.stem if packed else path.name).suffix.lower()


def _why_undecoded(path: Path, layout: Layout, error: UnicodeError) -> str:
    """Which row is not in the encoding, and which encoding it may be in."""
    if _READERS[_ending(path)] is not _csv:
        return f"not UTF-8 ({error}). Store the file as UTF-8."
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            data = file.read()
    except (EOFError, OSError, zlib.error) as found:
        return f"cannot be unpacked: {found}. It may be truncated."
    if (why := why_undecoded(data, layout.encoding)) is not None:
        return why
    row, encoding = 1, layout.encoding.removesuffix("-sig")
    for row, line in enumerate(data.splitlines(), start=1):
        try:
            line.decode(layout.encoding)
        except UnicodeDecodeError as found:
            shown = line[max(0, found.start - 12) : found.end + 8].decode("cp1252", "replace")
            return (
                f"row {row}: byte {line[found.start]:#x} is not {encoding}. Set encoding, "
                f"e.g. cp1252 (Windows) or latin-1, in which it reads {shown!r}."
            )
        except UnicodeError:
            break
    return f"row {row}: not {encoding} ({error}). Set encoding."


def _csv(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    tabs = _ending(path) == ".tsv" and layout.separator == ","
    csv.field_size_limit(_LONGEST_FIELD)
    with _opened(path, layout.encoding) as file:
        lines = csv.reader(file, delimiter="\t" if tabs else layout.separator, strict=True)
        try:
            if file.read(1) != "\ufeff":  # a byte order mark, which utf-8 or utf-16-le would keep
                file.seek(0)
            return _headed(
                path, layout, columns, ((lines.line_num, cells) for cells in lines), _as_texts
            )
        except csv.Error as error:
            raise DataError(
                f"{path}: row {lines.line_num}: {error}. Correct the row, or set separator."
            ) from error
        except (EOFError, zlib.error) as error:
            raise DataError(
                f"{path}: row {lines.line_num}: cannot be unpacked: {error}. It may be truncated."
            ) from error


def _opened(path: Path, encoding: str) -> TextIO:
    """A text file, unpacked if it is compressed."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return path.open(newline="", encoding=encoding)


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
    return _headed(path, layout, columns, enumerate(grid.tolist(), start=1), _as_lists)


def _headed(
    path: Path,
    layout: Layout,
    columns: Collection[str] | None,
    lines: Iterator[tuple[int, list[Any]]],
    pack: _Pack,
) -> Cells:
    """lines: (row, cells) -> the columns named in row `header`; empty rows are skipped."""
    header: list[str] = [] if layout.names is None else list(layout.names)
    begin = layout.header + layout.skip_rows if header else None  # the first row of data
    rows: list[int] = []
    kept: list[list[Any]] = []
    above: list[tuple[int, list[Any]]] = []
    packed: list[dict[str, Any]] = []
    where = str(path)
    marks: set[str] = set()  # other separators in a header of one column
    wanted = _select(path, header, columns) if header else []
    for row, cells in lines:
        if layout.comment and cells and str(cells[0]).lstrip().startswith(layout.comment):
            continue
        if row < layout.header:
            above.append((row, cells))
        elif begin is not None and row < begin:
            pass
        elif not header:
            begin = row + 1 + layout.skip_rows
            header, where = [_name_of(cell) for cell in cells], f"{path}: row {row}"
            while header and not header[-1]:
                header.pop()
            if not header and columns is None:
                break
            if _ending(path) == ".csv" and len(header) == 1:
                marks = {mark for mark in _SEPARATORS if mark in header[0]} - {layout.separator}
            if columns is not None and not set(columns) <= set(header):
                below = list(islice(lines, _LOOKED_THROUGH))
                _refuse_separator(
                    where, header, marks, [cell for _, cells in below for cell in cells]
                )
                _refuse_header(path, header, layout.header, columns, [*above, *below])
            wanted = _wanted(path, row, header, columns)
        elif any(cell is not None and cell != "" for cell in cells):
            if len(cells) < len(header) or any(cell != "" for cell in cells[len(header) :]):
                raise DataError(
                    f"{path}: row {row}: {len(cells)} cells for {len(header)} columns. Correct the "
                    "row, or set header or separator."
                )
            if marks:
                _refuse_separator(where, header, marks, cells)
            rows.append(row)
            kept.append(cells)
            if len(kept) == _PACKED:
                packed.append(pack(kept, header, wanted))
                kept = []
    if not header:
        _refuse_header(path, [], layout.header, columns or (), above)
    packed.append(pack(kept, header, wanted))
    return Cells(
        path, {name: _joined([one[name] for one in packed]) for name in wanted}, rows, layout
    )


def _as_lists(
    kept: list[list[Any]], header: Sequence[str], wanted: Sequence[str]
) -> dict[str, Any]:
    columns = {name: header.index(name) for name in wanted}
    return {name: [cells[column] for cells in kept] for name, column in columns.items()}


def _as_texts(
    kept: list[list[str]], header: Sequence[str], wanted: Sequence[str]
) -> dict[str, Any]:
    """Strings packed by pyarrow: a fifth of the memory of Python strings."""
    # Loaded when used
    import pyarrow as pa

    return {
        name: pa.chunked_array([pa.array(cells, pa.string())])
        for name, cells in _as_lists(kept, header, wanted).items()
    }


def _joined(chunks: list[Any]) -> Any:
    if isinstance(chunks[0], list):
        return [cell for chunk in chunks for cell in chunk]
    # Loaded when used
    import pyarrow as pa

    return pa.chunked_array([chunk for column in chunks for chunk in column.chunks])


def _refuse_header(
    path: Path,
    header: Sequence[str],
    row: int,
    columns: Collection[str],
    others: Sequence[tuple[int, list[Any]]],
) -> None:
    for other, cells in others:
        if columns and set(columns) <= {_name_of(cell) for cell in cells}:
            raise DataError(f"{path}: the column names are in row {other}. Set header: {other}.")
    if not header:
        raise DataError(
            f"{path}: row {row} is empty, where the column names should be. Set header."
        )
    name = next(name for name in columns if name not in header)
    raise DataError(
        f"{path}: no column {name!r}, only {some(header, 20)}."
        f"{did_you_mean(name, header, quoted=True)}"
    )


def _wanted(
    path: Path, row: int, header: Sequence[str], columns: Collection[str] | None
) -> list[str]:
    """The names of a header to read."""
    if columns is None:
        _tell_odd_header(path, row, header)
    wanted = [name for name in header if name and (columns is None or name in columns)]
    _refuse_twins(path, wanted)
    return wanted


def _refuse_separator(
    where: str, header: Sequence[str], marks: Collection[str], cells: Sequence[str]
) -> None:
    """Refuse a header of one column if one of the `marks` in it is also in data."""
    found = [mark for mark in marks if any(mark in cell for cell in cells)]
    if found:
        mark = max(found, key=header[0].count)
        raise DataError(
            f"{where}: one column {header[0]!r}, which looks like several. Set separator: "
            f"{json.dumps(mark)}."
        )


def _tell_odd_header(path: Path, row: int, header: Sequence[str]) -> None:
    """Warn of column names that look like measurements: a file without them loses its first row.

    Whole numbers that go up by equal steps, such as years, are names.
    """
    found = (number_or_none(name) for name in header)
    numbers = [number for number in found if number is not None and isfinite(number)]
    steps = {after - before for before, after in pairwise(numbers)}
    named = all(number.is_integer() for number in numbers) and len(steps) <= 1 and 0 not in steps
    if numbers and not named:
        warnings.warn(
            f"{path}: row {row} is taken for column names, and looks like data: "
            f"{some(list(header), 6)}. If the file has no names, add a row of them; if they are in "
            "another row, set header.",
            stacklevel=2,
        )


def _name_of(cell: Any) -> str:
    return name_of(cell).strip()


def _refuse_twins(where: Path | str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{where}: two columns are called {name!r}. Rename one of them.")


def _select(path: Path, names: Sequence[str], columns: Collection[str] | None) -> list[str]:
    """The names of the columns to read, all of them if None. Raises DataError."""
    if columns is not None and not set(columns) <= set(names):
        _refuse_header(path, names, 1, columns, [])
    return [name for name in names if columns is None or name in columns]


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
            _refuse_twins(f"{path}: row {row}", list(map(name_of, found)))
        objects = [{name_of(name): cell for name, cell in found.items()} for found in objects]
    wanted = _select(path, list(dict.fromkeys(chain.from_iterable(objects))), columns)
    cells = {name: [found.get(name) for found in objects] for name in wanted}
    return Cells(path, cells, rows, layout)


def _parquet(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    # Loaded when used
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            stored = file.schema_arrow.names
            names = _select(path, list(map(name_of, stored)), columns)
            _refuse_twins(path, names)
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
    ".csv": _csv,
    ".tsv": _csv,
    ".txt": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".xlsx": _excel,
    ".xlsm": _excel,
    ".parquet": _parquet,
}
