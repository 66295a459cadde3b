"""Tables as they lie in files, cell by cell, before anything is a number: the one way in for CSV,
JSON lines, Excel and Parquet.
"""

import csv
import importlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.sources.cells import MISSING, Cells, Layout, Missing, text_of
from harness.sources.files import need
from harness.wording import did_you_mean

__all__ = ["MISSING", "Cells", "Layout", "Missing", "read_cells"]

_Pack = Callable[[list[list[Any]], Sequence[str], Sequence[str]], dict[str, Any]]
_PACKED = 2**15  # rows that are objects of Python at a time
_LOOKED_THROUGH = 20  # rows in which a header is looked for when it is not where it should be


def read_cells(path: Path, layout: Layout, columns: Collection[str] | None = None) -> Cells:
    """The columns of a file (all of them if None), told by its ending.

    Raises DataError that names the file, and the row where there is one.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: {path.suffix or 'a name without ending'} is none of {', '.join(_READERS)}. "
            "Give a file of one of these kinds."
        )
    try:
        return reader(path, layout, columns)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be cut short, or not what its ending says."
        ) from error


def _csv(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    with path.open(newline="", encoding=layout.encoding) as file:
        lines = csv.reader(file, delimiter=layout.separator, strict=True)
        try:
            return _headed(
                path, layout, columns, ((lines.line_num, cells) for cells in lines), _as_texts
            )
        except csv.Error as error:
            raise DataError(
                f"{path}: row {lines.line_num}: {error}. Mend it, or set separator."
            ) from error


def _excel(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    calamine = need("python_calamine", "tables", f"{path}: Excel")
    pandas = need("pandas", "tables", f"{path}: Excel")
    try:
        with pandas.ExcelFile(path, engine="calamine") as book:
            sheets = [str(name) for name in book.sheet_names]
            named = (
                sheets[layout.sheet - 1]
                if isinstance(layout.sheet, int) and 1 <= layout.sheet <= len(sheets)
                else layout.sheet
            )
            if named not in sheets:
                raise DataError(
                    f"{path}: no sheet {named!r}, only {', '.join(sheets)}."
                    f"{did_you_mean(str(named), sheets, quoted=True)} Set sheet to one of them."
                )
            grid = pandas.read_excel(
                book, sheet_name=named, header=None, dtype=object, keep_default_na=False
            ).to_numpy(dtype=object)
    except (calamine.CalamineError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be cut short, or no Excel file."
        ) from error
    return _headed(path, layout, columns, enumerate(grid.tolist(), start=1), _as_lists)


def _headed(
    path: Path,
    layout: Layout,
    columns: Collection[str] | None,
    lines: Iterator[tuple[int, list[Any]]],
    pack: _Pack,
) -> Cells:
    """lines: (row, cells) -> the columns under the names in row `header`.

    Rows without anything are passed over.
    """
    header: list[str] = []
    rows: list[int] = []
    kept: list[list[Any]] = []
    above: list[tuple[int, list[Any]]] = []
    packed: list[dict[str, Any]] = []
    wanted: list[str] = []
    for row, cells in lines:
        if row < layout.header:
            above.append((row, cells))
        elif not header:
            header = [text_of(cell).strip() for cell in cells]
            while header and not header[-1]:
                header.pop()
            if not header and columns is None:
                break
            if columns is not None and not set(columns) <= set(header):
                below = [found for found, _ in zip(lines, range(_LOOKED_THROUGH), strict=False)]
                _refuse_header(path, header, layout.header, columns, [*above, *below])
            _refuse_twins(path, header, columns)
            wanted = [name for name in header if name and (columns is None or name in columns)]
        elif any(cell is not None and cell != "" for cell in cells):
            if (
                len(cells) != len(header) and any(cell != "" for cell in cells[len(header) :])
            ) or len(cells) < len(header):
                raise DataError(
                    f"{path}: row {row}: {len(cells)} cells under {len(header)} columns. Mend it, "
                    "or set header or separator."
                )
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
    places = [header.index(name) for name in wanted]
    return {
        name: [cells[place] for cells in kept] for name, place in zip(wanted, places, strict=True)
    }


def _as_texts(
    kept: list[list[str]], header: Sequence[str], wanted: Sequence[str]
) -> dict[str, Any]:
    """Texts side by side in memory: a fifth of what they are as objects of Python."""
    arrow = importlib.import_module("pyarrow")
    return {
        name: arrow.chunked_array([arrow.array(cells, arrow.string())])
        for name, cells in _as_lists(kept, header, wanted).items()
    }


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], list):
        return [cell for part in parts for cell in part]
    return importlib.import_module("pyarrow").chunked_array(
        [chunk for part in parts for chunk in part.chunks]
    )


def _refuse_header(
    path: Path,
    header: Sequence[str],
    row: int,
    columns: Collection[str],
    others: Sequence[tuple[int, list[Any]]],
) -> None:
    for other, cells in others:
        if columns and set(columns) <= {text_of(cell).strip() for cell in cells}:
            raise DataError(f"{path}: the columns' names are in row {other}. Set header: {other}.")
    if not header:
        raise DataError(
            f"{path}: nothing in row {row}, where the columns' names belong. Set header."
        )
    name = next(name for name in columns if name not in header)
    raise DataError(
        f"{path}: no column {name!r}, only {', '.join(header[:20])}"
        f"{', …' if len(header) > 20 else ''}.{did_you_mean(name, header, quoted=True)}"
    )


def _refuse_twins(path: Path, header: Sequence[str], columns: Collection[str] | None) -> None:
    twins = [
        name
        for name in dict.fromkeys(header)
        if name and header.count(name) > 1 and (columns is None or name in columns)
    ]
    if twins:
        raise DataError(
            f"{path}: two columns are called {twins[0]!r}. Give them names of their own."
        )


def _json_lines(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    rows: list[int] = []
    objects: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for row, line in enumerate(file, start=1):
            if line.strip():
                try:
                    found = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{path}: row {row}: no JSON: {error}. Mend it, or leave it out."
                    ) from error
                if not isinstance(found, dict):
                    raise DataError(
                        f"{path}: row {row}: {type(found).__name__} where an object belongs. Give "
                        "one object a line."
                    )
                rows.append(row)
                objects.append(found)
    names = list(dict.fromkeys(name for found in objects for name in found))
    if columns is not None and not set(columns) <= set(names):
        _refuse_header(path, names, 1, columns, [])
    wanted = [name for name in names if columns is None or name in columns]
    return Cells(
        path, {name: [found.get(name) for found in objects] for name in wanted}, rows, layout
    )


def _parquet(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    parquet, arrow = (
        need("pyarrow.parquet", "tables", f"{path}: Parquet"),
        need("pyarrow", "tables", f"{path}: Parquet"),
    )
    try:
        with parquet.ParquetFile(path) as file:
            names = [str(name) for name in file.schema_arrow.names]
            if columns is not None and not set(columns) <= set(names):
                _refuse_header(path, names, 1, columns, [])
            table = file.read([name for name in names if columns is None or name in columns])
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be cut short, or no Parquet file."
        ) from error
    cells: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name]
        plain = arrow.types.is_floating(column.type) or (
            arrow.types.is_integer(column.type) and column.null_count == 0
        )
        # A null in floats becomes NaN
        cells[name] = column.to_numpy() if plain else column.to_pylist()
    return Cells(path, cells, range(1, len(table) + 1), layout)


_Reader = Callable[[Path, Layout, Collection[str] | None], Cells]
_READERS: dict[str, _Reader] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".xlsx": _excel,
    ".parquet": _parquet,
}
