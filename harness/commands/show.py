"""How commands print results: as JSON for programs, as text and tables for people."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from harness.errors import ConfigError
from harness.wording import printable


class Result(Protocol):
    """The result of a command."""

    def to_json(self) -> Any:
        """For programs."""

    def page(self) -> Iterator[str | Table]:
        """For people, from top to bottom."""


class Row(Protocol):
    """One of several results of a command."""

    def to_json(self) -> Any:
        """For programs."""

    def cells(self) -> Sequence[str]:
        """For people, one text per column."""


@dataclass(frozen=True)
class Listing:
    """A table with a title."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]

    def to_json(self) -> list[Any]:
        return [row.to_json() for row in self.rows]

    def page(self) -> Iterator[str | Table]:
        table = Table(*self.columns)
        for row in self.rows:
            table.add_row(*map(printable, row.cells()))
        yield self.title
        yield table


@contextmanager
def write_errors(option: str, path: Path) -> Iterator[None]:
    """Turns a failure to write the file of an option into a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{option}: {path}: {error.strerror or error}. Give a file in an existing, writable "
            "directory."
        ) from error


def say(text: str) -> None:
    """Print a text on standard output, escaped for terminals: its content may be anybody's."""
    print(printable(text))


def show(result: Result, as_json: bool, width: int | None = None) -> None:
    """Print it on standard output; `width` of tables in characters, by default the terminal's."""
    if as_json:
        print(json.dumps(result.to_json()))
        return
    for block in result.page():
        if isinstance(block, str):
            say(block)
        else:
            for column in block.columns:
                column.overflow = "fold"  # names and commands are to be told apart, and copied
            Console(markup=False, width=width).print(block)
