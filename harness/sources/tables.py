"""Tables: CSV, Parquet, JSON lines and Excel, one row per sample.

The same data gives the same samples in each of these formats.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.written import name_of, named
from harness.errors import ConfigError, DataError
from harness.sources.cells import (
    MISSING,
    Column,
    Kind,
    Layout,
    Missing,
    check_kinds,
    tell_narrowed,
)
from harness.sources.files import OnError, find_files, read_each
from harness.sources.source import BatchSource, as_texts, select
from harness.sources.split import Part, Rule, rows_of
from harness.sources.table_files import read_cells

_Samples = tuple[dict[str, Column], dict[str, list[str]], NDArray[np.int64], dict[str, str]]


class Table(BatchSource):
    """Rows of .csv, .tsv, .txt (also with .gz), .parquet, .jsonl, .json, .xlsx or .xlsm files, held
    in memory.

    A sample: `features` (D,) float32, the columns of that list in order (none if it is empty), and
    each of `columns` under its own name, of its kind: number (float32), integer (int64) or text,
    which a treatment such as `harness.treatments.Encode` converts to numbers. `features: null`
    takes every column that neither `columns` nor `split` names. `files`: a path, a pattern such as
    data/{subject}/*.csv or a list; a {field} is also a text column.

    `sheet` (Excel) and `header` (Excel and CSV) count from 1; `skip_rows` under the header are not
    data, e.g. units; rows that begin with `comment` are passed over; `names` are those of a file
    that has none. `thousands`: a mark between groups of digits. Empty cells and, in numeric
    columns, `missing_marks` (words, or numbers such as -999) are rejected, or with `missing: keep`
    NaN in numbers and "" in text. A file that cannot be read is an error, or is skipped with
    `on_error: skip`; the messages are in `skipped`. Raises DataError with file, row and column.

    Known about each row, for splits, checks and balanced sampling: its file ("path") and "row",
    the fields of its path, the columns that the split needs, and those of `columns` that are text
    or integers.
    """

    version = 2  # texts as harness.data.written.text_of writes values

    def __init__(
        self,
        files: str | Sequence[str],
        features: Sequence[str] | None = None,
        columns: Mapping[str, Kind] | None = None,
        part: Part = "all",
        split: Rule | None = None,
        sheet: str | int = 1,
        header: int = 1,
        separator: str = ",",
        decimal: str = ".",
        encoding: str = "utf-8-sig",
        missing: Missing = "refuse",
        missing_marks: Collection[str] = MISSING,
        thousands: str | None = None,
        comment: str | None = None,
        skip_rows: int = 0,
        names: Sequence[str] | None = None,
        on_error: OnError = "stop",
    ) -> None:
        self.columns = {named(name): kind for name, kind in (columns or {}).items()}
        self.features = None if features is None else list(map(named, features))
        check_kinds(self.columns, ["features", *(self.features or ())])
        marks = tuple(map(str, missing_marks))
        rows = (thousands, comment, skip_rows, names)
        layout = Layout(sheet, header, separator, decimal, encoding, missing, marks, *rows)
        found = find_files(files)
        self._of_paths = set(found.fields)  # columns from the paths, not from the files
        asked = [*self.columns, *(() if split is None else split.columns)]
        for name in self._of_paths & set(self.columns):
            if self.columns[name] != "text":
                raise ConfigError(
                    f"columns.{name}: a field of the path is text. Set its kind to text."
                )
        self._asked = list(dict.fromkeys(name for name in asked if name not in self._of_paths))
        wanted = (
            None if self.features is None else list(dict.fromkeys([*self.features, *self._asked]))
        )
        found, read, self.skipped = read_each(
            found, lambda path: self._read(path, layout, wanted, split), on_error
        )
        tell_narrowed({name: lost for one in read for name, lost in one[3].items()})
        values = {name: _joined([one[0][name] for one in read]) for name in read[0][0]}
        counts = [len(one[2]) for one in read]
        known = {name: [cell for one in read for cell in one[1][name]] for name in read[0][1]}
        file_of = np.repeat(np.arange(len(counts)), counts)
        known |= found.fields_at(file_of)
        values |= {name: known[name] for name in self.columns if name in self._of_paths}
        chosen = rows_of(part, split, known, sum(counts))
        self._values = {name: _at(column, chosen) for name, column in values.items()}
        self._known = {name: select(column, chosen) for name, column in known.items()}
        self._file_of = file_of[chosen]
        self._rows = np.concatenate([one[2] for one in read])[chosen]
        self._paths = found.paths

    @staticmethod
    def paths_of(files: str | Sequence[str], **_: Any) -> list[Path]:
        """The files that a table with these arguments reads; none is opened."""
        return find_files(files, tell=False).present()

    def paths(self) -> list[Path]:
        """Every file that is read."""
        return self._paths

    def known(self) -> dict[str, list[str]]:
        """{column: (N,) texts}"""
        origins = {
            "path": list(map(str, select(self._paths, self._file_of))),
            "row": as_texts(self._rows),
        }
        texts = {
            name: column if isinstance(column, list) else as_texts(column)
            for name, column in self._values.items()
            if self.columns.get(name, "number") != "number"
        }
        return {**origins, **texts, **{name: list(column) for name, column in self._known.items()}}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{features: (B, D), a column: (B,) numbers or a list of B texts}"""
        return {name: _at(column, np.asarray(indices)) for name, column in self._values.items()}

    def _read(
        self, path: Path, layout: Layout, wanted: list[str] | None, split: Rule | None
    ) -> _Samples:
        """The values of the samples of a file, the columns that the split needs, their rows, and
        what float32 lost.
        """
        frame = read_cells(path, layout, wanted)
        asked = set(map(name_of, self._asked))
        absent = asked - set(frame.cells)
        if absent:
            read_cells(
                path, layout, self._asked
            )  # raises, naming the missing column and those there are
        if self.features is None:
            self.features = [name for name in frame.cells if name not in asked]
        elif wanted is None and {*self.features} | asked != set(frame.cells):
            other = min(set(frame.cells) ^ ({*self.features} | asked))
            raise DataError(
                f"{path}: column {other!r} is not in all files. List the columns to use as "
                "features."
            )
        values: dict[str, Column] = {}
        if self.features:
            columns = [frame.float32(name) for name in self.features]
            values["features"] = np.stack(columns, axis=1)
        elif not self.columns:
            raise ConfigError("features, columns: no column is read. Name at least one.")
        for name, kind in self.columns.items():
            if name not in self._of_paths:
                values[name] = frame.column(name, kind)
        known = {
            name: frame.texts(name)
            for name in (() if split is None else split.columns)
            if name not in self._of_paths
        }
        narrowed = {f"{path}, column {name!r}": lost for name, lost in frame.narrowed.items()}
        return values, known, np.asarray(frame.rows, dtype=np.int64), narrowed


def _joined(columns: Sequence[Column]) -> Column:
    arrays = [column for column in columns if isinstance(column, np.ndarray)]
    return np.concatenate(arrays) if arrays else [text for column in columns for text in column]


def _at(column: Column, rows: NDArray[np.int64]) -> Column:
    return column[rows] if isinstance(column, np.ndarray) else select(column, rows)
