"""Columns of cells as stored in a file, and their interpretation: numbers, integers, text, times.

Every cell keeps its row as a person counts it, so that a message can name it.
"""

import datetime
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import numpy as np
from numpy.typing import NDArray

from harness.data.texts import Texts
from harness.data.written import name_of, text_of
from harness.errors import ConfigError, DataError, require_choice
from harness.sources.dates import check_time_format, check_timezone
from harness.sources.encodings import check_encoding
from harness.sources.narrowing import Narrowed
from harness.sources.source import Rows, select

MISSING = ("NA", "N/A", "NaN", "nan", "null", "None")
Missing = Literal["refuse", "keep"]
TimeUnit = Literal["s", "ms", "us", "ns"]
Kind = Literal["number", "integer", "text"]
_LIKELY_MARKS = {
    *("-", "--", "---", "?", ".", "*", "x", "#n/a", "#na", "n.a.", "na", "n/a", "null", "none"),
    *("#div/0!", "#value!", "#ref!", "#num!", "#name?", "#null!"),
    *("nil", "missing", "unknown", "nat", "nan", "(null)", "\\n", "<na>", "k.a.", "n.d."),
}
DAY_FIRST = re.compile(r"\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}(\D|$)")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:([., '\u00a0\u202f])\d{3})(?:\1\d{3})*(?:[.,]\d*)?")
Column = NDArray[Any] | Texts


@dataclass(frozen=True)
class Layout:
    """How files are read.

    `sheet`: of Excel, by name or by number from 1. `header`: the row of the column names, from 1.

    `names`: the column names of a file that has none, whose row `header` is the first of data.
    `skip_rows`: rows under the header that are not data, e.g. units. `comment`: rows that begin
    with it are skipped. `skip_footer`: filled rows at the end that are not data, e.g. totals.
    `escape`: of CSV, precedes a character that is taken literally. `time_unit`: of times that are
    numbers; `time_format`: of dates that are text, as in strptime; `timezone`: of dates that do not
    state one. `separator`, `decimal`, `thousands`, `encoding`: of CSV. `missing`: empty
    cells, and in numeric columns those that hold one of the `marks`, a word or a number such as
    -999, are rejected, or kept as NaN or "".
    """

    sheet: str | int = 1
    header: int = 1
    separator: str | None = None  # a comma, in .tsv a tab
    decimal: str = "."
    encoding: str = "utf-8-sig"  # with or without the byte order mark that Excel writes
    missing: Missing = "refuse"
    marks: Collection[str] = field(default=MISSING)
    thousands: str | None = None
    comment: str | None = None
    skip_rows: int = 0
    names: Sequence[str] | None = None
    skip_footer: int = 0
    escape: str | None = None
    time_unit: TimeUnit = "s"
    time_format: str | None = None
    timezone: str | None = None

    def __post_init__(self) -> None:
        if self.header < 1:
            raise ConfigError(f"header: {self.header}: rows are counted from 1. Give 1 or more.")
        if self.skip_rows < 0 or self.comment == "":
            raise ConfigError(
                f"skip_rows, comment: {self.skip_rows} and {self.comment!r}. Give a number of rows "
                "from 0, and at least one character."
            )
        if not 0 <= self.skip_footer <= 100:
            raise ConfigError(f"skip_footer: {self.skip_footer}. Give a number from 0 to 100.")
        if self.escape is not None and (
            len(self.escape) != 1 or self.escape in ('"', self.separator, "\n", "\r", " ")
        ):
            raise ConfigError(
                f"escape: {self.escape!r}. Give one character other than the quote and separator."
            )
        if self.names is not None:
            object.__setattr__(self, "names", tuple(map(name_of, self.names)))
        if self.names is not None and len(set(self.names)) < len(self.names):
            raise ConfigError(f"names: {list(self.names)}: a name occurs twice. Rename one.")
        if self.thousands is not None and (
            len(self.thousands) != 1 or self.thousands == self.decimal or self.thousands.isalnum()
        ):
            raise ConfigError(
                f"thousands: {self.thousands!r}. Give one character that is neither a digit nor "
                f"decimal ({self.decimal!r})."
            )
        check_encoding(self.encoding)
        check_timezone(self.timezone)
        check_time_format(self.time_format or "")
        require_choice("time_unit", self.time_unit, get_args(TimeUnit))
        require_choice("missing", self.missing, get_args(Missing))
        mark = self.separator
        if self.decimal not in (".", ",") or (mark is not None and len(mark) != 1):
            raise ConfigError(
                f"separator, decimal: {mark!r} and {self.decimal!r}. Give one character each, "
                "decimal a point or a comma."
            )
        if mark is not None:
            self.check_separator(mark)

    def check_separator(self, mark: str) -> None:
        """Raise ConfigError if cells could not be told from the decimals in them."""
        if mark == self.decimal:
            raise ConfigError(
                f"separator, decimal: {mark!r} and {self.decimal!r}. Set separator to another "
                "character, e.g. ';'."
            )


def check_kinds(columns: Mapping[str, Any], others: Collection[str]) -> None:
    """Raise ConfigError unless all kinds are known and no column has a name that samples already
    use (`others`).
    """
    for name, kind in columns.items():
        require_choice(f"columns.{name}", kind, get_args(Kind))
        if name in others:
            raise ConfigError(
                f"columns.{name}: samples already have a value of this name. Remove it, or "
                "rename the column."
            )


class Cells:
    """The columns of one file: `cells[name]` as stored, a list, a numeric array or pyarrow strings,
    under their names in normal form C;
    `rows`: their row numbers in the file.
    """

    def __init__(self, path: Path, cells: dict[str, Any], rows: Rows, layout: Layout) -> None:
        self.path = path
        self.cells = cells
        self.rows = rows
        self.layout = layout
        self.is_first = True  # no rows of the file are before these
        self.share = 1.0  # of the file, up to their end
        self.narrowed: dict[str, Narrowed] = {}  # columns and what float32 makes of them
        self._marked = [
            number for number in map(number_or_none, layout.marks) if number is not None
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, name: str) -> Any:
        """The cells of a column."""
        return self.cells[name_of(name)]

    def take(self, name: str, rows: NDArray[Any]) -> "Cells":
        """A column alone, in these rows."""
        cells = self.raw(name)
        taken = select(cells, rows) if isinstance(cells, list) else cells.take(rows)
        return Cells(self.path, {name_of(name): taken}, np.asarray(self.rows)[rows], self.layout)

    def column(self, name: str, kind: Kind) -> Column:
        """(N,) float32 or int64, or N texts. Raises DataError with file, row and column."""
        if kind == "text":
            return self.texts(name)
        return self.float32(name) if kind == "number" else self.integers(name)

    def float32(self, name: str) -> NDArray[np.float32]:
        """(N,) float32. Raises DataError as `numbers`, and for a number too large."""
        wide = self.numbers(name)
        with np.errstate(over="ignore"):
            values = wide.astype(np.float32)
        self._refuse_where(name, np.isinf(values), "too large for float32. Rescale it.")
        self.narrowed[name] = Narrowed.of(wide)
        return values

    def numbers(self, name: str) -> NDArray[np.float64]:
        """(N,) float64, NaN where a value is missing and that is allowed.

        Raises DataError with file, row and column of a cell that is not a number.
        """
        cells = self.raw(name)
        if isinstance(cells, np.ndarray):
            values = cells.astype(np.float64)  # a copy
        else:
            packed = None if isinstance(cells, list) else self._cast(cells)
            values = self._convert(name, as_list(cells)) if packed is None else packed
        if self._marked:
            values[np.isin(values, self._marked)] = np.nan
        if self.layout.missing == "refuse":
            what = "empty, expected a number. Fill it in, or set missing: keep."
            self._refuse_where(name, np.isnan(values), what)
        self._refuse_where(name, np.isinf(values), "infinite. Correct it.")
        return values

    def integers(self, name: str) -> NDArray[np.int64]:
        """(N,) int64. Raises DataError as `numbers`, for a fraction or a missing value, and for a
        number that is too large.
        """
        cells = self.raw(name)
        if (
            isinstance(cells, np.ndarray)
            and np.can_cast(cells.dtype, np.int64)
            and not np.isin(cells, self._marked).any()
        ):
            return cells.astype(np.int64)
        values = self.numbers(name)
        whole = np.isfinite(values) & (values == np.rint(values))
        if not whole.all():
            what = f"{values[~whole][0]} is not an integer. Correct it, or read the column"
            self._refuse_where(name, ~whole, f"{what} as number.")
        large = np.abs(values) >= 2**53  # float64 does not hold every one of these
        found = np.where(large, 0, values).astype(np.int64)
        if large.any():
            all_cells = as_list(cells)
            for index in np.flatnonzero(large).tolist():
                found[index] = self._exactly(name, index, all_cells[index])
        return found

    def _exactly(self, name: str, index: int, cell: Any) -> int:
        try:
            number = int(str(cell).replace(self.layout.thousands or " ", ""))
        except ValueError:  # 1e18, or a float
            number = 2**63
        if not -(2**63) <= number < 2**63:
            what = f"{cell} is too large for an exact integer. Read the column as text"
            self.refuse(name, index, f"{what}.")
        return number

    def texts(self, name: str, *, as_stored: bool = False) -> Texts:
        """N texts as `text_of` writes values, or `as_stored`, as names of files have to be; ""
        where one is missing and that is allowed.
        """
        distinct, numbering = _distinct(self.raw(name))
        words = Texts.of(
            [
                self._text(name, cell, as_stored, number, numbering)
                for number, cell in enumerate(distinct)
            ]
        )
        texts = Texts(words.words, words.codes[numbering])
        if self.layout.missing == "refuse" and "" in words.words:
            what = "empty, expected text. Fill it in, or set missing: keep."
            self._refuse_where(name, texts.codes == words.words.index(""), what)
        return texts

    def has_bytes(self, name: str) -> bool:
        """Whether a column holds bytes that are not UTF-8."""
        cells = self.raw(name)
        return isinstance(cells, list) and any(isinstance(cell, bytes) for cell in cells)

    def _text(
        self, name: str, cell: Any, as_stored: bool, number: int, numbering: NDArray[Any]
    ) -> str:
        try:
            is_text = type(cell) is str
            if as_stored and is_text:
                return str(cell)
            return (_word if is_text and len(cell) < 64 else _written)(cell, self.layout.decimal)
        except UnicodeError as error:
            what = f"{error}. Store text as UTF-8, or do not read the column."
            self.refuse(name, int((numbering == number).argmax()), what)

    def _cast(self, cells: Any) -> NDArray[np.float64] | None:
        """Strings as `_convert` reads them, many times faster; None if one of them needs
        `_convert`.
        """
        # Loaded when used
        import pyarrow as pa
        import pyarrow.compute as pc

        mark = self.layout.thousands
        if mark is None and self.layout.decimal == ".":
            with suppress(pa.ArrowInvalid):  # cells with spaces or no numbers
                return np.array(pc.cast(cells, pa.float64()).to_numpy())
        trimmed = pc.utf8_trim_whitespace(cells)
        if mark is not None and pc.any(pc.match_substring(trimmed, mark)).as_py():
            return None
        if self.layout.decimal == ",":
            if pc.any(pc.match_substring(trimmed, ".")).as_py():
                return None
            trimmed = pc.replace_substring(trimmed, ",", ".")
        missing = pc.is_in(trimmed, value_set=pa.array(["", *self.layout.marks], pa.string()))
        try:
            numbers = pc.cast(pc.if_else(missing, None, trimmed), pa.float64())
        except pa.ArrowInvalid:
            return None
        return np.array(numbers.to_numpy())  # pyarrow's own array is read-only

    def _convert(self, name: str, cells: list[Any]) -> NDArray[np.float64]:
        values = np.empty(len(cells))
        for index, cell in enumerate(cells):
            try:
                values[index] = self._read_number(cell) if isinstance(cell, str) else cell
            except OverflowError:  # an integer of JSON
                values[index] = np.inf
            except (ValueError, TypeError):
                if not is_empty(cell) and str(cell).strip() not in self.layout.marks:
                    shown = repr(cell) if isinstance(cell, str) else text_of(cell)
                    self.refuse(
                        name, index, f"{shown} is not a number. {self._remedy(cell, index)}"
                    )
                values[index] = np.nan
        return values

    def _remedy(self, cell: Any, index: int) -> str:
        word = str(cell).strip()
        if word.casefold() in _LIKELY_MARKS:
            return (
                f"If it marks a missing value, add it to missing_marks ({', '.join(MISSING)} by "
                "default) and set missing: keep."
            )
        if DAY_FIRST.match(word) or isinstance(cell, datetime.time | datetime.timedelta):
            return "If it is a date or time, read the column as text, or in a Series as its time."
        other = "," if self.layout.decimal == "." else "."
        ways = []
        if grouped := _GROUPED.fullmatch(word):
            ways.append(
                f"If {grouped[1]!r} stands between thousands, set thousands: '{grouped[1]}'."
            )
        if re.fullmatch(rf"[+-]?\d+\{other}\d*", word):
            ways.append(f"If {other!r} is the decimal point, set decimal: '{other}'.")
        if ways:
            return " ".join(ways)
        if index == 0 and self.is_first and not any(map(str.isdigit, word)):
            skipped = self.layout.skip_rows + 1
            skip = f"set skip_rows: {skipped}"
            return f"If this row holds no data, e.g. units, {skip}. Or read it as text."
        return "Correct it, or read the column as text."

    def _read_number(self, text: str) -> float:
        """As float() reads it, but without underscores (12_5). Raises ValueError."""
        text = text.strip()  # the mark may be a space
        comma = self.layout.decimal == ","
        mark = self.layout.thousands
        if mark is not None and mark in text:
            grouped = rf"[+-]?\d{{1,3}}({re.escape(mark)}\d{{3}})+(\{self.layout.decimal}\d*)?"
            if not re.fullmatch(grouped, text):
                raise ValueError(text)
            text = text.replace(mark, "")
        if "_" in text or (comma and "." in text):
            raise ValueError(text)
        word = text.casefold()
        if word in ("true", "false"):
            return float(word == "true")
        return float(text.replace(",", ".") if comma else text)

    def _refuse_where(self, name: str, wrong: NDArray[np.bool_], what: str) -> None:
        if wrong.any():
            self.refuse(name, int(wrong.argmax()), what)

    def refuse(self, name: str, index: int, what: str) -> NoReturn:
        """Raise DataError for a cell."""
        raise DataError(f"{self.path}: row {self.rows[index]}, column {name!r}: {what}")


def _written(cell: Any, decimal: str) -> str:
    """What `text_of` writes; "" for an empty cell. Raises UnicodeError."""
    text = "" if is_empty(cell) else text_of(cell, decimal)
    if not text.isascii():
        text.encode()  # JSON may have half of a character: \ud800
    return text


# Pieces of a file hold the same words again and again
_word = lru_cache(2**12)(_written)


def is_empty(cell: Any) -> bool:
    """Whether a cell holds nothing, or blanks alone."""
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _distinct(cells: Any) -> tuple[list[Any], NDArray[np.integer]]:
    """The distinct texts or numbers of a column, and the index among them of each of N cells."""
    if isinstance(cells, np.ndarray):
        numbers, numbering = np.unique(cells, return_inverse=True)
        return as_list(numbers), numbering
    if isinstance(cells, list) and set(map(type, cells)) == {str}:
        texts = Texts.of(cells)
        return [*texts.words], texts.codes
    if isinstance(cells, list):
        number_of: dict[Any, int] = {}
        found: list[Any] = []
        numbering = np.empty(len(cells), dtype=np.int64)
        for index, cell in enumerate(cells):
            is_text = type(cell) is str  # others may be equal but written differently: 1 and True
            numbering[index] = number_of.setdefault(cell, len(found)) if is_text else len(found)
            if numbering[index] == len(found):
                found.append(cell)
        return found, numbering
    encoded = cells.dictionary_encode().unify_dictionaries()
    chunks = [chunk.indices.to_numpy() for chunk in encoded.chunks]
    words = encoded.chunk(0).dictionary.to_pylist() if chunks else []
    return words, np.concatenate([np.empty(0, np.int32), *chunks])


def as_list(cells: Any) -> list[Any]:
    """The cells of a column as Python objects."""
    if isinstance(cells, list):
        return cells
    if not isinstance(cells, np.ndarray):
        return list(cells.to_pylist())
    # Python's floats would show more digits than a narrow one has
    return list(cells) if cells.dtype.name in ("float16", "float32") else list(cells.tolist())


def number_or_none(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None
