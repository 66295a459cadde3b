"""The commands.

Each imports what it needs when it is called, so that none waits for torch in vain.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.errors import HarnessError

app = typer.Typer(
    help="Train for as long as it pays, keep the best model, resume exactly.",
    no_args_is_help=True,
    add_completion=False,
)
checkpoints = typer.Typer(
    help="List, verify and prune the checkpoints of a run.", no_args_is_help=True
)
app.add_typer(checkpoints, name="checkpoints")
track = typer.Typer(
    help="Send a run's records to Weights & Biases, TensorBoard or Trackio.", no_args_is_help=True
)
app.add_typer(track, name="track")

data = typer.Typer(
    help="Check a config's data, and build, inspect and prune its store.", no_args_is_help=True
)
app.add_typer(data, name="data")

ConfigPath = Annotated[Path, typer.Argument(help="A YAML config.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings to change, e.g. train.precision=bf16.", metavar="[KEY=VALUE]..."),
]
RunPath = Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")]
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
        help="Also allow components whose dotted path begins so; repeat for more.", metavar="PREFIX"
    ),
]
SplitName = Annotated[str, typer.Option("--split", help="train, val or test.")]


@app.command()
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train to the end, or go on from where the run stands."""
    from harness.training.launch import launch

    raise typer.Exit(launch(config, overrides or []))


@app.command()
def evaluate(
    path: AnyPath, split: SplitName = "val", as_json: Json = False, allow: Allow = None
) -> None:
    """Metrics of a trained network on a split of its config."""
    from harness.commands.predict import evaluate_split, load_trained

    trained = load_trained(path, allow or ())
    result = evaluate_split(trained, split)
    if as_json:
        print(json.dumps({"checkpoint": str(trained.path), "split": split, **result.values}))
    else:
        _print_table(
            f"{trained.path}: {split}",
            ("metric", "value"),
            [(name, f"{value:.6g}") for name, value in result.values.items()],
        )


@app.command()
def predict(
    path: AnyPath,
    out: Annotated[Path, typer.Option(help="The file to write: .parquet or .csv.")],
    split: SplitName = "val",
    source: Annotated[str, typer.Option(help="Another source, as YAML: '{_target_: ...}'.")] = "",
    allow: Allow = None,
) -> None:
    """Write a trained network's predictions, one row a sample."""
    from harness.commands.predict import (
        load_trained,
        open_split,
        predict,
        read_source,
        write_predictions,
    )

    trained = load_trained(path, allow or ())
    table = predict(trained, open_split(trained, split, read_source(source) if source else None))
    write_predictions(table, out)
    print(f"{out}: {len(table):,} predictions of {trained.path}")


@app.command()
def report(run: RunPath) -> None:
    """Write one self-contained HTML page with the run's plots."""
    from harness.commands.report import write_report

    print(write_report(run))


@app.command()
def status(run: RunPath, as_json: Json = False) -> None:
    """Whether a run has ended: exit code 0 ended, 75 to be continued, 1 crashed or unknown, 2 no
    such run.
    """
    from harness.rundir.status import read_status

    found = read_status(run)
    print(json.dumps(found.to_json()) if as_json else found.text)
    raise typer.Exit(found.exit_code)


@app.command()
def config(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the resolved config, or every error in it at once."""
    from harness.config.read import describe

    print(describe(config, overrides or []), end="")


@app.command()
def describe(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: Json = False,
    depth: Annotated[
        int | None,
        typer.Option(min=1, help="Modules inside each other that get a row each; by default all."),
    ] = None,
) -> None:
    """The network as a micro-batch flows through it: shapes, parameters, and the memory that
    training takes.
    """
    from harness.commands.describe import describe_network, print_description

    found = describe_network(config, overrides or [], depth)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        print_description(found)


@app.command()
def replay(
    history: Annotated[
        Path,
        typer.Argument(
            help="A run, a metrics.jsonl, or a CSV of evaluations.", metavar="RUN|JSONL|CSV"
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="The config whose stop settings are tried; by default the run's own."
        ),
    ] = None,
    overrides: Overrides = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Try several values side by side: KEY=V1,V2.", metavar="KEY=V1,V2"),
    ] = None,
    as_json: Json = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the decisions into this file (.png or .svg).")
    ] = None,
) -> None:
    """What these stop settings would have decided on a recorded history."""
    from harness.commands.replay import replay_command

    raise typer.Exit(
        replay_command(history, config, overrides or [], sweep or [], as_json=as_json, plot=plot)
    )


@app.command()
def trace(
    run: RunPath,
    other: Annotated[
        Path | None, typer.Argument(help="Another run to compare with.", metavar="[OTHER]")
    ] = None,
) -> None:
    """Compare two runs trained with log.trace=true, step by step and bit by bit; exit code 2 where
    they differ.
    """
    from harness.commands.trace import compare

    told, equal = compare(run, other)
    print(told)
    raise typer.Exit(0 if equal else 2)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine offers, what is missing, and how to mend it."""
    from harness.commands.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([finding.to_json() for finding in findings]))
    else:
        _print_table(
            "fermarsi doctor",
            ("what", "found", "to do"),
            [(one.what, one.found, one.to_do) for one in findings],
        )
    raise typer.Exit(0 if all(one.good for one in findings) else 2)


@app.command()
def export(
    path: AnyPath,
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.", metavar="OUT")],
) -> None:
    """Write a checkpoint's model as one safetensors file."""
    from harness.checkpoint.export import export
    from harness.checkpoint.read import find_checkpoint

    found = find_checkpoint(path)
    export(found, out)
    print(f"{out}: the model of {found}")


@checkpoints.command("list")
def list_them(run: RunPath, as_json: Json = False) -> None:
    """The checkpoints of a run, valid or not, oldest first."""
    _show_checkpoints(run, "size", as_json)


@checkpoints.command()
def verify(run: RunPath, as_json: Json = False) -> None:
    """Hash every file again; exit code 2 if a checkpoint is not valid."""
    raise typer.Exit(0 if _show_checkpoints(run, "full", as_json) else 2)


@checkpoints.command()
def prune(
    run: RunPath,
    keep_last: Annotated[int, typer.Option(min=1)] = 1,
    keep_best: Annotated[int, typer.Option(min=0)] = 1,
) -> None:
    """Delete all but the newest and the best checkpoints of a run that is not being trained."""
    from harness.commands.checkpoints import prune_run

    for name in prune_run(run, keep_last, keep_best):
        print(f"{run}/checkpoints/{name}: deleted")


@data.command()
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
    """Look for leaks between splits, broken numbers and imbalance; exit code 2 if there is what
    `data.checks` calls an error.
    """
    from harness.commands.data import check_command

    raise typer.Exit(check_command(config, overrides or [], as_json, page))


@data.command()
def build(config: ConfigPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Do what is done once for each sample, and keep the result in the config's store."""
    from harness.commands.data import build_store

    _show_store(build_store(config, overrides or []), as_json)


@data.command()
def inspect(config: ConfigPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """What the config's store holds, and which of it the config's splits use."""
    from harness.commands.data import inspect_store

    _show_store(inspect_store(config, overrides or []), as_json)


@data.command("prune")
def prune_store(
    configs: Annotated[
        list[Path], typer.Argument(help="YAML configs that share a store.", metavar="CONFIG...")
    ],
) -> None:
    """Delete all of the store that no split of these configs uses."""
    from harness.commands.data import prune_store

    for entry in prune_store(configs):
        print(f"{entry.path}: deleted ({entry.size_bytes / 1e6:,.1f} MB)")


def _show_store(listed: list[Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps([one.to_json() for one in listed]))
    else:
        _print_table(
            "store",
            ("key", "split", "samples", "size", "made by", "columns"),
            [one.row() for one in listed],
        )


@track.command()
def sync(run: RunPath, overrides: Overrides = None, allow: Allow = None) -> None:
    """Send what is missing there, from metrics.jsonl; tracking.* settings may be changed, e.g.
    tracking.wandb.project=NAME.
    """
    from harness.commands.track import sync_run

    print(*sync_run(run, overrides or (), allow or ()), sep="\n")


def _show_checkpoints(run: Path, verify: Any, as_json: bool) -> bool:
    from harness.commands.checkpoints import list_run

    listed = list_run(run, verify)
    if as_json:
        print(json.dumps([one.to_json() for one in listed]))
    else:
        rows = [one.row() for one in listed]
        _print_table(
            f"{run}/checkpoints",
            ("step", "epoch", "reason", "processes", "size", "metrics", "links", "valid"),
            rows,
        )
    return all(one.valid for one in listed)


def _print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    print(title)
    Console().print(table)


def guarded(command: Callable[[], Any]) -> Any:
    """Run a command; a user's mistake ends with one message and its exit code."""
    try:
        return command()
    except HarnessError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def main(arguments: list[str] | None = None) -> None:
    """The entry point of `fermarsi`.

    Modules of the working directory can be named in configs; they come last on the path.
    """
    sys.path.append(str(Path.cwd()))
    guarded(lambda: app(arguments, standalone_mode=True))
