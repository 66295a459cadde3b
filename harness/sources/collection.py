"""Collections of files that are samples: images, sound recordings, videos.

Found by a path pattern, or listed in a table.
"""

from collections.abc import Iterable, Mapping, Sequence
from os.path import abspath
from pathlib import Path
from typing import Any, Literal, Protocol, get_args
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from harness.data.written import name_of
from harness.errors import ConfigError, DataError, require_choice
from harness.sources.cells import Kind, Layout, check_kinds
from harness.sources.csv_files import ending_of
from harness.sources.device_files import DEVICES
from harness.sources.files import (
    Files,
    OnError,
    class_names,
    files_of,
    find_files,
    read_each,
)
from harness.sources.source import BatchSource, select
from harness.sources.split import Part, Rule, rows_of
from harness.sources.table_files import FORMATS, read_cells

Keep = Literal["memory", "disk"]
_TABLES = {*FORMATS} - {*DEVICES}
# The column of files in a table that lists them, as in datasets' imagefolder and audiofolder
FILE_NAME = "file_name"


class FileReader(Protocol):
    """Reads one kind of file; `name` is for messages. Raises DataError."""

    def read(self, file: Path | bytes, name: str) -> NDArray[Any]:
        """What a file holds."""
        ...

    def check(self, file: Path | bytes, name: str) -> Any:
        """Checks a file's header only."""
        ...


class Collection(BatchSource):
    """One file per sample, an array called `what`, with its class number under "label" if file
    names or a table give classes.

    `files`: a path, a pattern with {fields} or a list of them; or those of tables, in any of their
    formats, which list the files in a column `file_name`, each relative to its table.
    The other columns are fields too: "label" is the class, others are for `split`; `columns` are
    added to samples under their own names, as number (float32), integer (int64) or text.

    A subclass sets the `reader` of its files, or has its own `_read` and `_check`, before it calls
    this constructor. Raises ConfigError, and DataError that names the file.
    """

    reader: FileReader

    def __init__(
        self,
        what: str,
        files: str | Sequence[str],
        part: Part,
        split: Rule | None,
        classes: Sequence[Any] | None,
        keep: Keep,
        on_error: OnError,
        columns: Mapping[str, Kind] | None = None,
    ) -> None:
        require_choice("keep", keep, get_args(Keep))
        self._what = what
        self._columns = dict(columns or {})
        check_kinds(self._columns, (what, "label"))
        asked = [*self._columns, *(() if split is None else split.columns)]
        found, self._tables = listed_files(files, asked)
        labels = found.fields.get("label")
        if labels is not None and "" in labels:
            raise DataError(
                f"{found.paths[labels.index('')]}: no label in its table. Fill it in, or remove "
                "the file from the table."
            )
        # Before splitting and before files are skipped, so that class numbers do not depend on
        # either.
        self.classes = None if labels is None else class_names(classes, labels, "label")
        found = found.select_rows(rows_of(part, split, found.fields, len(found.paths)))
        self.files, read, self.skipped = read_each(
            found, self._read if keep == "memory" else self._check, on_error
        )
        self._file_of = self._arrange(read, in_memory=keep == "memory")
        self._of_files = {
            name: _column(self.files, name, kind) for name, kind in self._columns.items()
        }
        if self.classes is not None:
            numbers = [self.classes.index(name) for name in self.files.fields["label"]]
            self._of_files["label"] = np.array(numbers, dtype=np.int64)

    @staticmethod
    def paths_of(files: str | Sequence[str], **_: Any) -> list[Path]:
        """The files that a collection with these arguments reads; only tables of files are
        opened.
        """
        found, tables = listed_files(files, tell=False)
        return [*tables, *found.present()]

    def __len__(self) -> int:
        return len(self._file_of)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{<what>: (B, ...), label: (B,), a column: (B,) numbers or a list of B texts}"""
        columns = {name: column[self._file_of[indices]] for name, column in self._of_files.items()}
        return {
            self._what: self._gather(indices),
            **{name: of.tolist() if of.dtype.kind == "U" else of for name, of in columns.items()},
        }

    def paths(self) -> list[Path]:
        """Every file that is read, including tables that list files."""
        return [*self._tables, *self.files.paths]

    def known(self) -> dict[str, list[str]]:
        """{field: (N,) texts}: what paths and tables state about the samples, and the "path"
        itself.
        """
        paths = list(map(str, select(self.files.paths, self._file_of)))
        return {"path": paths, **self.files.fields_at(self._file_of)}

    def class_names(self) -> dict[str, list[str]]:
        """{label: names in the order of their numbers}, if there are labels."""
        return {} if self.classes is None else {"label": list(self.classes)}

    def _arrange(self, read: list[Any], *, in_memory: bool) -> NDArray[np.int64]:
        """What `_read` or `_check` gave for each file -> the file (N,) of each sample."""
        self._arrays = np.stack(read) if in_memory else None
        return np.arange(len(read))

    def _gather(self, indices: list[int]) -> NDArray[Any]:
        """The samples' arrays, (B, ...)."""
        if self._arrays is not None:
            gathered: NDArray[Any] = self._arrays[indices]
            return gathered
        return np.stack([self._read(self.files.paths[index]) for index in indices])

    def _read(self, path: Path) -> Any:
        return self.reader.read(path, str(path))

    def _check(self, path: Path) -> Any:
        return self.reader.check(path, str(path))


def listed_files(
    templates: str | Sequence[str], asked: Iterable[str] = (), *, tell: bool = True
) -> tuple[Files, list[Path]]:
    """The files that match the templates, or that the matching tables list, and those tables.

    Bytes in a table that are not text, such as thumbnails, are not a field unless asked for.
    """
    found = find_files(templates, tell=tell)
    if not all(ending_of(path) in _TABLES for path in found.paths):
        return found, []
    listed: dict[Path, dict[str, str]] = {}
    wanted = {"label", *map(name_of, asked)}
    for number, table in enumerate(found.paths):
        # Raises, and names the existing columns, if this one is missing
        read_cells(table, Layout(missing="keep"), [FILE_NAME])
        frame = read_cells(table, Layout(missing="keep"))
        of_path = {name: values[number] for name, values in found.fields.items()}
        names = frame.texts(FILE_NAME, as_stored=True)
        texts = {
            name: frame.texts(name)
            for name in frame.cells
            if name not in of_path
            and name != FILE_NAME
            and (name in wanted or not frame.has_bytes(name))
        }
        for index, (row, name) in enumerate(zip(frame.rows, names, strict=True)):
            path = _as_named(Path(abspath(table.parent / name)))
            if not name or path in listed:
                what = f"{name} is listed twice" if name else "no file_name"
                raise DataError(f"{table}: row {row}: {what}. List each file once.")
            listed[path] = of_path | {column: values[index] for column, values in texts.items()}
            if listed[path].keys() != next(iter(listed.values())).keys():
                raise DataError(
                    f"{table}: its columns differ from those of {found.paths[0]}. Give all "
                    "tables the same columns."
                )
    if not listed:
        raise DataError(f"{found.paths[0]}: lists no files. Add a row for each file.")
    return files_of(listed), found.paths


def _as_named(path: Path) -> Path:
    """The file of a name in whichever normal form of Unicode it is stored."""
    if path.exists():
        return path
    forms = (Path(normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((form for form in forms if form.exists()), path)


def _column(files: Files, name: str, kind: Kind) -> NDArray[Any]:
    """(number of files,) float32, int64 or text."""
    found = {name_of(field): texts for field, texts in files.fields.items()}
    if name_of(name) not in found:
        raise ConfigError(
            f"columns.{name}: no such field; the fields are {', '.join(files.fields) or 'none'}."
        )
    texts = found[name_of(name)]
    if kind == "text":
        return np.array(texts, dtype=np.str_)
    values = np.empty(len(texts), dtype=np.float32 if kind == "number" else np.int64)
    for index, text in enumerate(texts):
        try:
            # Python reads 12_5 as 125
            plain = text.replace("_", "?")
            values[index] = float(plain) if kind == "number" else int(plain)
            if not np.isfinite(values[index]):
                raise ValueError
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{files.paths[index]}: its {name!r} is {text!r}, not a number. Correct the "
                f"table, or remove {name} from columns."
            ) from error
    return values
