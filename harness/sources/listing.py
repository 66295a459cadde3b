"""Lists of files by path patterns with {fields}, or held in an entry of a store: names are texts,
so that millions of them cost little before they are opened.
"""

import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from errno import EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR
from itertools import chain, product
from os.path import exists, isdir, isfile, islink, join, realpath
from pathlib import Path
from typing import Any, overload
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from harness.data.texts import Taken, Texts
from harness.data.written import text_of
from harness.errors import ConfigError, DataError
from harness.sources.source import Rows
from harness.sources.split import Part, Rule, rows_of
from harness.wording import some

_FIELD = re.compile(r"\{(\w*)\}")
_WILD = re.compile(r"[{*?]")
_TOKENS = re.compile(r"(\{\w+\}|\*|\?)")
_REGEX = {"*": ".*", "?": "."}
_ABSENT = (ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG)


class Paths(Sequence[Path]):
    """Paths, made when they are asked for; equal to any other sequence of the same ones.

    `rows`: those of `names` that count, in their order; all without it.
    """

    def __init__(self, names: Sequence[str], rows: NDArray[np.int64] | None = None) -> None:
        self._names, self._rows = names, rows

    def name(self, index: int) -> str:
        """A path as text."""
        return self._names[index if self._rows is None else int(self._rows[index])]

    def take(self, rows: Rows) -> "Paths":
        """Those at `rows`, in that order."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Paths(self._names, chosen if self._rows is None else self._rows[chosen])

    def texts(self) -> Texts:
        """The paths as texts; each is there once."""
        every = np.arange(len(self._names), dtype=np.int32)
        return Texts(self._names, every if self._rows is None else every[self._rows])

    def __len__(self) -> int:
        return len(self._names) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> "Paths": ...
    def __getitem__(self, index: int | slice) -> "Path | Paths":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return Path(self.name(range(len(self))[index]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment] # as a list has none

    def __repr__(self) -> str:
        return repr(list(self))


class Files:
    """Files, sorted by name, and the fields of their paths: `fields[name][i]` belongs to
    `paths[i]`.
    """

    def __init__(
        self, paths: Paths, fields: Mapping[str, Any], *, may_dangle: bool = False
    ) -> None:
        self.paths, self.fields = paths, fields
        self.may_dangle = may_dangle  # whether a pattern found links that lead nowhere

    def present(self) -> list[Path]:
        """Those that are there; others are reported or skipped when files are read."""
        return [path for path in self.paths if exists(path)]

    def select_rows(self, rows: Rows) -> "Files":
        """Only those at `rows`, in that order."""
        return Files(self.paths.take(rows), self.fields_at(rows), may_dangle=self.may_dangle)

    def part(self, part: Part, rule: Rule | None) -> "Files":
        """Those in a part. Raises ConfigError and DataError."""
        if part == "all":
            return self
        return self.select_rows(rows_of(part, rule, self.fields, len(self.paths)))

    def fields_at(self, rows: Rows) -> Mapping[str, Sequence[str]]:
        """The fields of the files at `rows`, in that order."""
        return Taken(self.fields, np.asarray(rows, dtype=np.int64))


def find_files(templates: str | Sequence[str], *, tell: bool = True) -> Files:
    """The files of paths such as `data/{label}/*.wav` or `data/{label}_{speaker}_{take}.wav`: * and
    ** as in a shell, {jpg,jpeg} for one of these words, a {field} within one file or folder name.

    Several templates must have the same fields. With `tell`, warns of files beside the
    matches of a pattern whose ending is only spelled differently. Raises
    DataError for a template that matches no file and for an empty {label} folder.
    """
    given = [templates] if isinstance(templates, str) else list(templates)
    folders = _Folders()
    several = [one for template in given for one in _alternatives(template, folders)]
    found = [_matches(template, folders) for template in several]
    for template, matches in zip(several, found, strict=True):
        if matches.fields.keys() != found[0].fields.keys():
            raise ConfigError(
                f"files: {template} has the fields {sorted(matches.fields)}, which differ from "
                f"those of {several[0]}. Use the same fields in all."
            )
    if tell:
        if folders.passed:
            told = some(list(map(str, folders.passed.values())), separator=" ")
            warnings.warn(f"{several[0]}: folders were passed over: {told}", stacklevel=2)
        _warn_others(several, [one.names for one in found], folders)
    is_sorted = len(found) == 1 and "**" not in several[0] and several[0].isascii()
    names = list(chain.from_iterable(one.names for one in found))
    fields = {
        name: Texts.concat([texts for one in found for texts in one.fields[name]]).compact()
        for name in found[0].fields
    }
    empty = {name for template in several for name in _labels(template, folders)} - {
        *(fields["label"].words if "label" in fields else ())
    }
    if empty:
        raise DataError(
            f"{several[0]}: the folder of {', '.join(map(repr, sorted(empty)))} holds no files. "
            "Add samples, or remove the folder."
        )
    files = Files(Paths(names), fields, may_dangle=folders.dangling)
    return files if is_sorted else files.select_rows(_sorted_once(names))


def _sorted_once(names: Sequence[str]) -> NDArray[np.int64]:
    """names (N,) -> (M,): each name once, the last one, as paths are ordered."""
    row_of = {name: row for row, name in enumerate(names)}
    ordered = sorted(row_of, key=lambda name: name.replace("/", "\0"))
    return np.array([row_of[name] for name in ordered], dtype=np.int64)


class _Folders:
    """What folders hold, each listed once."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, bool]] = {}
        self.dangling, self.num_files = False, 0
        self.passed: dict[str, DataError] = {}  # folders that ** left out

    def entries(self, folder: str) -> dict[str, bool]:
        """{name: whether it is a file}; none of a folder that is not there. Raises DataError for
        one that cannot be listed.
        """
        if folder not in self._found:
            try:
                with os.scandir(folder or ".") as found:
                    self._found[folder] = {one.name: _is_file(one) for one in found}
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise DataError(
                        f"{folder}: cannot be listed: {error.strerror}. Make it readable."
                    ) from error
                self._found[folder] = {}
            self.num_files += sum(self._found[folder].values())
        return self._found[folder]

    def below(self, folder: str) -> Iterator[str]:
        """A folder and all in it, but hidden ones, links back to those above, and those that this
        user may not list.
        """
        yield folder
        for name, is_file in self.entries(folder).items():
            path = join(folder, name)
            if is_file or name.startswith(".") or not isdir(path):
                continue
            if islink(path) and f"{realpath(folder)}/".startswith(f"{realpath(path)}/"):
                continue
            if self._may_list(path):
                yield from self.below(path)

    def _may_list(self, folder: str) -> bool:
        try:
            self.entries(folder)
        except DataError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            self.passed[folder] = error
            return False
        return True


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file or leads to one; False for a link that leads nowhere."""
    try:
        return entry.is_file()
    except OSError as error:
        if error.errno in (*_ABSENT, EACCES) and entry.is_symlink():
            return False
        raise


@dataclass
class _Matches:
    """Names of files, those of each folder sorted, and their fields by folder."""

    names: list[str] = field(default_factory=list)
    fields: dict[str, list[Texts]] = field(default_factory=dict)


def _matches(template: str, folders: _Folders) -> _Matches:
    expanded = str(Path(template).expanduser())
    fields = _FIELD.findall(expanded)
    if len(set(fields)) < len(fields) or not all(name.isidentifier() for name in fields):
        raise ConfigError(f"files: {template}: each {{field}} needs a unique name, e.g. {{label}}.")
    found = _Matches([], {name: [] for name in fields})
    # Names are in one of two normal forms, by the system that wrote them
    forms = dict.fromkeys([expanded, *(normalize(form, expanded) for form in ("NFC", "NFD"))])
    for form in forms:
        for folder, names, values, of_folder in _walk(form, folders):
            begin = folder if folder in ("", "/") else f"{folder}/"
            found.names += [begin + name for name in names]
            all_one = np.zeros(len(names), dtype=np.int32)
            columns = [Texts([text_of(word)], all_one) for word in of_folder]
            columns += [Texts.of(list(map(text_of, words))) for words in zip(*values, strict=True)]
            for name, column in zip(fields, columns, strict=bool(names)):
                found.fields[name].append(column)
    if not found.names:
        if folders.passed:
            raise next(iter(folders.passed.values()))
        above = Path(re.split(r"[{*?]", expanded)[0] + "x").absolute().parents
        # The deepest folder that exists
        there = next(folder for folder in above if folder.is_dir())
        raise DataError(
            f"{template}: no such file (looked in {there}).{_beside(expanded, folders)} Give a "
            f"path in which * and {{field}} stand for any text in a name."
        )
    return found


_Found = tuple[str, list[str], list[tuple[str, ...]], tuple[str, ...]]


def _walk(
    template: str, folders: _Folders, *, for_files: bool = True, unless: str | None = None
) -> Iterator[_Found]:
    """Where names of files, or else of folders, match a template: the folder, the names, sorted,
    the values of fields in each of them if it has any, and of those in the folder's name. Names
    that end in `unless` are left out.
    """

    def walk(folder: str, steps: Sequence[str], values: tuple[str, ...]) -> Iterator[_Found]:
        step, *rest = steps
        if not _WILD.search(step):
            path = join(folder, step)
            if rest:
                yield from walk(path, rest, values)
            elif (isfile(path) or is_dangling(path)) if for_files else isdir(path):
                yield folder, [step], [], values
            return
        if rest and step == "**":
            for below in folders.below(folder):
                yield from walk(below, rest, values)
            return
        entries = folders.entries(folder)
        names, own = _matching(step, entries, None if rest else unless)
        if rest:
            for name, of in zip(names, own or [()] * len(names), strict=True):
                if not entries[name] and isdir(path := join(folder, name)):
                    yield from walk(path, rest, (*values, *of))
            return
        if not for_files or not all(map(entries.__getitem__, names)):
            others = [name for name in names if not entries[name]]
            is_kind = is_dangling if for_files else isdir
            wanted = {name for name in others if is_kind(join(folder, name))}
            folders.dangling = folders.dangling or (for_files and bool(wanted))
            wanted |= {name for name in names if for_files and entries[name]}
            own = [of for name, of in zip(names, own, strict=False) if name in wanted]
            names = [name for name in names if name in wanted]
        yield folder, names, own, values

    is_absolute = template.startswith("/")
    yield from walk("/" if is_absolute else "", template.removeprefix("/").split("/"), ())


def _matching(
    step: str, names: Collection[str], unless: str | None
) -> tuple[list[str], list[tuple[str, ...]]]:
    """The names that match, sorted, and the values of fields in each of them if it has any."""
    if unless is not None:
        names = [name for name in names if not name.endswith(unless)]
    pieces = _TOKENS.split(step)
    if len(pieces) == 3 and pieces[:2] == ["", "*"]:  # by far the most common one
        end = pieces[2]
        return sorted([name for name in names if name.endswith(end) and name[0] != "."]), []
    if not step.startswith("."):
        names = [name for name in names if not name.startswith(".")]
    regex = "".join(
        "(.+?)" if piece[:1] == "{" else _REGEX.get(piece) or re.escape(piece) for piece in pieces
    )
    match = re.compile(regex, re.DOTALL).fullmatch
    found = [(name, of) for name in sorted(names) if (of := match(name))]
    fields = [of.groups() for _, of in found] if "{" in step else []
    return [name for name, _ in found], fields


def _labels(template: str, folders: _Folders) -> set[str]:
    """The labels that have their own folders."""
    parent = str(Path(template).expanduser().parent)
    if "{label}" not in parent or "**" in parent:
        return set()
    at = _FIELD.findall(parent).index("label")
    found = set()
    for _, names, values, of_folder in _walk(parent, folders, for_files=False):
        found |= {text_of((*of_folder, *of)[at]) for of in values or [()] * bool(names)}
    return found


def _alternatives(template: str, folders: _Folders) -> list[str]:
    """A template for each choice of words in {jpg,jpeg}; those that match nothing are left out if
    another does.
    """
    pieces = re.split(r"\{([^{}/]*,[^{}/]*)\}", template)
    words = [piece.split(",") if at % 2 else [piece] for at, piece in enumerate(pieces)]
    several = ["".join(chosen) for chosen in product(*words)]
    if len(several) == 1:
        return several

    def has_any(one: str) -> bool:
        expanded = str(Path(one).expanduser())
        return any(names for _, names, *_ in _walk(expanded, folders))

    return list(filter(has_any, several)) or several


# Endings that mean the same
_ALIKE = (("jpg", "jpeg", "jpe"), ("tif", "tiff"), ("aif", "aiff"), ("mpg", "mpeg"))


def _spellings(ending: str) -> tuple[str, ...]:
    return next((words for words in _ALIKE if ending in words), (ending,))


def _others(template: str, folders: _Folders) -> dict[str, list[str]]:
    """{ending: paths} where a template has another ending."""
    stem, dot, ending = template.rpartition(".")
    if not dot or not ending.isalnum():
        return {}
    others: dict[str, list[str]] = {}
    for folder, names, *_ in _walk(f"{stem}.*", folders, unless=f".{ending}"):
        for name in names:
            if suffix := Path(name).suffix:
                others.setdefault(suffix[1:], []).append(join(folder, name))
    return others


def _warn_others(
    templates: Sequence[str], found: Sequence[Sequence[str]], folders: _Folders
) -> None:
    is_one = len(found) == 1 and not folders.dangling
    if is_one and len(found[0]) == folders.num_files == len(set(found[0])):
        return  # nothing is left
    # A path without wildcards is meant literally; looking beside each of many would take forever
    for template in (one for one in templates if _WILD.search(one)):
        ending = template.rpartition(".")[2]
        others = {
            other: paths
            for other, paths in _others(str(Path(template).expanduser()), folders).items()
            if other.lower() in _spellings(ending.lower())
        }
        read = {name for names in found for name in names} if others else set()
        others = {
            other: left
            for other, paths in others.items()
            if (left := [path for path in paths if path not in read and isfile(path)])
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


def _beside(template: str, folders: _Folders) -> str:
    counts = {
        ending: sum(map(isfile, paths)) for ending, paths in _others(template, folders).items()
    }
    told = [f"{count} .{other}" for other, count in sorted(counts.items()) if count]
    return f" There are {some(told)}." if told else ""


def is_dangling(path: Path | str) -> bool:
    """Whether a path is a link that leads nowhere."""
    return islink(path) and not exists(path)


def refuse_missing(path: Path) -> None:
    """Raise DataError for a file that is not there, or a link that leads nowhere."""
    if exists(path):
        return
    if islink(path):
        raise DataError(
            f"{path}: a link to {path.readlink()}, where there is no file that can be read. Bring "
            "the file back, or remove the link."
        )
    raise DataError(
        f"{path}: there is no such file. Bring it back, or correct or remove its row in the table "
        "that lists it; names there are relative to the table, with / between folders."
    )
