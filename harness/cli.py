"""The commands. Each imports what it needs when it is called, so that none waits for torch in vain."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError

app = typer.Typer(help="Train for as long as it pays, keep the best model, resume exactly.", no_args_is_help=True, add_completion=False)
checkpoints = typer.Typer(help="List, verify and prune the checkpoints of a run.", no_args_is_help=True)
app.add_typer(checkpoints, name="checkpoints")

ConfigPath = Annotated[Path, typer.Argument(help="A YAML config.", metavar="CONFIG")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change, e.g. train.precision=bf16.", metavar="[KEY=VALUE]...")]
RunPath = Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")]


@app.command()
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train to the end, or go on from where the run stands."""
    from harness.launching import launch

    raise typer.Exit(launch(config, overrides or []))


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends with one message and its exit code."""
    try:
        app(arguments, standalone_mode=True)
    except HarnessError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
