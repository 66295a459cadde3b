"""Tables that list files: read once for all parts, processes and launches, and mapped."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import abspath, exists, join, normpath
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from harness.data.known_store import Words, encoded
from harness.data.readings import Column, Columns
from harness.data.shelf import report
from harness.data.texts import Taken, Texts
from harness.data.written import name_of
from harness.errors import DataError
from harness.sources.cells import Layout
from harness.sources.csv_files import ending_of
from harness.sources.device_files import DEVICES
from harness.sources.listing import Files, Paths, find_files
from harness.sources.shared import read_shared, shared_rows
from harness.sources.split import Part, Rule
from harness.sources.table_files import FORMATS, read_cells, read_pieces

_TABLES = {*FORMATS} - {*DEVICES}
# The column of files in a table that lists them, as in datasets' imagefolder and audiofolder
FILE_NAME = "file_name"


@dataclass
class _Table:
    """The rows of all tables: files, which table and row names each, and the fields."""

    names: Texts
    tables: Texts
    rows: NDArray[np.int64]
    fields: Mapping[str, Texts]


class ListedFiles(Files):
    """Files that tables list; which of them are in a part is read once, too."""

    def __init__(self, found: Files, table: _Table, order: NDArray[np.int64], key: Any) -> None:
        super().__init__(Paths(table.names.words, order), Taken(table.fields, order))
        self._found, self._table, self._order, self._key = found, table, order, key

    def part(self, part: Part, rule: Rule | None) -> Files:
        if part == "all":
            return self
        key, count = (self._key, "part"), len(self.paths)
        rows = shared_rows(
            self._found, key, part, rule, self.fields, count, lambda chosen: self._order[chosen]
        )
        return Files(Paths(self._table.names.words, rows), Taken(self._table.fields, rows))


def listed_files(
    templates: str | Sequence[str], asked: Iterable[str] = (), *, tell: bool = True
) -> tuple[Files, list[Path]]:
    """The files that match the templates, or that the matching tables list, and those tables.

    Bytes in a table that are not text, such as thumbnails, are not a field unless asked for.
    """
    found = find_files(templates, tell=tell)
    if not all(ending_of(path) in _TABLES for path in found.paths):
        return found, []
    wanted = {"label", *map(name_of, asked)}
    # Names are relative to their tables: tables of one content in two folders list other files
    folders = tuple(abspath(path.parent) for path in found.paths)
    key = ("listed files", tuple(sorted(wanted)), folders)
    table = read_shared(found, key, _reads(found, wanted), _formed)
    _refuse_twice(table)

    def sort(columns: Columns) -> None:
        columns.append({"order": _order(table.names.words)}, None)

    order = read_shared(found, (key, "order"), sort, _Order).rows
    return ListedFiles(found, table, order, key), list(found.paths)


class _Order:
    """Rows in the order of their paths."""

    def __init__(self, columns: Mapping[str, Any], state: Any) -> None:
        self.rows: NDArray[np.int64] = columns["order"]


def _reads(found: Files, wanted: Collection[str]) -> Callable[[Columns], None]:
    """What fills columns with the rows of all tables, going on after those that are there."""

    def read(columns: Columns) -> None:
        state = columns.state or {"done": [], "pieces": 0, "bytes": [], "names": None}
        for number, table in enumerate(found.paths):
            if str(table) in state["done"]:
                continue
            fixed = {name: values[number] for name, values in found.fields.items()}
            _read(table, fixed, wanted, columns, state)
            state["done"].append(str(table))
            state["pieces"] = 0
        if columns.num_rows == 0:
            raise DataError(f"{found.paths[0]}: lists no files. Add a row for each file.")
        columns.state = state

    return read


def _read(
    table: Path, fixed: Mapping[str, str], wanted: Collection[str], columns: Columns, state: Any
) -> None:
    # Raises, and names the existing columns, if this one is missing
    read_cells(table, Layout(missing="keep"), [FILE_NAME])
    size, parent = table.stat().st_size, abspath(table.parent)
    for number, frame in enumerate(read_pieces(table, Layout(missing="keep"))):
        report(f"reading {table}", int(frame.share * size), size)
        if number < state["pieces"] or len(frame) == 0:
            continue
        listed = frame.texts(FILE_NAME, as_stored=True)
        if "" in listed.compact().words:
            row = frame.rows[listed.index("")]
            raise DataError(f"{table}: row {row}: no file_name. List each file once.")
        paths = Texts.of([_as_named(normpath(join(parent, word))) for word in listed.words])
        names = Texts(paths.words, paths.codes[listed.codes])
        none = np.zeros(len(frame), np.int32)
        piece: dict[str, Column] = {
            f"field:{name}": Texts([text], none) for name, text in fixed.items()
        }
        for name in frame.cells:
            if name not in fixed and name != FILE_NAME:
                is_bytes = name not in wanted and frame.has_bytes(name)
                state["bytes"] += [name] * (is_bytes and name not in state["bytes"])
                piece[f"field:{name}"] = Texts([""], none) if is_bytes else frame.texts(name)
        state["names"] = state["names"] or [*piece]
        if {*piece} != {*state["names"]}:
            raise DataError(
                f"{table}: its columns differ from those of the tables before. Give all tables "
                "the same columns."
            )
        piece = {name: piece[name] for name in state["names"]}
        state["pieces"] = number + 1
        rows = np.asarray(frame.rows, dtype=np.int64)
        piece |= {"name:": names, "table:": Texts([str(table)], none), "row:": rows}
        columns.append(piece, state)


def _formed(columns: Mapping[str, Column], state: Any) -> _Table:
    rows: dict[str, Any] = dict(columns)
    fields = {
        name.removeprefix("field:"): column
        for name, column in rows.items()
        if name.startswith("field:") and name.removeprefix("field:") not in state["bytes"]
    }
    return _Table(rows["name:"], rows["table:"], rows["row:"], fields)


def _refuse_twice(table: _Table) -> None:
    """Raise DataError for a file that is listed twice: words are numbered by their first use."""
    codes = table.names.codes
    if len(table.names.words) < len(codes):
        at = int(np.flatnonzero(codes != np.arange(len(codes)))[0])
        path, row = Path(table.tables[at]), int(table.rows[at])
        frame = read_cells(path, Layout(missing="keep"), [FILE_NAME])
        name = frame.texts(FILE_NAME, as_stored=True)[list(frame.rows).index(row)]
        raise DataError(f"{path}: row {row}: {name} is listed twice. List each file once.")


def _as_named(path: str) -> str:
    """The file of a name in whichever normal form of Unicode it is stored."""
    if path.isascii() or exists(path):
        return path
    forms = (normalize(form, path) for form in ("NFC", "NFD"))
    return next((form for form in forms if exists(form)), path)


def _order(names: Sequence[str]) -> NDArray[np.int64]:
    """names (N,) -> (N,): rows as their paths are ordered, which is that of the bytes with the
    least one for each slash.
    """
    # Loaded when used
    import pyarrow as pa
    import pyarrow.compute as pc

    values, ends = names.parts() if isinstance(names, Words) else encoded(names)
    folded = np.where(values == ord("/"), 0, values).astype(np.uint8)
    buffers = [None, pa.py_buffer(np.ascontiguousarray(ends)), pa.py_buffer(folded)]
    keys = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(names), buffers)
    if len(names) < 2 or pc.all(pc.less(keys[:-1], keys[1:])).as_py():
        return np.arange(len(names))
    rows: NDArray[np.int64] = pc.sort_indices(keys).to_numpy().astype(np.int64)
    return rows
