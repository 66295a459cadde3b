"""How commands print what they found: as JSON for programs, as texts and tables for people."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from harness.wording import printable


class Result(Protocol):
    """What a command found."""

    def to_json(self) -> Any:
        """For programs."""

    def page(self) -> Iterator[str | Table]:
        """For people, from the top down."""


class Row(Protocol):
    """One of several things that a command found."""

    def to_json(self) -> Any:
        """For programs."""

    def cells(self) -> Sequence[str]:
        """For people, a text a column."""


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


def say(text: str) -> None:
    """Print a text for people, whoever wrote what is in it, on standard output."""
    print(printable(text))


def show(result: Result, as_json: bool, width: int | None = None) -> None:
    """Print it on standard output; `width` of tables in characters, by default the terminal's."""
    if as_json:
        print(json.dumps(result.to_json()))
        return
    for part in result.page():
        if isinstance(part, str):
            say(part)
        else:
            Console(markup=False, width=width).print(part)
