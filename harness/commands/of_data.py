"""`fermarsi data`: its commands."""

from pathlib import Path
from typing import Annotated

import typer

from harness.commands.arguments import (
    SPLIT_NAMES,
    Allow,
    AnyPath,
    ConfigPath,
    Json,
    Overrides,
    SplitName,
    find_own_code,
)
from harness.commands.show import say, show
from harness.imports import without_garbage_collection

data = typer.Typer(
    help="Check and show a config's data, find suspect labels, build, inspect and prune its store.",
    no_args_is_help=True,
)


@data.command(epilog="Example: fermarsi data check configs/digits.yaml --html check.html")
def check(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: Json = False,
    page: Annotated[
        Path | None,
        typer.Option(
            "--html", help="Also write a page with pictures of some samples.", metavar="FILE"
        ),
    ] = None,
) -> None:
    """Check for leaks, near-duplicates and drift between splits, invalid numbers and imbalance;
    exit code 2 if there is what `data.checks` calls an error.
    """
    from harness.commands.data import check_config

    result = check_config(config, overrides or (), page)
    show(result, as_json)
    raise typer.Exit(result.exit_code)


@data.command("show", epilog="Example: fermarsi data show configs/digits.yaml val 7 10-19")
def show_(
    config: ConfigPath,
    split: Annotated[
        str,
        typer.Argument(help="train, val or test.", metavar="SPLIT", autocompletion=SPLIT_NAMES),
    ],
    asked: Annotated[
        list[str] | None,
        typer.Argument(
            help="Samples by index, 7 or 10-19, by default 12 spread over the split; and settings "
            "to change.",
            metavar="[ID|KEY=VALUE]...",
        ),
    ] = None,
    html: Annotated[Path, typer.Option("--html", help="The page to write.", metavar="FILE")] = Path(
        "samples.html"
    ),
) -> None:
    """Samples as they reach the network, after all treatments, as pictures, lines, text or rows."""
    from harness.commands.samples import show_samples

    say(show_samples(config, split, asked or (), html))


@data.command(epilog="Example: fermarsi data build CONFIG data.store.dir=runs/store")
def build(config: ConfigPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Apply one-time treatments, and keep the result in the config's store."""
    from harness.commands.data import build_store

    show(build_store(config, overrides or ()), as_json)


@data.command(epilog="Example: fermarsi data inspect CONFIG")
def inspect(config: ConfigPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """The entries of the config's store, and which of them its splits use."""
    from harness.commands.data import inspect_store

    show(inspect_store(config, overrides or ()), as_json)


@data.command(epilog="Example: fermarsi data suspects runs/digits --split train --folds 5")
def suspects(
    path: AnyPath,
    split: SplitName = "val",
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="With --split train: train as many networks, each of which judges the share of "
            "the samples that it does not learn from.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The table to write, .csv; by default in the run. A page with pictures is written "
            "beside it."
        ),
    ] = None,
    as_json: Json = False,
    allow: Allow = None,
) -> None:
    """Labels that are probably wrong, by a trained network and confident learning."""
    with without_garbage_collection():
        from harness.commands.suspects import find_suspects

    show(find_suspects(path, split, folds, out, allow or ()), as_json)


@data.command("prune", epilog="Example: fermarsi data prune configs/a.yaml configs/b.yaml")
def prune_store(
    configs: Annotated[
        list[Path],
        typer.Argument(
            help="YAML configs that share a store.", metavar="CONFIG...", callback=find_own_code
        ),
    ],
) -> None:
    """Delete the store entries that no split of these configs uses."""
    from harness.commands.data import prune_store

    for entry in prune_store(configs):
        say(f"{entry.path}: deleted ({entry.size_bytes / 1e6:,.1f} MB)")
