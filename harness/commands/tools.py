"""The commands about a machine, about starting and about what a run leaves for elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from harness.commands.arguments import Allow, AnyPath, Json, offer
from harness.commands.show import say, show

tools = typer.Typer()


@tools.command(epilog="Example: fermarsi doctor /data/runs")
def doctor(
    directory: Annotated[
        Path, typer.Argument(help="Where runs are going to be.", metavar="[DIRECTORY]")
    ] = Path("runs"),
    as_json: Json = False,
) -> None:
    """What this machine offers, what is missing, and how to fix it: two processes that meet,
    decoders, disk and limits are tried; exit code 2 if nothing can be trained here.
    """
    from harness.commands.doctor import diagnose

    findings, code = diagnose(directory)
    show(findings, as_json)
    raise typer.Exit(code)


@tools.command(epilog="Example: fermarsi export runs/digits digits.onnx --to onnx")
def export(
    path: AnyPath,
    out: Annotated[Path, typer.Argument(help="The file or folder to write.", metavar="OUT")],
    to: Annotated[
        str,
        typer.Option(
            help="safetensors, onnx, torch-export, hf or peft.",
            metavar="FORMAT",
            autocompletion=offer("safetensors", "onnx", "torch-export", "hf", "peft"),
        ),
    ] = "safetensors",
    allow: Allow = None,
) -> None:
    """Write a checkpoint's network for use elsewhere; what can compute is compared with the
    network's outputs.
    """
    from harness.commands.export import export_network

    say(export_network(path, out, to, allow or ()))


@tools.command(epilog="Example: fermarsi compare runs/digits runs/digits_wide")
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN RUN ...")],
    as_json: Json = False,
) -> None:
    """What differs between runs: settings, results, time."""
    from harness.commands.compare import compare_runs

    show(compare_runs(runs), as_json)


@tools.command(epilog="Example: fermarsi init pets --kind images --data ~/photos")
def init(
    directory: Annotated[Path, typer.Argument(help="A new directory.", metavar="DIR")],
    kind: Annotated[
        str,
        typer.Option(
            help="images, table, audio, series or text.",
            autocompletion=offer("images", "table", "audio", "series", "text"),
        ),
    ],
    origin: Annotated[
        Path,
        typer.Option(
            "--data",
            help="Your folder, with a folder for each class in it, or your table.",
            metavar="PATH",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(help="The column of a table to predict; by default the last one."),
    ] = None,
) -> None:
    """A starter project for your own data, which trains at once."""
    from harness.commands.init import start_project

    say(start_project(directory, kind, origin, target))
