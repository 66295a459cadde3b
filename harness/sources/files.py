"""Finding and reading files: paths with {fields} in them, corrupt files among many, decoders that
are not installed.
"""

import importlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape, glob
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, get_args

from harness.errors import ConfigError, DataError, require_choice
from harness.sources.source import Rows, select
from harness.wording import did_you_mean, some

OnError = Literal["stop", "skip"]
Item = TypeVar("Item")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Files:
    """Files and what their paths say of them: `fields[name][i]` belongs to `paths[i]`.

    In the order of their names.
    """

    paths: list[Path]
    fields: dict[str, list[str]]

    def chosen(self, rows: Rows) -> "Files":
        """Only those at `rows`, in that order."""
        return Files(select(self.paths, rows), self.fields_at(rows))

    def fields_at(self, rows: Rows) -> dict[str, list[str]]:
        """The fields of the files at `rows`, in that order."""
        return {name: select(values, rows) for name, values in self.fields.items()}


def find_files(templates: str | Sequence[str]) -> Files:
    """The files of paths such as `data/{label}/*.wav` or `data/{label}_{speaker}_{take}.wav`: * and
    ** as everywhere, a {field} within one name.

    Several templates must have the same fields. Raises DataError for a template that no file fits
    and for a folder of a {label} that is empty.
    """
    several = [templates] if isinstance(templates, str) else list(templates)
    found: dict[Path, dict[str, str]] = {}
    for template in several:
        matches = _matches(template)
        fields = {name for values in matches.values() for name in values}
        if found and fields != set(next(iter(found.values()))):
            raise ConfigError(
                f"files: {template} has the fields {sorted(fields)}, {several[0]} has others. Give "
                "all of them the same."
            )
        found |= matches
    empty = {name for template in several for name in _folders(template)} - {
        fields.get("label") for fields in found.values()
    }
    if empty:
        raise DataError(
            f"{several[0]}: no file for {', '.join(map(repr, sorted(empty)))}, but a folder. Put "
            "samples into it, or take it away."
        )
    return files_of(found)


def files_of(fields: Mapping[Path, Mapping[str, str]]) -> Files:
    """Files (one at least) of their fields, in the order of their names."""
    paths = sorted(fields)
    return Files(paths, {name: [fields[path][name] for path in paths] for name in fields[paths[0]]})


def _matches(template: str) -> dict[Path, dict[str, str]]:
    expanded = str(Path(template).expanduser())
    names = re.findall(r"\{(\w*)\}", expanded)
    if len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
        raise ConfigError(
            f"files: {template}: each {{field}} needs a name of its own, e.g. {{label}}."
        )
    found = {path: match for path, match in _paths(expanded) if path.is_file()}
    if not found:
        begin = Path(re.split(r"[{*?]", expanded)[0] + "x").absolute().parent
        # Tells a wrong path from wrong names in it
        there = next(folder for folder in (begin, *begin.parents) if folder.is_dir())
        raise DataError(
            f"{template}: no such file (looked in {there}). Give the path of files, where * and "
            f"{{field}} stand for anything in a name."
        )
    return {path: {name: match[name] for name in names} for path, match in found.items()}


def _folders(template: str) -> set[str]:
    """The labels that have folders of their own."""
    parent = str(Path(template).expanduser().parent)
    if "{label}" not in parent or "**" in parent:
        return set()
    return {match["label"] for path, match in _paths(parent) if path.is_dir()}


def _paths(template: str) -> list[tuple[Path, re.Match[str]]]:
    """What there is of a path with * and {field} in it, with the fields' values."""
    wild = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\{\w+\}|\*\*/|\*|\?)", template)
    pattern = "".join(
        f"(?P<{piece[1:-1]}>[^/]+?)" if piece[:1] == "{" else wild.get(piece) or re.escape(piece)
        for piece in pieces
    )
    globbed = "".join(
        "*" if piece[:1] == "{" else piece if piece in wild else escape(piece) for piece in pieces
    )
    return [
        (Path(name), match)
        for name in glob(globbed, recursive=True)
        if (match := re.fullmatch(pattern, name))
    ]


def read_each(
    files: Files, read: Callable[[Path], Read], on_error: OnError
) -> tuple[Files, list[Read], list[str]]:
    """What `read` gives for each file; files it raises DataError for end all ("stop") or are left
    out ("skip") with a warning that counts them.

    Returns the files that were read, what was read, and the messages of those left out. Raises
    DataError also if none is left.
    """
    kept, values, skipped = read_all(files.paths, read, on_error, "files")
    return files.chosen(kept), values, skipped


def read_all(
    items: Sequence[Item], read: Callable[[Item], Read], on_error: OnError, what: str
) -> tuple[list[int], list[Read], list[str]]:
    """As `read_each`, for anything: the places of the items that were read, what was read, and the
    messages of those left out.
    """
    require_choice("on_error", on_error, get_args(OnError))
    kept: list[int] = []
    values: list[Read] = []
    skipped: list[str] = []
    for place, item in enumerate(items):
        try:
            values.append(read(item))
            kept.append(place)
        except DataError as error:
            if on_error == "stop":
                if len(items) == 1:
                    raise
                raise DataError(f"{error} Or leave such {what} out with on_error: skip.") from error
            skipped.append(str(error))
    if skipped:
        listed = some(skipped, separator=" ")
        message = f"{len(skipped)} of {len(items)} {what} left out: {listed}"
        if not kept:
            raise DataError(message)
        warnings.warn(message, stacklevel=4)
    return kept, values, skipped


def opened(file: Path | bytes) -> Path | BinaryIO:
    """A file, or its content, as decoders take it."""
    return file if isinstance(file, Path) else BytesIO(file)


def need(module: str, extra: str, purpose: str) -> Any:
    """An optional module. Raises DataError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{purpose} needs {module}, which is not there ({error}). Install it: pip install "
            f"'fermarsi[{extra}]'."
        ) from error


def class_names(classes: Sequence[Any] | None, labels: Sequence[str], where: str) -> list[str]:
    """The classes in the order of their numbers: as given, or those found, by name.

    Raises DataError for one that is unknown or has no sample.
    """
    found = set(labels)
    if classes is None:
        return sorted(found)
    given = [str(name) for name in classes]
    if len(set(given)) < len(given):
        raise ConfigError(f"classes: a name comes twice in {given}.")
    if found - set(given):
        name = min(found - set(given))
        raise DataError(
            f"{where}: {name!r} is none of the classes {', '.join(given)}."
            f"{did_you_mean(name, given, quoted=True)} Add it to classes, or leave it out."
        )
    if set(given) - found:
        raise DataError(
            f"{where}: no sample of {', '.join(sorted(set(given) - found))}. Add some, or take the "
            "class away."
        )
    return given
