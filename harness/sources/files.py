"""Reading files one by one: corrupt ones, disks that fail, missing decoders."""

import errno
import importlib
import time
import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, get_args

from harness.data.written import text_of
from harness.errors import ConfigError, DataError, require_choice
from harness.sources.listing import Files, refuse_missing
from harness.wording import did_you_mean, some

OnError = Literal["stop", "skip"]
Item = TypeVar("Item")
Read = TypeVar("Read")
_CHUNK_BYTES = 2**20
_PAUSES_S = (0.0, 1.0, 4.0)
# What disks, networks and processes out of memory or of open files have, and paths have not
_FAULTS = {
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "EAGAIN", "EINTR", "EBUSY", "ENOMEM", "EMFILE", "ENFILE", "ENXIO"),
        *("ENODEV", "ETIMEDOUT", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "ENOTCONN"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO"),
    )
    if hasattr(errno, name)
}


def read_each(
    files: Files, read: Callable[[Path], Read], on_error: OnError
) -> tuple[Files, list[Read], list[str]]:
    """Read each file; one that raises DataError ends the reading ("stop") or is skipped ("skip"),
    with one warning for all. One whose disk or network fails is tried again, and never skipped.

    Returns the files that were read, what was read, and a message for each skipped file. Raises
    DataError also if every file was skipped.
    """
    kept, values, skipped = read_all(files.paths, read, on_error, "files")
    return files.select_rows(kept), values, skipped


def read_all(
    items: Sequence[Item],
    read: Callable[[Item], Read],
    on_error: OnError,
    what: str,
    *,
    tell: bool = True,
) -> tuple[list[int], list[Read], list[str]]:
    """As `read_each`, for items of any kind: the indices of the items that were read, what was
    read, and a message for each skipped item. After an error `read` may be called again.

    Without `tell` it does not warn: `tell_skipped` does, for readings that may be mapped later.
    """
    require_choice("on_error", on_error, get_args(OnError))
    kept: list[int] = []
    values: list[Read] = []
    skipped: list[str] = []
    for index, item in enumerate(items):
        try:
            if isinstance(item, Path):
                refuse_missing(item)
            values.append(_read_patiently(item, read, must_know=on_error == "skip"))
            kept.append(index)
        except _FaultError as error:
            raise DataError(str(error)) from error
        except DataError as error:
            if on_error == "stop":
                if len(items) == 1:
                    raise
                raise DataError(f"{error} Or skip such {what} with on_error: skip.") from error
            skipped.append(str(error))
    if skipped and not kept:
        raise DataError(_skipped(skipped, len(items), what))
    if tell:
        tell_skipped(skipped, len(items), what)
    return kept, values, skipped


def tell_skipped(skipped: Sequence[str], count: int, what: str = "files") -> None:
    """Warn of those items among `count`, by their messages, that were skipped."""
    if skipped:
        warnings.warn(_skipped(skipped, count, what), stacklevel=5)


def _skipped(skipped: Sequence[str], count: int, what: str) -> str:
    return f"{len(skipped)} of {count} {what} skipped: {some(skipped, separator=' ')}"


class _FaultError(DataError):
    """A disk or a network that fails."""


def _read_patiently(item: Item, read: Callable[[Item], Read], *, must_know: bool) -> Read:
    """What `read` gives, if need be after some seconds. Raises DataError for a file that is wrong
    in itself, _FaultError if its disk or network keeps failing. With `must_know` it also finds
    faults that a decoder did not tell, which reads the file once more.
    """
    try:
        return read(item)
    except DataError as error:
        if _fault_in(error) is None and not must_know:
            raise
    for pause_s in _PAUSES_S:
        time.sleep(pause_s)
        try:
            fault = _fault_of(item) if isinstance(item, Path) else None
            if fault is None:
                return read(item)
        except DataError as again:
            fault = _fault_in(again)
            if fault is None:
                raise
    raise _FaultError(
        f"{item}: cannot be read now: {fault}. The disk or the network fails, not the file, so it "
        "is not skipped. Try again when they are back."
    )


def _fault_of(path: Path) -> OSError | None:
    """What keeps a file from being read to its end, unless it is the file itself."""
    try:
        with path.open("rb") as file:
            while file.read(_CHUNK_BYTES):
                pass
    except OSError as error:
        return error if error.errno in _FAULTS else None
    return None


def _fault_in(error: BaseException | None) -> OSError | None:
    """The error of a disk or a network that led to an error."""
    while error is not None:
        # Ffmpeg has EIO for damaged films too
        is_plain = type(error).__module__ == "builtins"
        if isinstance(error, OSError) and is_plain and error.errno in _FAULTS:
            return error
        error = error.__cause__
    return None


def decodable(file: Path | bytes) -> Path | BinaryIO:
    """A file, or its content, in the form that decoders accept."""
    return file if isinstance(file, Path) else BytesIO(file)


def need(module: str, extra: str, purpose: str) -> Any:
    """Import an optional module. Raises a DataError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{purpose} needs {module}, which is not installed ({error}). Install it: pip install "
            f"'fermarsi[{extra}]'."
        ) from error


def class_names(classes: Sequence[Any] | None, labels: Sequence[str], where: str) -> list[str]:
    """The classes in the order of their numbers: as given, or those found, sorted by name.

    Raises DataError for a class that is unknown or has no samples.
    """
    found = set(labels)
    if classes is None:
        return sorted(found)
    given = [text_of(name) for name in classes]
    if len(set(given)) < len(given):
        raise ConfigError(f"classes: {given} names a class twice. Remove one.")
    if found - set(given):
        name = min(found - set(given))
        raise DataError(
            f"{where}: {name!r} is not one of the classes {', '.join(given)}."
            f"{did_you_mean(name, given, quoted=True)} Add it to classes, or remove its samples."
        )
    if set(given) - found:
        raise DataError(
            f"{where}: no samples of {', '.join(sorted(set(given) - found))}. Add some, or remove "
            "the class."
        )
    return given
