"""Columns of pyarrow, from Parquet and JSON lines, as cells."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, DataError
from harness.sources.dates import check_timezone


def flattened(table: Any) -> Any:
    """A table with the fields x, y of a column b as columns b.x, b.y."""
    # Loaded when used
    import pyarrow as pa

    while any(pa.types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    return table


def cells_of(path: Path, name: str, column: Any, first_row: int) -> Any:
    """The cells of a column, as `Cells` takes them. Raises DataError with row and column."""
    # Loaded when used
    import pyarrow as pa

    if _is_text(column.type):
        with suppress(pa.ArrowInvalid):  # bytes that are not text are reported when used
            return column.cast(pa.string()).fill_null("")
    # A null in floats becomes NaN
    plain = pa.types.is_floating(column.type) or (
        pa.types.is_integer(column.type) and column.null_count == 0
    )
    return column.to_numpy() if plain else _as_objects(path, name, column, first_row)


def names_of_leaves(fields: Any, within: str = "") -> list[str]:
    """The names of the columns of a schema; the fields of a struct b are called b.x, b.y.z."""
    # Loaded when used
    import pyarrow as pa

    names: list[str] = []
    for field in fields:
        name = f"{within}{field.name}"
        nested = pa.types.is_struct(field.type)
        names += names_of_leaves(field.type, f"{name}.") if nested else [name]
    return names


def _is_text(kind: Any) -> bool:
    """Whether a column holds strings, or bytes, as Impala and others write text."""
    # Loaded when used
    import pyarrow.types as of

    if of.is_dictionary(kind):
        return _is_text(kind.value_type)
    bytes_or_text = (of.is_string, of.is_large_string, of.is_string_view, of.is_binary)
    return any(
        check(kind) for check in (*bytes_or_text, of.is_large_binary, of.is_fixed_size_binary)
    )


def _as_objects(path: Path, name: str, column: Any, first_row: int) -> list[Any]:
    # Loaded when used
    import pyarrow as pa

    if pa.types.is_time64(column.type):  # Python's times would lose nanoseconds
        try:
            column = column.cast(pa.time64("us"))
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{path}: column {name!r}: times of day are read to the microsecond ({error}). "
                "Store them as integers, or do not read the column."
            ) from error
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        for row, cell in enumerate(column, start=first_row):
            try:
                cell.as_py()
            except (OverflowError, ValueError) as error:
                raise DataError(
                    f"{path}: row {row}, column {name!r}: {_why_unread(cell, error)}. Correct it, "
                    "or do not read the column."
                ) from error
        raise


def _why_unread(cell: Any, error: Exception) -> str:
    zone = getattr(cell.type, "tz", None)
    try:
        check_timezone(zone if zone and zone[0] not in "+-" else None)
    except ConfigError:
        return f"the time zone {zone!r} is not known"
    return f"{error} (a date before the year 1 or after 9999?)"


def widened(path: Path, fine: Any, coarse: Any) -> Any:
    """A table whose dates of 96 bits were read in nanoseconds, which silently leave their range
    before 1677 and after 2262; in those columns what was read in microseconds. Raises DataError
    for a column that needs both.
    """
    # Loaded when used
    import pyarrow as pa
    import pyarrow.compute as pc

    for number, name in enumerate(fine.column_names):
        exact, wide = fine.column(number), coarse.column(number)
        if exact.type == wide.type or not pa.types.is_timestamp(exact.type):
            continue
        nanoseconds, microseconds = exact.cast(pa.int64()), wide.cast(pa.int64())
        rounded = pc.divide(nanoseconds, 1000)
        is_near = pc.less_equal(pc.abs(pc.subtract(rounded, microseconds)), 1)
        if pc.all(is_near).as_py() in (True, None):
            continue
        lost = pc.and_(is_near, pc.not_equal(pc.multiply(rounded, 1000), nanoseconds))
        if pc.any(lost).as_py():
            raise DataError(
                f"{path}: column {name!r}: dates before 1677 or after 2262 beside nanoseconds. "
                "Store them as text, or do not read the column."
            )
        fine = fine.set_column(number, name, wide)
    return fine
