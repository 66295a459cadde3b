"""Arguments that several commands share."""

import sys
from pathlib import Path
from typing import Annotated, TypeVar

import typer

T = TypeVar("T")


def find_own_code(given: T) -> T:
    """Let a user's own config name modules of the working directory, last on the path; a run may be
    somebody else's, and lie in that very directory.
    """
    if given:
        sys.path.append(str(Path.cwd()))
    return given


ConfigPath = Annotated[
    Path, typer.Argument(help="A YAML config.", metavar="CONFIG", callback=find_own_code)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings to change, e.g. train.precision=bf16.", metavar="[KEY=VALUE]..."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
