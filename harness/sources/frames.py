"""Tables as they lie in files, cell by cell, before anything is a number: the one way in for CSV, JSON lines, Excel and Parquet.

Every cell keeps the row that a person sees it in, so that a message can name it.
"""

import csv
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError
from harness.sources.files import need, suggestion

MISSING = ("NA", "N/A", "NaN", "nan", "null", "None")
Missing = Literal["refuse", "keep"]
_LOOKED_THROUGH = 20  # rows in which a header is looked for when it is not where it should be


@dataclass(frozen=True)
class Layout:
    """How files are to be read. `sheet`, `header`: of Excel, by name or number from 1; the row of the columns' names, from 1.

    `separator`, `decimal`, `encoding`: of CSV.
    `missing`: empty cells, and in columns of numbers those with one of the `marks`,
    are refused, or kept as NaN or "".
    """

    sheet: str | int = 1
    header: int = 1
    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8-sig"  # with or without the mark that Excel puts at the beginning
    missing: Missing = "refuse"
    marks: Collection[str] = field(default=MISSING)

    def __post_init__(self) -> None:
        if self.header < 1:
            raise ConfigError(f"header: {self.header}: rows are counted from 1.")
        if self.missing not in ("refuse", "keep"):
            raise ConfigError(f"missing: {self.missing!r} is neither refuse nor keep.")
        if self.decimal not in (".", ",") or len(self.separator) != 1 or self.separator == self.decimal:
            raise ConfigError(f"separator, decimal: {self.separator!r} and {self.decimal!r}. Give one sign each, decimal a point or a comma.")


class Frame:
    """The columns of one file: `cells[name]` is a list of what the file has, or an array of numbers; `rows` are their places in the file."""

    def __init__(self, path: Path, cells: dict[str, Any], rows: Sequence[int], layout: Layout) -> None:
        self.path = path
        self.cells = cells
        self.rows = rows
        self._layout = layout

    def __len__(self) -> int:
        return len(self.rows)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """(N,) float64, NaN where a value is missing and may be. Raises DataError with file, row and column of what is no number."""
        cells = self.cells[name]
        if isinstance(cells, np.ndarray):
            values = cells.astype(np.float64)
        else:
            values = self._converted(name, cells)
        if self._layout.missing == "refuse" and np.isnan(values).any():
            self._refuse(name, int(np.isnan(values).argmax()), "nothing where a number belongs. Fill it in, or set missing: keep.")
        if np.isinf(values).any():
            self._refuse(name, int(np.isinf(values).argmax()), "an infinite number. Mend it.")
        return values

    def integers(self, name: str) -> NDArray[np.int64]:
        """(N,) int64. Raises DataError as `numbers`, and for a fraction or a missing value."""
        cells = self.cells[name]
        if isinstance(cells, np.ndarray) and np.can_cast(cells.dtype, np.int64):
            return cells.astype(np.int64)
        values = self.numbers(name)
        whole = np.isfinite(values) & (values == np.rint(values)) & (np.abs(values) < 2**53)
        if not whole.all():
            self._refuse(name, int((~whole).argmax()), f"{values[~whole][0]} where a whole number belongs. Mend it, or read the column as number.")
        return values.astype(np.int64)

    def texts(self, name: str) -> list[str]:
        """N texts, "" where a value is missing and may be. A number is written as people do: 7, not 7.0."""
        texts = ["" if _is_empty(cell) else _text(cell) for cell in _listed(self.cells[name])]
        if self._layout.missing == "refuse" and "" in texts:
            self._refuse(name, texts.index(""), "nothing where text belongs. Fill it in, or set missing: keep.")
        return texts

    def _converted(self, name: str, cells: list[Any]) -> NDArray[np.float64]:
        values = np.empty(len(cells))
        for index, cell in enumerate(cells):
            try:
                values[index] = self._read_number(cell) if isinstance(cell, str) else cell
            except (ValueError, TypeError):
                if not _is_empty(cell) and not (isinstance(cell, str) and cell.strip() in self._layout.marks):
                    self._refuse(name, index, f"{cell!r} where a number belongs. Mend it, or read the column as text.")
                values[index] = np.nan
        return values

    def _read_number(self, text: str) -> float:
        """As float() reads it, but for what would read 12_5 as 125. Raises ValueError."""
        comma = self._layout.decimal == ","
        if "_" in text or (comma and "." in text):
            raise ValueError(text)
        word = text.strip().casefold()
        return float(word == "true") if word in ("true", "false") else float(text.replace(",", ".") if comma else text)

    def _refuse(self, name: str, index: int, what: str) -> None:
        raise DataError(f"{self.path}: row {self.rows[index]}, column {name!r}: {what}")


def read_frame(path: Path, layout: Layout, columns: Collection[str] | None = None) -> Frame:
    """The columns of a file (all of them if None), told by its ending. Raises DataError that names the file, and the row where there is one."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: {path.suffix or 'a name without ending'} is none of {', '.join(_READERS)}. Give a file of one of these kinds.")
    try:
        return reader(path, layout, columns)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}. It may be cut short, or not what its ending says.") from error


def _csv(path: Path, layout: Layout, columns: Collection[str] | None) -> Frame:
    with path.open(newline="", encoding=layout.encoding) as file:
        lines = csv.reader(file, delimiter=layout.separator, strict=True)
        try:
            return _headed(path, layout, columns, ((lines.line_num, cells) for cells in lines))
        except csv.Error as error:
            raise DataError(f"{path}: row {lines.line_num}: {error}. Mend it, or set separator.") from error


def _excel(path: Path, layout: Layout, columns: Collection[str] | None) -> Frame:
    calamine = need("python_calamine", "tables", f"{path}: Excel")
    pandas = need("pandas", "tables", f"{path}: Excel")
    try:
        with pandas.ExcelFile(path, engine="calamine") as book:
            sheets = [str(name) for name in book.sheet_names]
            named = sheets[layout.sheet - 1] if isinstance(layout.sheet, int) and 1 <= layout.sheet <= len(sheets) else layout.sheet
            if named not in sheets:
                raise DataError(f"{path}: no sheet {named!r}, only {', '.join(sheets)}.{suggestion(str(named), sheets)} Set sheet to one of them.")
            grid = pandas.read_excel(book, sheet_name=named, header=None, dtype=object, keep_default_na=False).to_numpy(dtype=object)
    except (calamine.CalamineError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read: {error}. It may be cut short, or no Excel file.") from error
    return _headed(path, layout, columns, enumerate(grid.tolist(), start=1))


def _headed(path: Path, layout: Layout, columns: Collection[str] | None, lines: Iterator[tuple[int, list[Any]]]) -> Frame:
    """lines: (row, cells) -> the columns under the names in row `header`. Rows without anything are passed over."""
    header: list[str] = []
    rows: list[int] = []
    kept: list[list[Any]] = []
    above: list[tuple[int, list[Any]]] = []
    for row, cells in lines:
        if row < layout.header:
            above.append((row, cells))
        elif not header:
            header = [_text(cell).strip() for cell in cells]
            while header and not header[-1]:
                header.pop()
            if not header and columns is None:
                break
            if columns is not None and not set(columns) <= set(header):
                below = [found for found, _ in zip(lines, range(_LOOKED_THROUGH), strict=False)]
                _refuse_header(path, header, layout.header, columns, [*above, *below])
            _refuse_twins(path, header, columns)
        elif any(cell is not None and cell != "" for cell in cells):
            if (len(cells) != len(header) and any(cell != "" for cell in cells[len(header) :])) or len(cells) < len(header):
                raise DataError(f"{path}: row {row}: {len(cells)} cells under {len(header)} columns. Mend it, or set header or separator.")
            rows.append(row)
            kept.append(cells)
    if not header:
        _refuse_header(path, [], layout.header, columns or (), above)
    wanted = [name for name in header if name and (columns is None or name in columns)]
    return Frame(path, {name: [cells[header.index(name)] for cells in kept] for name in wanted}, rows, layout)


def _refuse_header(path: Path, header: Sequence[str], row: int, columns: Collection[str], others: Sequence[tuple[int, list[Any]]]) -> None:
    for other, cells in others:
        if columns and set(columns) <= {_text(cell).strip() for cell in cells}:
            raise DataError(f"{path}: the columns' names are in row {other}. Set header: {other}.")
    if not header:
        raise DataError(f"{path}: nothing in row {row}, where the columns' names belong. Set header.")
    name = next(name for name in columns if name not in header)
    raise DataError(f"{path}: no column {name!r}, only {', '.join(header[:20])}{', …' if len(header) > 20 else ''}.{suggestion(name, header)}")


def _refuse_twins(path: Path, header: Sequence[str], columns: Collection[str] | None) -> None:
    twins = [name for name in dict.fromkeys(header) if name and header.count(name) > 1 and (columns is None or name in columns)]
    if twins:
        raise DataError(f"{path}: two columns are called {twins[0]!r}. Give them names of their own.")


def _json_lines(path: Path, layout: Layout, columns: Collection[str] | None) -> Frame:
    rows: list[int] = []
    objects: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for row, line in enumerate(file, start=1):
            if line.strip():
                try:
                    found = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}: row {row}: no JSON: {error}. Mend it, or leave it out.") from error
                if not isinstance(found, dict):
                    raise DataError(f"{path}: row {row}: {type(found).__name__} where an object belongs. Give one object a line.")
                rows.append(row)
                objects.append(found)
    names = list(dict.fromkeys(name for found in objects for name in found))
    if columns is not None and not set(columns) <= set(names):
        _refuse_header(path, names, 1, columns, [])
    wanted = [name for name in names if columns is None or name in columns]
    return Frame(path, {name: [found.get(name) for found in objects] for name in wanted}, rows, layout)


def _parquet(path: Path, layout: Layout, columns: Collection[str] | None) -> Frame:
    parquet, arrow = need("pyarrow.parquet", "tables", f"{path}: Parquet"), need("pyarrow", "tables", f"{path}: Parquet")
    try:
        with parquet.ParquetFile(path) as file:
            names = [str(name) for name in file.schema_arrow.names]
            if columns is not None and not set(columns) <= set(names):
                _refuse_header(path, names, 1, columns, [])
            table = file.read([name for name in names if columns is None or name in columns])
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}. It may be cut short, or no Parquet file.") from error
    cells: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name]
        plain = arrow.types.is_floating(column.type) or (arrow.types.is_integer(column.type) and column.null_count == 0)
        cells[name] = column.to_numpy() if plain else column.to_pylist()  # a null in floats becomes NaN
    return Frame(path, cells, range(1, len(table) + 1), layout)


def _is_empty(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _listed(cells: Any) -> list[Any]:
    return list(cells.tolist()) if isinstance(cells, np.ndarray) else list(cells)


def _text(cell: Any) -> str:
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


_Reader = Callable[[Path, Layout, Collection[str] | None], Frame]
_READERS: dict[str, _Reader] = {".csv": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines, ".xlsx": _excel, ".parquet": _parquet}
