"""Finding and reading files: path patterns with {fields}, corrupt files, missing decoders."""

import errno
import importlib
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape, glob
from io import BytesIO
from itertools import product
from os.path import exists, isdir, isfile, islink
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, get_args
from unicodedata import normalize

from harness.data.written import text_of
from harness.errors import ConfigError, DataError, require_choice
from harness.sources.source import Rows, select
from harness.wording import did_you_mean, some

OnError = Literal["stop", "skip"]
Item = TypeVar("Item")
Read = TypeVar("Read")
Listing = dict[str, list[str]]  # what glob found for each of its patterns
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
_WILD = re.compile(r"[{*?]")


@dataclass(frozen=True)
class Files:
    """Files, sorted by name, and the fields of their paths: `fields[name][i]` belongs to
    `paths[i]`.
    """

    paths: list[Path]
    fields: dict[str, list[str]]

    def present(self) -> list[Path]:
        """All but dangling links, which are reported or skipped when files are read."""
        return [path for path in self.paths if not is_dangling(path)]

    def select_rows(self, rows: Rows) -> "Files":
        """Only those at `rows`, in that order."""
        return Files(select(self.paths, rows), self.fields_at(rows))

    def fields_at(self, rows: Rows) -> dict[str, list[str]]:
        """The fields of the files at `rows`, in that order."""
        return {name: select(values, rows) for name, values in self.fields.items()}


def find_files(templates: str | Sequence[str], *, tell: bool = True) -> Files:
    """The files of paths such as `data/{label}/*.wav` or `data/{label}_{speaker}_{take}.wav`: * and
    ** as in a shell, {jpg,jpeg} for one of these words, a {field} within one file or folder name.

    Several templates must have the same fields. With `tell`, warns of files beside the
    matches of a pattern whose ending is only spelled differently. Raises
    DataError for a template that matches no file and for an empty {label} folder.
    """
    given = [templates] if isinstance(templates, str) else list(templates)
    listing: Listing = {}
    several = [one for template in given for one in _alternatives(template, listing)]
    found: dict[Path, dict[str, str]] = {}
    for template in several:
        matches = _matches(template, listing)
        fields = {name for values in matches.values() for name in values}
        if found and fields != set(next(iter(found.values()))):
            raise ConfigError(
                f"files: {template} has the fields {sorted(fields)}, which differ from those of "
                f"{several[0]}. Use the same fields in all."
            )
        found |= matches
    empty = {name for template in several for name in _folders(template, listing)} - {
        fields.get("label") for fields in found.values()
    }
    if empty:
        raise DataError(
            f"{several[0]}: the folder of {', '.join(map(repr, sorted(empty)))} holds no files. "
            "Add samples, or remove the folder."
        )
    if tell:
        _warn_others(several, found, listing)
    return files_of(found)


def files_of(fields: Mapping[Path, Mapping[str, str]]) -> Files:
    """One file or more with their fields, sorted by name."""
    paths = sorted(fields, key=lambda path: path.parts)  # as paths are ordered, many times faster
    return Files(paths, {name: [fields[path][name] for path in paths] for name in fields[paths[0]]})


def _matches(template: str, listing: Listing) -> dict[Path, dict[str, str]]:
    expanded = str(Path(template).expanduser())
    names = re.findall(r"\{(\w*)\}", expanded)
    if len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
        raise ConfigError(f"files: {template}: each {{field}} needs a unique name, e.g. {{label}}.")
    # Names are in one of two normal forms, by the system that wrote them
    forms = dict.fromkeys([expanded, *(normalize(form, expanded) for form in ("NFC", "NFD"))])
    found = {
        Path(name): match
        for form in forms
        for name, match in _found(form, listing)
        if isfile(name) or is_dangling(Path(name))
    }
    if not found:
        begin = Path(re.split(r"[{*?]", expanded)[0] + "x").absolute().parent
        # The deepest folder that exists
        there = next(folder for folder in (begin, *begin.parents) if folder.is_dir())
        raise DataError(
            f"{template}: no such file (looked in {there}).{_beside(expanded, listing)} Give a "
            f"path in which * and {{field}} stand for any text in a name."
        )
    return {path: {name: text_of(match[name]) for name in names} for path, match in found.items()}


def _alternatives(template: str, listing: Listing) -> list[str]:
    """A template for each choice of words in {jpg,jpeg}; those that match nothing are left out if
    another does.
    """
    pieces = re.split(r"\{([^{}/]*,[^{}/]*)\}", template)
    words = [piece.split(",") if at % 2 else [piece] for at, piece in enumerate(pieces)]
    several = ["".join(chosen) for chosen in product(*words)]
    if len(several) == 1:
        return several
    return [one for one in several if _found(str(Path(one).expanduser()), listing)] or several


# Endings that mean the same
_ALIKE = (("jpg", "jpeg", "jpe"), ("tif", "tiff"), ("aif", "aiff"), ("mpg", "mpeg"))


def _spellings(ending: str) -> tuple[str, ...]:
    return next((words for words in _ALIKE if ending in words), (ending,))


def _others(template: str, listing: Listing) -> dict[str, list[Path]]:
    """{ending: paths} where a template has another ending."""
    open_ended = _open_ended(template)
    if open_ended is None:
        return {}
    pattern, globbed = _patterns(open_ended)
    own = f".{template.rpartition('.')[2]}"
    others: dict[str, list[Path]] = {}
    for name in _glob(globbed, listing):
        if not name.endswith(own) and re.fullmatch(pattern, name) and (path := Path(name)).suffix:
            others.setdefault(path.suffix[1:], []).append(path)
    return others


def _warn_others(templates: Sequence[str], found: Mapping[Path, Any], listing: Listing) -> None:
    # A path without wildcards is meant literally; looking beside each of many would take forever
    for template in (one for one in templates if _WILD.search(one)):
        ending = template.rpartition(".")[2]
        others = {
            other: left
            for other, paths in _others(str(Path(template).expanduser()), listing).items()
            if other.lower() in _spellings(ending.lower())
            and (left := [path for path in paths if path not in found and path.is_file()])
        }
        if others:
            count = sum(map(len, others.values()))
            first = next(iter(others.values()))[0]
            stem = template.removesuffix(ending)
            warnings.warn(
                f"{template}: {count} files beside it end in .{', .'.join(sorted(others))} and are "
                f"not read, e.g. {first}. To read them: "
                f"{stem}{{{','.join([ending, *sorted(others)])}}}.",
                stacklevel=3,
            )


def _beside(template: str, listing: Listing) -> str:
    counts = {
        ending: sum(path.is_file() for path in paths)
        for ending, paths in _others(template, listing).items()
    }
    told = [f"{count} .{other}" for other, count in sorted(counts.items()) if count]
    return f" There are {some(told)}." if told else ""


def is_dangling(path: Path) -> bool:
    """Whether a path is a link that leads nowhere."""
    return islink(path) and not exists(path)


def refuse_dangling(path: Path) -> None:
    """Raise DataError for a link that leads nowhere."""
    if is_dangling(path):
        raise DataError(
            f"{path}: a link to {path.readlink()}, where there is no file. Bring the file back, or "
            "remove the link."
        )


def _folders(template: str, listing: Listing) -> set[str]:
    """The labels that have their own folders."""
    parent = str(Path(template).expanduser().parent)
    if "{label}" not in parent or "**" in parent:
        return set()
    return {text_of(match["label"]) for name, match in _found(parent, listing) if isdir(name)}


def _open_ended(template: str) -> str | None:
    """A template with any ending in place of its own; None if it has none."""
    stem, dot, ending = template.rpartition(".")
    return f"{stem}.*" if dot and ending.isalnum() else None


def _found(template: str, listing: Listing) -> list[tuple[str, re.Match[str]]]:
    """The paths that match a template, with the values of its fields."""
    pattern, globbed = _patterns(template)
    # Folders are listed once for all endings
    open_ended = _open_ended(template)
    if open_ended is not None and _WILD.search(open_ended.removesuffix("*")):
        globbed = _patterns(open_ended)[1]
    matches = re.compile(pattern).fullmatch
    return [(name, match) for name in _glob(globbed, listing) if (match := matches(name))]


def _glob(globbed: str, listing: Listing) -> list[str]:
    if globbed not in listing:
        listing[globbed] = glob(globbed, recursive=True)
    return listing[globbed]


def _patterns(template: str) -> tuple[str, str]:
    """A template as a regular expression, and as a pattern for glob."""
    wild = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\{\w+\}|\*\*/|\*|\?)", template)
    pattern = "".join(
        f"(?P<{piece[1:-1]}>[^/]+?)" if piece[:1] == "{" else wild.get(piece) or re.escape(piece)
        for piece in pieces
    )
    globbed = "".join(
        "*" if piece[:1] == "{" else piece if piece in wild else escape(piece) for piece in pieces
    )
    return pattern, globbed


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
    items: Sequence[Item], read: Callable[[Item], Read], on_error: OnError, what: str
) -> tuple[list[int], list[Read], list[str]]:
    """As `read_each`, for items of any kind: the indices of the items that were read, what was
    read, and a message for each skipped item. After an error `read` may be called again.
    """
    require_choice("on_error", on_error, get_args(OnError))
    kept: list[int] = []
    values: list[Read] = []
    skipped: list[str] = []
    for index, item in enumerate(items):
        try:
            if isinstance(item, Path):
                refuse_dangling(item)
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
    if skipped:
        listed = some(skipped, separator=" ")
        message = f"{len(skipped)} of {len(items)} {what} skipped: {listed}"
        if not kept:
            raise DataError(message)
        warnings.warn(message, stacklevel=4)
    return kept, values, skipped


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
