"""Collections of files that are samples: images, sound recordings, videos.

Found by a path pattern, or listed in a table.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from harness.data.texts import Texts
from harness.data.written import name_of
from harness.errors import ConfigError, DataError, require_choice
from harness.sources.cells import Kind, check_kinds
from harness.sources.files import OnError, class_names, read_each
from harness.sources.held_files import Held, read_held
from harness.sources.listed import listed_files
from harness.sources.listing import Files, refuse_missing
from harness.sources.source import BatchSource
from harness.sources.split import Part, Rule

Keep = Literal["memory", "disk"]
Check = Literal["all", "first"]


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

    `check`, with `keep: disk`: "all" looks at every file at start-up; "first" at the first one, at
    others when they are read, and files that a table lists are identified by the table alone.

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
        settings: Hashable = None,
        check: Check = "all",
    ) -> None:
        require_choice("keep", keep, get_args(Keep))
        require_choice("check", check, get_args(Check))
        if check == "first" and (keep != "disk" or on_error != "stop"):
            raise ConfigError(
                "check: first needs keep: disk and on_error: stop: files that are not checked at "
                "start-up can neither be kept in memory nor be skipped."
            )
        self._checks_all = check == "all"
        self._what = what
        self._columns = dict(columns or {})
        check_kinds(self._columns, (what, "label"))
        asked = [*self._columns, *(() if split is None else split.columns)]
        found, self._tables = listed_files(files, asked)
        labels = found.fields.get("label")
        # Before splitting and before files are skipped, so that class numbers do not depend on
        # either.
        self.classes = None if labels is None else _class_names(found, labels, classes)
        self.files = found.part(part, split)
        self.skipped: list[str] = []
        if keep == "memory":
            self._hold(settings, on_error)
        else:
            checked = self._look_at(on_error)
            self._file_of = self._arrange_checked(checked)
        self._of_files = {
            name: _column(self.files, name, kind) for name, kind in self._columns.items()
        }
        if self.classes is not None:
            self._of_files["label"] = _numbers(self.files.fields["label"], self.classes)

    def _hold(self, settings: Hashable, on_error: OnError) -> None:
        """Decode all files, or map what this process or another one of its launch has decoded."""
        kind = type(self)
        # What a class of somebody else makes of a file follows from more than the settings
        is_own = kind.__module__.startswith("harness.sources.")
        what = (f"{kind.__module__}.{kind.__qualname__}", settings) if is_own else None
        held = read_held(self.files, what, self._read_rows, self._check, on_error)
        if held.skipped:
            left = np.setdiff1d(np.arange(len(self.files.paths)), [*held.skipped])
            self.files, self.skipped = self.files.select_rows(left), [*held.skipped.values()]
        self._file_of = self._arrange_held(held)

    def _look_at(self, on_error: OnError) -> list[Any]:
        """What `_check` gives of each file, those left out that cannot be read by their headers;
        nothing if only the first is looked at.
        """
        if self._checks_all:
            self.files, checked, self.skipped = read_each(self.files, self._check, on_error)
            return checked
        for path in self.files.paths if self.files.may_dangle else ():
            refuse_missing(path)
        read_each(self.files.select_rows([0]), self._check, on_error)
        return []

    @staticmethod
    def paths_of(files: str | Sequence[str], *, check: Check = "all", **_: Any) -> list[Path]:
        """The files that a collection with these arguments reads, or with `check: first` instead
        of those that tables list the tables; only tables of files are opened.
        """
        found, tables = listed_files(files, tell=False)
        return tables if tables and check == "first" else [*tables, *found.present()]

    def __len__(self) -> int:
        return len(self.files.paths) if self._file_of is None else len(self._file_of)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{<what>: (B, ...), label: (B,), a column: (B,) numbers or a list of B texts}"""
        rows = np.asarray(indices) if self._file_of is None else self._file_of[indices]
        return {
            self._what: self._gather(indices),
            **{name: column(rows) for name, column in self._of_files.items()},
        }

    def paths(self) -> list[Path]:
        """Every file that is read, including tables that list files; as `paths_of` says, these
        alone.
        """
        listed = self.files.paths if self._checks_all or not self._tables else ()
        return [*self._tables, *listed]

    def known(self) -> Mapping[str, Sequence[str]]:
        """{field: (N,) texts}: what paths and tables state about the samples, and the "path"
        itself.
        """
        files = self.files if self._file_of is None else self.files.select_rows(self._file_of)
        return {"path": files.paths.texts(), **files.fields}

    def class_names(self) -> dict[str, list[str]]:
        """{label: names in the order of their numbers}, if there are labels."""
        return {} if self.classes is None else {"label": list(self.classes)}

    def _arrange_held(self, held: Held) -> NDArray[np.int64] | None:
        """What `_read_rows` gave for all files -> the file (N,) of each sample; None: its own."""
        self._arrays: NDArray[Any] | None = held.values
        return None

    def _arrange_checked(self, checked: list[Any]) -> NDArray[np.int64] | None:
        """The same for what `_check` gave of each file, or of none with `check: first`."""
        self._arrays = None
        return None

    def _gather(self, indices: list[int]) -> NDArray[Any]:
        """The samples' arrays, (B, ...)."""
        if self._arrays is not None:
            gathered: NDArray[Any] = self._arrays[indices]
            return gathered
        return np.stack([self._read_listed(self.files.paths[index]) for index in indices])

    def _read_listed(self, path: Path) -> Any:
        try:
            return self._read(path)
        except DataError:
            refuse_missing(path)
            raise

    def _read_rows(self, path: Path) -> Mapping[str, NDArray[Any]]:
        """The rows that a file adds to columns, of which `values` are the samples' own."""
        return {"values": self._read(path)[None]}

    def _read(self, path: Path) -> Any:
        return self.reader.read(path, str(path))

    def _check(self, path: Path) -> Any:
        return self.reader.check(path, str(path))


def refuse_uncounted(check: Check, option: str, instead: str) -> None:
    """Raise a ConfigError for `check: first` where an option makes the number of samples of a file
    depend on its length.
    """
    if check == "first":
        raise ConfigError(
            f"check: first, {option}: how many samples a file gives depends on its length, so all "
            "files have to be looked at. Remove check, and set data.store, which keeps what was "
            f"read; or {instead}."
        )


def _class_names(found: Files, labels: Texts, classes: Sequence[Any] | None) -> list[str]:
    words = labels.compact().words
    if "" in words:
        raise DataError(
            f"{found.paths[labels.index('')]}: no label in its table. Fill it in, or remove the "
            "file from the table."
        )
    return class_names(classes, words, "label")


def _numbers(labels: Texts, classes: Sequence[str]) -> Callable[[NDArray[np.int64]], Any]:
    """Labels (N,) -> what gives the numbers (B,) of those at indices (B,)."""
    number_of = {name: number for number, name in enumerate(classes)}
    numbers = np.array([number_of.get(word, -1) for word in labels.words], dtype=np.int64)
    return partial(_numbers_at, numbers, labels)


def _column(files: Files, name: str, kind: Kind) -> Callable[[NDArray[np.int64]], Any]:
    """What gives the values of a field at indices (B,): float32, int64 or texts."""
    found = {name_of(field): field for field in files.fields}
    if name_of(name) not in found:
        raise ConfigError(
            f"columns.{name}: no such field; the fields are {', '.join(files.fields) or 'none'}."
        )
    texts: Texts = files.fields[found[name_of(name)]].compact()
    if kind == "text":
        return partial(_texts_at, texts)
    values = np.empty(len(texts.words), dtype=np.float32 if kind == "number" else np.int64)
    for code, text in enumerate(texts.words):
        try:
            # Python reads 12_5 as 125
            plain = text.replace("_", "?")
            values[code] = float(plain) if kind == "number" else int(plain)
            if not np.isfinite(values[code]):
                raise ValueError
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{files.paths[texts.index(text)]}: its {name!r} is {text!r}, not a number. "
                f"Correct the table, or remove {name} from columns."
            ) from error
    return partial(_numbers_at, values, texts)


def _numbers_at(numbers: NDArray[Any], texts: Texts, rows: NDArray[np.int64]) -> NDArray[Any]:
    """numbers: of each word; rows (B,) -> (B,)"""
    found: NDArray[Any] = numbers[texts.codes[rows]]
    return found


def _texts_at(texts: Texts, rows: NDArray[np.int64]) -> list[str]:
    return list(texts.take(rows))
