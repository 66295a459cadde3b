"""Tables: CSV, Parquet, JSON lines and Excel, one row per sample.

The same data gives the same samples in each of these formats.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.data.readings import Columns
from harness.data.shelf import report
from harness.data.source import Numbers
from harness.data.texts import NumberTexts, Taken, Texts
from harness.data.written import name_of, plain_name
from harness.errors import ConfigError, DataError
from harness.sources.cells import (
    MISSING,
    Cells,
    Column,
    Kind,
    Layout,
    Missing,
    check_kinds,
)
from harness.sources.device_files import with_parts
from harness.sources.files import OnError, read_all, tell_skipped
from harness.sources.listing import Files, find_files
from harness.sources.narrowing import Narrowed, tell_narrowed
from harness.sources.shared import read_shared, shared_rows
from harness.sources.source import BatchSource
from harness.sources.split import Part, Rule
from harness.sources.table_files import read_cells, read_pieces

MOST_REPEATED = 64  # features of a table that stand beside its predictions
Wide = Literal["wide"]
WIDE: Wide = "wide"  # a number as float64, of no sample
_ROWS = 2**18  # looked at together


class Table(BatchSource):
    """Rows of .csv, .tsv, .txt (also with .gz, .zst, .bz2, .xz), .parquet, .jsonl, .json, .xlsx,
    .xlsm, .xlsb, .xls or .ods files, held in memory, once for all parts of a table.

    A sample: `features` (D,) float32, the columns of that list in order (none if it is empty), and
    each of `columns` under its own name, of its kind: number (float32), integer (int64) or text,
    which a treatment such as `harness.treatments.Encode` converts to numbers. `features: null`
    takes every column that neither `columns` nor `split` names. `files`: a path, a pattern such as
    data/{subject}/*.csv or a list; a {field} is also a text column.

    `sheet` (Excel) and `header` (Excel and CSV) count from 1; `skip_rows` under the header are not
    data, e.g. units, nor are the last `skip_footer` filled ones; rows that begin with `comment` are
    skipped; `names` are those of a file that has none. CSV: `escape` precedes a character that
    is taken literally. `thousands`: a mark between groups of digits. Empty cells and, in numeric
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
        separator: str | None = None,
        decimal: str = ".",
        encoding: str = "utf-8-sig",
        missing: Missing = "refuse",
        missing_marks: Collection[str] = MISSING,
        thousands: str | None = None,
        comment: str | None = None,
        skip_rows: int = 0,
        names: Sequence[str] | None = None,
        skip_footer: int = 0,
        escape: str | None = None,
        on_error: OnError = "stop",
    ) -> None:
        self.columns = {plain_name(name): kind for name, kind in (columns or {}).items()}
        self.features = None if features is None else list(map(plain_name, features))
        check_kinds(self.columns, ["features", *(self.features or ())])
        marks = tuple(map(str, missing_marks))
        rows = (thousands, comment, skip_rows, names, skip_footer, escape)
        layout = Layout(sheet, header, separator, decimal, encoding, missing, marks, *rows)
        rule_columns = [] if split is None else list(split.columns)
        found = find_files(files)
        reader = _Reader(
            layout, self.features, self.columns, rule_columns, set(found.fields), on_error
        )
        whole = read_shared(found, reader.settings, reader.reads(found), reader.whole)
        self.features, self.skipped, self._paths = whole.features, whole.skipped, whole.paths
        if len(whole.rows) == 0:
            raise DataError(f"{files}: no row holds data. Give a file with rows below its header.")
        # Parts of one table share its values, and differ in their rows
        self._whole = whole
        self._chosen = shared_rows(
            found, reader.settings, part, split, whole.known, len(whole.rows)
        )
        self._files, self._layout, self._on_error = found, layout, on_error

    @staticmethod
    def paths_of(files: str | Sequence[str], **_: Any) -> list[Path]:
        """The files that a table with these arguments reads; at most headers are opened."""
        return with_parts(find_files(files, tell=False).present())

    def paths(self) -> list[Path]:
        """Every file that is read."""
        return with_parts(self._paths)

    def known(self) -> Mapping[str, Sequence[str]]:
        """{column: (N,) texts}"""
        whole = self._whole
        texts = {
            name: column if isinstance(column, Texts) else NumberTexts(column)
            for name, column in whole.values.items()
            if self.columns.get(name, "number") != "number"
        }
        origins = {"path": whole.path_of, "row": NumberTexts(whole.rows)}
        return Taken({**origins, **texts, **whole.known}, self._chosen)

    def own_numbers(self) -> Numbers:
        """A function of indices (B,): {column: (B,)}, the features, if they are few, and `columns`
        that are numbers; in float64, or int64 if all are whole. Raises DataError.
        """
        features = self.features or []
        if len(features) > MOST_REPEATED:
            warnings.warn(
                f"{self._paths[0]}: its {len(features):,} features are not repeated beside the "
                f"predictions: more than {MOST_REPEATED}. The column row says where they are.",
                stacklevel=2,
            )
            features = []
        numbers = [name for name, kind in self.columns.items() if kind == "number"]
        names = list(dict.fromkeys(map(name_of, [*features, *numbers])))
        if not names:
            return lambda _: {}
        reader = _Reader(self._layout, [], dict.fromkeys(names, WIDE), [], set(), self._on_error)
        own = read_shared(self._files, reader.settings, reader.reads(self._files), reader.whole)
        if not np.array_equal(own.rows, self._whole.rows):
            raise DataError(
                f"{self._paths[0]}: the files changed while they were read. Run the command again."
            )
        columns = {name: np.asarray(own.values[name]) for name in names}
        kinds = {name: np.int64 if _are_whole(of) else np.float64 for name, of in columns.items()}

        def read(indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
            rows = self._chosen[indices]
            return {name: of[rows].astype(kinds[name]) for name, of in columns.items()}

        return read

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{features: (B, D), a column: (B,) numbers or a list of B texts}"""
        rows = self._chosen[indices]
        return {
            name: list(column.take(rows)) if isinstance(column, Texts) else column[rows]
            for name, column in self._whole.values.items()
        }


def _are_whole(values: Any) -> bool:
    """Whether all numbers are whole, and none too large to be told from the next one."""
    for begin in range(0, len(values), _ROWS):
        some = values[begin : begin + _ROWS]
        if not ((np.abs(some) <= 2**53) & (some == np.rint(some))).all():  # NaN is not
            return False
    return True


@dataclass
class _Whole:
    """All rows of all files: `values` (N, ...) of samples, and what is `known` for splits."""

    features: list[str]
    values: dict[str, Column]
    known: dict[str, Texts]
    rows: NDArray[np.int64]
    path_of: Texts
    paths: list[Path]
    skipped: list[str]


@dataclass
class _Reader:
    """How the files of a table are read. `of_paths`: columns from the paths, not from the files."""

    layout: Layout
    features: list[str] | None
    columns: dict[str, Kind] | dict[str, Wide]
    rule_columns: list[str]
    of_paths: set[str]
    on_error: OnError

    def __post_init__(self) -> None:
        for name in self.of_paths & set(self.columns):
            if self.columns[name] != "text":
                raise ConfigError(
                    f"columns.{name}: a field of the path is text. Set its kind to text."
                )
        features = None if self.features is None else tuple(self.features)
        listed = (tuple(self.columns.items()), tuple(self.rule_columns))
        self.settings = (Table, self.layout, features, *listed, self.on_error)
        asked = [*self.columns, *self.rule_columns]
        self._asked = list(dict.fromkeys(name for name in asked if name not in self.of_paths))
        self._wanted = None if features is None else list(dict.fromkeys([*features, *self._asked]))

    def reads(self, files: Files) -> Callable[[Columns], None]:
        """What fills columns with the rows of all files, going on after those that are there."""

        def read(columns: Columns) -> None:
            at = _Position(**(columns.state or {}))
            self.features = at.features or self.features
            number_of = {path: number for number, path in enumerate(files.paths)}

            def read_file(path: Path) -> None:
                if str(path) in at.done:
                    return
                fixed = {name: values[number_of[path]] for name, values in files.fields.items()}
                try:
                    self._read(path, fixed, columns, at)
                except DataError:
                    at.pieces, at.spans = 0, {}
                    columns.cut(at.begin, vars(at))
                    raise
                at.leave(path, columns.num_rows)

            _, _, skipped = read_all(files.paths, read_file, self.on_error, "files", tell=False)
            left = (str(path) for path in files.paths if str(path) not in at.done)
            at.done.update(zip(left, skipped, strict=True))
            columns.state = vars(at)

        return read

    def whole(self, columns: Mapping[str, Column], state: Any) -> _Whole:
        """The table of these columns, which `read` filled."""
        at, none = _Position(**state), Texts([], np.empty(0, np.int32))
        tell_narrowed(at.lost)
        found: dict[str, dict[str, Any]] = {"value": {}, "known": {}, "row": {}, "path": {}}
        for name, column in columns.items():
            kind, _, rest = name.partition(":")
            found[kind][rest] = column
        values, known = found["value"], found["known"]
        values |= {name: known[name] for name in self.columns if name in self.of_paths}
        paths = [Path(path) for path, message in at.done.items() if message is None]
        skipped = [message for message in at.done.values() if message is not None]
        rows, path_of = found["row"].get("", np.empty(0, np.int64)), found["path"].get("", none)
        tell_skipped(skipped, len(at.done))
        return _Whole(at.features or [], values, known, rows, path_of, paths, skipped)

    def _read(
        self, path: Path, fixed: Mapping[str, str], columns: Columns, at: "_Position"
    ) -> None:
        """Append the rows of a file. Raises DataError with file, row and column."""
        size = path.stat().st_size
        for number, frame in enumerate(read_pieces(path, self.layout, self._wanted)):
            report(f"reading {path}", int(frame.share * size), size)
            if number < at.pieces:
                continue
            piece = self._piece(path, frame)
            at.features, at.pieces = self.features, number + 1
            for name, span in frame.narrowed.items():
                at.spans[name] = list(span.joined(Narrowed(*at.spans.get(name, ()))))
            if len(frame):
                none = np.zeros(len(frame), np.int32)
                piece |= {f"known:{name}": Texts([text], none) for name, text in fixed.items()}
                columns.append({**piece, "path:": Texts([str(path)], none)}, vars(at))

    def _piece(self, path: Path, frame: Cells) -> dict[str, Column]:
        """The values of samples, the columns that the split needs, and the rows."""
        asked = set(map(name_of, self._asked))
        if asked - set(frame.cells):
            # Raises, and names the missing column and the existing ones
            read_cells(path, self.layout, self._asked)
        if self.features is None:
            self.features = [name for name in frame.cells if name not in asked]
        elif self._wanted is None and {*self.features} | asked != set(frame.cells):
            other = min(set(frame.cells) ^ ({*self.features} | asked))
            raise DataError(
                f"{path}: column {other!r} is not in all files. List the columns to use as "
                "features."
            )
        values: dict[str, Column] = {}
        if self.features:
            features = np.empty((len(frame), len(self.features)), np.float32)
            for column, name in enumerate(self.features):
                features[:, column] = frame.float32(name)
            values["features"] = features
        elif not self.columns:
            raise ConfigError("features, columns: no column is read. Name at least one.")
        for name, kind in self.columns.items():
            if name not in self.of_paths:
                values[name] = frame.numbers(name) if kind == WIDE else frame.column(name, kind)
        known = {name: frame.texts(name) for name in self.rule_columns if name not in self.of_paths}
        return {
            **{f"value:{name}": column for name, column in values.items()},
            **{f"known:{name}": column for name, column in known.items()},
            "row:": np.asarray(frame.rows, dtype=np.int64),
        }


@dataclass
class _Position:
    """Where the reader of a table is, as JSON values: the files that were read, at the end with the
    messages for skipped ones, and of the present one its first row, how many pieces were read, and
    what float32 makes of columns.
    """

    features: list[str] | None = None
    done: dict[str, str | None] = field(default_factory=dict)
    begin: int = 0
    pieces: int = 0
    spans: dict[str, list[Any]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    def leave(self, path: Path, num_rows: int) -> None:
        """Go on to the next file."""
        spans = {name: Narrowed(*span) for name, span in self.spans.items()}
        told = {f"{path}, column {name!r}": span.lost() for name, span in spans.items()}
        self.lost |= {where: lost for where, lost in told.items() if lost is not None}
        self.done[str(path)] = None
        self.begin, self.pieces, self.spans = num_rows, 0, {}
