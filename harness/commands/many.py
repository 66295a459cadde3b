"""The commands of many runs as the command line has them: `fermarsi sweep`, `fermarsi folds`."""

from pathlib import Path
from typing import Annotated

import typer

from harness.commands.arguments import ConfigPath, Json, Overrides, offer
from harness.imports import without_garbage_collection

many = typer.Typer()


@many.command(
    epilog="Example: fermarsi sweep configs/digits.yaml --over optimizer.lr=1e-4..1e-2:log"
)
def sweep(
    config: ConfigPath,
    overrides: Overrides = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="What to vary: a range, KEY=1e-4..1e-2:log, 1..4, 0..1:0.1 (step), or choices, "
            "KEY=[64],[128]; repeatable.",
            metavar="KEY=VALUES",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="How many; by default 20, or all combinations of choices."),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="tpe, random or grid; by default grid for choices without --trials.",
            autocompletion=offer("tpe", "random", "grid"),
        ),
    ] = None,
    prune: Annotated[
        str,
        typer.Option(
            help="none, median, hyperband, asha (pauses trials, and goes on with the best), or "
            "forecast (of reaching the best trial's value).",
            autocompletion=offer("none", "median", "hyperband", "asha", "forecast"),
        ),
    ] = "none",
    eta: Annotated[
        int | None,
        typer.Option(min=2, help="hyperband, asha: one in so many trials goes on; by default 3."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is proposed.")] = 0,
    at_once: Annotated[int, typer.Option(min=1, help="Trials side by side.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Of each trial; one a GPU.")] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the CPU.")] = False,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="The sweep's directory; by default RUN.DIR-sweep.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train with many values of some settings, each trial a run; the same command goes on with a
    sweep that was interrupted.
    """
    with without_garbage_collection():
        from harness.commands.sweep import Options, sweep_command

    options = Options(trials, sampler, prune, eta, seed, at_once, processes, cpu, directory)
    raise typer.Exit(sweep_command(config, overrides or (), over or (), options, as_json=as_json))


@many.command(epilog="Example: fermarsi folds configs/activity.yaml --k 5")
def folds(
    config: ConfigPath,
    overrides: Overrides = None,
    k: Annotated[int, typer.Option(min=2, help="The number of folds.")] = 5,
    group: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep samples that are equal in this column together; repeatable. By default as "
            "the config's ByGroup rule does.",
            metavar="COLUMN",
        ),
    ] = None,
    stratify: Annotated[
        str | None,
        typer.Option(help="The same share of each of its values in each fold.", metavar="COLUMN"),
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Folds side by side.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Of each fold; one a GPU.")] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the CPU.")] = False,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where they lie; by default RUN.DIR-folds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Cross-validation: a run a fold, and the mean and spread of their metrics; the same command
    goes on with folds that were interrupted.
    """
    with without_garbage_collection():
        from harness.commands.folds import folds_command
        from harness.search.folds import Dealing

    code = folds_command(
        config,
        overrides or (),
        Dealing(k, tuple(group or ()), stratify),
        at_once=at_once,
        processes=processes,
        cpu=cpu,
        directory=directory,
        as_json=as_json,
    )
    raise typer.Exit(code)
