"""Arguments that commands share."""

import os
import sys
from collections.abc import Callable
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


def allowed_prefixes(allow: list[str] | None) -> list[str]:
    """What the user allows, on the command line and in FERMARSI_ALLOW."""
    always = os.environ.get("FERMARSI_ALLOW", "").split(os.pathsep)
    given = [one for one in [*(allow or ()), *always] if one]
    find_own_code([one for one in given if "/" not in one])
    return [one if "/" in one else one.replace(":", ".") for one in given]


def offer(*choices: str) -> Callable[[str], list[str]]:
    """For the completion of a shell."""
    return lambda incomplete: [one for one in choices if one.startswith(incomplete)]


ConfigPath = Annotated[
    Path, typer.Argument(help="A YAML config.", metavar="CONFIG", callback=find_own_code)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings to change, e.g. train.precision=bf16.", metavar="[KEY=VALUE]..."),
]
RunPath = Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")]
HistoryPath = Annotated[
    Path,
    typer.Argument(
        help="A run, a metrics.jsonl, or a CSV of evaluations.", metavar="RUN|JSONL|CSV"
    ),
]
AnyPath = Annotated[
    Path,
    typer.Argument(
        help="A run directory (its best checkpoint) or a checkpoint.", metavar="RUN|CHECKPOINT"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        help="Trust components of the run whose dotted path begins with this, or, with a /, files "
        "in this directory; repeatable. FERMARSI_ALLOW, separated by colons, does the same "
        "for all commands.",
        metavar="PREFIX|DIR/",
        callback=allowed_prefixes,
    ),
]


EXTRA = {"allow_extra_args": True}  # context_settings of commands that call `refuse_extra`


def refuse_extra(context: typer.Context, path: Path) -> None:
    """What follows a run that the command does not train, such as settings, would have no effect.
    Raises ConfigError.
    """
    if not context.args:
        return
    if "=" not in context.args[0]:
        message = "only options follow a run, e.g. --split test; patterns go into quotes."
        raise typer.BadParameter(message, context, param_hint=context.args[0])
    options = {f"--{one.name}" for one in context.command.params}
    for key, _, value in (one.partition("=") for one in context.args):
        if f"--{key}" in options:
            message = f"an option begins with two dashes: --{key} {value}"
            raise typer.BadParameter(message, context, param_hint=key)
    from harness.commands.compare import refuse_changes

    refuse_changes(path, context.args)


SPLIT_NAMES = offer("train", "val", "test")
SplitName = Annotated[
    str, typer.Option("--split", help="train, val or test.", autocompletion=SPLIT_NAMES)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print only warnings, errors and how the launch ended.")
]
