"""CSV: blocks of rows by pyarrow where they follow the format, else by Python's strict reader,
which names what is wrong. Both give the same cells (tests compare them).
"""

import bz2
import csv
import gzip
import lzma
import zlib
from collections.abc import Callable, Collection, Iterator
from io import StringIO, TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.sources.cells import Cells, Layout
from harness.sources.encodings import why_undecoded
from harness.sources.headed import COMMENT, Head, Line, by_column, read_head, rows_below

_Columns = dict[str, Any]  # pyarrow strings
_LONGEST_FIELD = 2**31 - 1  # bytes
_BLOCK = 2**24  # characters
_FIRST_ROW = 2**16  # characters; a longer one is read by Python
_ROWS_AT_ONCE = 2**15  # held as Python objects
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'
TORN = (EOFError, zlib.error, lzma.LZMAError)


def read_csv(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    """The columns of a file, all of them if None. Raises DataError with its row."""
    pieces = list(csv_pieces(path, layout, columns))
    cells = {name: _concat([piece.cells[name] for piece in pieces]) for name in pieces[0].cells}
    return Cells(path, cells, np.concatenate([piece.rows for piece in pieces]), layout)


def csv_pieces(path: Path, layout: Layout, columns: Collection[str] | None) -> Iterator[Cells]:
    """The same, a part of the file at a time; the last one may have no rows."""
    separator = layout.separator or ("\t" if ending_of(path) == ".tsv" else ",")
    layout.check_separator(separator)
    csv.field_size_limit(_LONGEST_FIELD)
    size = path.stat().st_size
    with open_text(path, layout.encoding) as file:
        rows = _Rows(file, separator, layout)
        try:
            head = read_head(path, layout, columns, rows)
            for cells, numbers in _parts(file, rows, head, layout):
                piece = Cells(path, cells, numbers, layout)
                if not is_packed(path):
                    piece.share = min(1.0, file.buffer.tell() / max(1, size))
                yield piece
        except csv.Error as error:
            raise DataError(
                f"{path}: row {rows.number}: {error}. Correct the row, or set separator."
            ) from error
        except TORN as error:
            raise DataError(f"{path}: cannot be unpacked: {error}. It may be truncated.") from error


def ending_of(path: Path) -> str:
    """The suffix in lower case; of a compressed file the one before it."""
    name = path.stem if is_packed(path) else path.name
    return Path(name).suffix.lower()


def is_packed(path: Path) -> bool:
    """Whether the suffix says that a file is compressed."""
    return path.suffix.lower() in PACKED


def open_text(path: Path, encoding: str) -> TextIO:
    """A text file, unpacked if it is compressed."""
    opened = PACKED[path.suffix.lower()](path) if is_packed(path) else path.open("rb")
    return TextIOWrapper(opened, encoding=encoding, newline="")


def why_not_text(path: Path, layout: Layout, error: UnicodeError) -> str:
    """Which row is not in the encoding, and which encoding it may be in."""
    try:
        with PACKED[path.suffix.lower()](path) if is_packed(path) else path.open("rb") as file:
            data = file.read()
    except (*TORN, OSError) as found:
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


class _Rows(Iterator[Line]):
    """The rows of a text, by Python's reader; `number` is that of the last line taken."""

    def __init__(self, file: TextIO, separator: str, layout: Layout) -> None:
        self.separator, self._escape, self._comment = separator, layout.escape, layout.comment
        self._before = 0
        # A byte order mark, which utf-8 or utf-16-le would keep
        first = (file.readline().removeprefix("\ufeff") for _ in range(1))
        self._read(chain(first, file))

    def _read(self, text: Iterator[str]) -> None:
        self._text = text
        self._next: str | None = None  # a line that was read ahead
        self._lines = csv.reader(
            iter(self._take, None),
            delimiter=self.separator,
            strict=True,
            escapechar=self._escape,
            skipinitialspace=self.separator == " ",  # several spaces are one separator
        )

    def _take(self) -> str | None:
        line, self._next = self._next, None
        return next(self._text, None) if line is None else line

    @property
    def number(self) -> int:
        return self._before + self._lines.line_num

    def __next__(self) -> Line:
        if self._comment is not None:  # as it is written: a quoted cell begins with its quote
            line = self._take()
            if line is not None and line.lstrip().startswith(self._comment):
                self._before += 1
                return self.number, COMMENT
            self._next = line
        cells = next(self._lines)
        return self.number, cells

    def pass_over(self, count: int) -> None:
        """Count lines that were read elsewhere."""
        self._before += count

    def go_on(self, text: str, file: TextIO) -> None:
        """Take the lines of `text`, then those that the file has left."""
        self._before = self.number
        begun = StringIO(text + file.readline(), newline="")  # its last line may be incomplete
        self._read(chain(begun, file))


def _parts(
    file: TextIO, rows: _Rows, head: Head, layout: Layout
) -> Iterator[tuple[_Columns, NDArray[np.int64]]]:
    """Columns and row numbers, a part of the file at a time."""
    # Loaded when used
    import pyarrow as pa

    for text, after, is_last in _blocks(file, hold=layout.skip_footer > 0, begun=rows.number > 0):
        found = None
        if text and not (is_last and layout.skip_footer):
            found = _by_pyarrow(text, rows.separator, head, layout)
        if found is None:
            rows.go_on(text + after, file)
            break
        columns, numbers, num_lines = found
        yield columns, numbers + rows.number
        rows.pass_over(num_lines)
    left = rows_below(head, layout, rows)
    while kept := list(islice(left, _ROWS_AT_ONCE)):
        listed = by_column(head, [cells for _, cells in kept])
        packed = {name: pa.chunked_array([cells], pa.string()) for name, cells in listed.items()}
        yield packed, np.array([row for row, _ in kept])
    yield {name: pa.chunked_array([], pa.string()) for name in head.wanted}, np.empty(0, np.int64)


def _blocks(file: TextIO, *, hold: bool, begun: bool) -> Iterator[tuple[str, str, bool]]:
    """(text, what was read after it, whether it is the last): whole rows if quotes come in pairs.
    The text is empty, and the last, where no row ends within a block.

    hold: the last text is at least as large as a block, or the whole file. begun: whether a byte
    order mark was already consumed.
    """
    held, left = "", "" if begun else file.read(1).removeprefix("\ufeff")
    while read := file.read(_BLOCK):
        left += read
        end = _end_of_rows(left)
        if not end and len(left) >= _BLOCK:
            yield "", held + left, False
            return
        block, left = left[:end], left[end:]
        if hold and block:
            held, block = block, held
        if block:
            yield block, held + left, False
    if held or left:
        yield held + left, "", True


def _end_of_rows(text: str) -> int:
    """The end of the last line that has an even number of quotes before its end."""
    end = text.rfind("\n") + 1
    quotes = text.count('"', 0, end)
    while quotes % 2:
        before = text.rfind("\n", 0, end - 1) + 1
        quotes -= text.count('"', before, end)
        end = before
    return end


def _by_pyarrow(
    text: str, separator: str, head: Head, layout: Layout
) -> tuple[_Columns, NDArray[np.int64], int] | None:
    """The columns of a block, the lines in which its rows end, and the number of its lines; None if
    Python's reader has to read it.
    """
    # Loaded when used
    import pyarrow as pa

    marks = [mark for mark in (layout.comment, layout.escape, "\0", *head.marks) if mark]
    if separator == " " or not separator.isascii() or any(mark in text for mark in marks):
        return None
    data = text.encode() if text.endswith("\n") else f"{text}\n".encode()
    ends = _ends_of_rows(data, ord(separator))
    if ends is None:
        return None
    numbers = np.flatnonzero(ends) + 1
    begun = StringIO(text[:_FIRST_ROW].lstrip("\r\n"), newline="")
    first = csv.reader(begun, delimiter=separator)
    names = list(map(str, range(len(next(first, [])))))
    if len(names) < len(head.names):
        return None
    try:
        table = _read_texts(data, separator, names, may_break=len(ends) > len(numbers))
    except pa.ArrowInvalid:  # e.g. rows of unequal lengths
        return None
    empty = _are_empty(table)
    if empty.any():
        table, numbers = table.filter(~empty), numbers[~empty]
    if len(table) != len(numbers) or not all(
        _are_empty(table.select([name])).all() for name in names[len(head.names) :]
    ):
        return None
    return (
        {name: table.column(head.names.index(name)) for name in head.wanted},
        numbers,
        len(ends),
    )


def _ends_of_rows(content: bytes, separator: int) -> NDArray[np.bool_] | None:
    """Which lines end a row, one that is not blank; None if quotes are not at the ends of cells, or
    lines end in another way than \\n and \\r\\n. `content` ends with a line.
    """
    data = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    if b"\r" in content and content.count(b"\r") != content.count(b"\r\n"):
        return None
    lengths = np.diff(ends, prepend=-1) - 1
    is_row: NDArray[np.bool_] = lengths > (data[ends - 1] == _RETURN)
    if b'"' in content:
        quotes = np.flatnonzero(data == _QUOTE)
        opening, closing = quotes[::2], quotes[1::2]
        limits = [separator, _NEWLINE, _QUOTE]
        before = np.isin(data[opening - 1], limits)
        after = np.isin(data[closing + 1], [*limits, _RETURN])
        if len(quotes) % 2 or not (before.all() and after.all()):
            return None
        is_row &= np.searchsorted(quotes, ends) % 2 == 0
    return is_row


def _read_texts(data: bytes, separator: str, names: list[str], *, may_break: bool) -> Any:
    """All cells as strings. Raises pyarrow.ArrowInvalid."""
    # Loaded when used
    import pyarrow as pa
    from pyarrow import csv as arrow

    # From pyarrow's next block on, \r\n in a quoted cell loses its \n if that begins the block:
    # https://github.com/apache/arrow/issues/51368
    block_size = len(data) + 1 if may_break and b"\r" in data else _BLOCK // 4
    return arrow.read_csv(
        pa.BufferReader(data),
        arrow.ReadOptions(column_names=names, block_size=block_size),
        arrow.ParseOptions(
            delimiter=separator,
            quote_char='"' if b'"' in data else False,
            newlines_in_values=may_break,
        ),
        arrow.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), check_utf8=False),
    )


def _are_empty(table: Any) -> NDArray[np.bool_]:
    """Which rows have only empty cells; (N,)"""
    # Loaded when used
    import pyarrow.compute as pc

    empty: NDArray[np.bool_] = np.ones(len(table), dtype=np.bool_)
    for column in table.columns:
        if not empty.any():
            break
        empty &= pc.equal(column, "").to_numpy()
    return empty


def _concat(parts: list[Any]) -> Any:
    # Loaded when used
    import pyarrow as pa

    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())


def _zstd(path: Path) -> Any:
    # Loaded when used
    import pyarrow as pa

    return pa.input_stream(str(path), compression="zstd")


PACKED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
