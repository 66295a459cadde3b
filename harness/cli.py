"""The commands.

Each imports what it needs when it is called, so that none waits for torch unnecessarily.
"""

import errno
import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands.arguments import (
    EXTRA,
    Allow,
    AnyPath,
    ConfigPath,
    HistoryPath,
    Json,
    Overrides,
    Quiet,
    RunPath,
    SplitName,
    find_own_code,
    refuse_extra,
)
from harness.commands.many import many
from harness.commands.of_data import data
from harness.commands.show import say, show
from harness.commands.tools import tools
from harness.errors import HarnessError
from harness.imports import without_garbage_collection
from harness.wording import own_version, printable, short_repr

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _say_version(asked: bool) -> None:
    if asked:
        say(f"fermarsi {own_version()}")
        raise typer.Exit()


@app.callback()
def before(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print it.", callback=_say_version, is_eager=True),
    ] = False,
) -> None:
    """Train for as long as it pays, keep the best model, resume exactly."""


checkpoints = typer.Typer(
    help="List, verify and prune the checkpoints of a run.", no_args_is_help=True
)
app.add_typer(checkpoints, name="checkpoints")
track = typer.Typer(
    help="Send a run's records to Weights & Biases, TensorBoard or Trackio.", no_args_is_help=True
)
app.add_typer(track, name="track")

app.add_typer(many)
app.add_typer(tools)
app.add_typer(data, name="data")


@app.command(epilog="Example: fermarsi train configs/digits.yaml optimizer.lr=1e-3")
def train(config: ConfigPath, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Train until the end, or continue a run from its last checkpoint."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # No training ends because a name cannot be written in the locale's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    with without_garbage_collection():
        from harness.console import Console, is_first_process

        console = Console(is_first_process(), quiet=quiet)
        console.phase("importing torch")
        from harness.ranks.membership import is_member
        from harness.training.launch import launch, leave_process
        from harness.training.regroup import launch_as_member

    train_here = launch_as_member if is_member(os.environ) else launch
    leave_process(train_here(config, overrides or [], console))


@app.command("launch", epilog="Example: fermarsi launch configs/digits.yaml --cpu --processes 2")
def launch_(
    config: ConfigPath,
    overrides: Overrides = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="On this machine; by default one a GPU, with --cpu 1.")
    ] = None,
    least: Annotated[
        int | None,
        typer.Option(
            "--min-processes",
            min=1,
            help="Of all machines: go on with as few when others are lost, and with more again "
            "when they come back.",
        ),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the CPU.")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="The number of machines.")] = 1,
    node: Annotated[int, typer.Option(min=0, help="The number of this machine.")] = 0,
    head: Annotated[
        str, typer.Option(help="Machine 0 as the others reach it.", metavar="HOST[:PORT]")
    ] = "127.0.0.1",
    quiet: Quiet = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the launcher's report of a failure.")
    ] = False,
) -> None:
    """Train on several processes and machines; the same command on each machine, but for --node."""
    from harness.commands.launch import Machines, launch_training

    machines = Machines(nodes, node, head)
    raise typer.Exit(
        launch_training(
            config,
            overrides or (),
            processes,
            machines,
            cpu=cpu,
            quiet=quiet,
            debug=debug,
            least=least,
        )
    )


@app.command(context_settings=EXTRA, epilog="Example: fermarsi evaluate runs/digits --split test")
def evaluate(
    context: typer.Context,
    path: AnyPath,
    split: SplitName = "val",
    as_json: Json = False,
    allow: Allow = None,
) -> None:
    """Metrics of a trained network on a split of its config."""
    refuse_extra(context, path)
    with without_garbage_collection():
        from harness.commands.evaluate import evaluate_split

    show(evaluate_split(path, split, allow or ()), as_json)


@app.command(
    context_settings=EXTRA,
    epilog="Example: fermarsi predict runs/digits --split test --out found.csv",
)
def predict(
    context: typer.Context,
    path: AnyPath,
    out: Annotated[Path, typer.Option(help="The file to write: .parquet, .csv or .jsonl.")],
    split: SplitName = "val",
    files: Annotated[
        list[str] | None,
        typer.Option(
            help="New files, read as the split's; a path, or a pattern in quotes; repeatable."
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(help="Another source, as YAML: '{_target_: ...}'.", callback=find_own_code),
    ] = "",
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that predict, on GPUs by turns.")
    ] = 1,
    allow: Allow = None,
) -> None:
    """Write a trained network's predictions, one row per sample; killed, it is resumed by the same
    command.
    """
    refuse_extra(context, path)
    with without_garbage_collection():
        from harness.commands.predict import write_predictions

    say(write_predictions(path, split, source, out, allow or (), processes, files or ()))


@app.command(epilog="Example: fermarsi report runs/digits")
def report(run: RunPath) -> None:
    """Write one self-contained HTML page with the run's plots."""
    from harness.commands.report import write_report

    say(str(write_report(run)))


@app.command(epilog="Example: fermarsi status runs/digits")
def status(run: RunPath, as_json: Json = False) -> None:
    """Whether a run has ended: exit code 0 ended, 75 to be resumed, 1 crashed or unknown, 2 no
    such run.
    """
    from harness.rundir.status import read_status

    found = read_status(run)
    say(json.dumps(found.to_json()) if as_json else found.text)
    raise typer.Exit(found.exit_code)


@app.command(epilog="Example: fermarsi config configs/digits.yaml batch.size=192")
def config(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the resolved config, or every error in it at once."""
    with without_garbage_collection():
        from harness.commands.config import describe_config

    print(describe_config(config, overrides or ()), end="")


@app.command(epilog="Example: fermarsi describe configs/digits.yaml --depth 2")
def describe(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: Json = False,
    depth: Annotated[
        int | None,
        typer.Option(
            min=1, help="The depth of nested modules that get their own row; by default all."
        ),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="What each of so many processes needs; the network may be larger than this "
            "machine's memory.",
        ),
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="With --ranks: what a process may have, e.g. 80; by default this machine's GPU's.",
        ),
    ] = None,
) -> None:
    """The network with the shapes of a micro-batch, its parameters, and the memory that
    training takes.
    """
    with without_garbage_collection():
        from harness.commands.describe import describe_network, page_width
        from harness.commands.describe_ranks import describe_ranks
        from harness.errors import ConfigError
    if ranks is None:
        if memory_gb is not None:
            raise ConfigError("--memory-gb: no effect without --ranks. Give both.")
        show(describe_network(config, overrides or (), depth), as_json, page_width())
    else:
        if depth is not None:
            raise ConfigError("--depth: no effect with --ranks. Give one of them.")
        show(describe_ranks(config, overrides or (), ranks, memory_gb), as_json, page_width())


@app.command(epilog="Example: fermarsi replay runs/digits --sweep stop.improvement.patience=3,5,10")
def replay(
    history: HistoryPath,
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
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Suggest patience and rate from this and more runs.")
    ] = False,
    regret: Annotated[
        float | None,
        typer.Option(
            help="With --suggest: what share of its best a run may lose; by default 0.01.", min=0.0
        ),
    ] = None,
) -> None:
    """What these stop settings would have decided on a recorded history."""
    from harness.commands.replay import replay_command

    raise typer.Exit(
        replay_command(
            history,
            config,
            overrides or (),
            sweep or (),
            as_json=as_json,
            plot=plot,
            suggest=suggest,
            regret=regret,
        )
    )


@app.command(epilog="Example: fermarsi forecast runs/digits")
def forecast(
    run: HistoryPath,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="The config whose targets and budget count; by default the run's own."
        ),
    ] = None,
    overrides: Overrides = None,
    metric: Annotated[
        str | None, typer.Option(help="Forecast this metric; by default those of the targets.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Where the metrics of a run will be at the end of its budget, and the chance to reach its
    targets.
    """
    from harness.commands.forecast import forecast_command

    raise typer.Exit(forecast_command(run, config, overrides or (), metric, as_json=as_json))


@app.command(epilog="Example: fermarsi trace runs/a runs/b")
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

    comparison, code = compare(run, other)
    say(comparison)
    raise typer.Exit(code)


@checkpoints.command("list", epilog="Example: fermarsi checkpoints list runs/digits")
def list_them(run: RunPath, as_json: Json = False) -> None:
    """The checkpoints of a run, valid or not, oldest first."""
    from harness.commands.checkpoints import list_run

    show(list_run(run, "size"), as_json)


@checkpoints.command(epilog="Example: fermarsi checkpoints verify runs/digits")
def verify(run: RunPath, as_json: Json = False) -> None:
    """Hash every file again; exit code 2 if a checkpoint is not valid."""
    from harness.commands.checkpoints import verify_run

    listing, code = verify_run(run)
    show(listing, as_json)
    raise typer.Exit(code)


@checkpoints.command(epilog="Example: fermarsi checkpoints prune runs/digits --keep-last 1")
def prune(
    run: RunPath,
    keep_last: Annotated[int, typer.Option(min=1)] = 1,
    keep_best: Annotated[int, typer.Option(min=0)] = 1,
) -> None:
    """Delete all but the newest and the best checkpoints of a run that is not being trained."""
    from harness.commands.checkpoints import prune_run

    for path in prune_run(run, keep_last, keep_best):
        say(f"{path}: deleted")


@track.command(epilog="Example: fermarsi track sync runs/digits tracking.wandb.project=NAME")
def sync(run: RunPath, overrides: Overrides = None, allow: Allow = None) -> None:
    """Send missing records from metrics.jsonl to the run's trackers; tracking.* settings may be
    changed, e.g. tracking.wandb.project=NAME.
    """
    from harness.commands.track import sync_run

    say("\n".join(sync_run(run, overrides or (), allow or ())))


def run_command(command: Callable[[], Any]) -> Any:
    """Run a command; a user mistake ends with one message and its exit code."""
    try:
        return command()
    except HarnessError as error:
        print(printable(f"{type(error).__name__}: {error}"), file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"{short_repr(str(error.filename))}: {error.strerror}. Name a path.", file=sys.stderr)
        raise SystemExit(2) from None


def show_own_warnings_plainly() -> None:
    """Warnings of ours are for users, whom lines of our source do not concern."""
    show = warnings.formatwarning

    def formatted(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        ours = category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent)
        text = printable(f"warning: {message}")
        return f"{text}\n" if ours else show(message, category, filename, lineno, line)

    warnings.formatwarning = formatted


def main(arguments: list[str] | None = None) -> None:
    """The entry point of `fermarsi`."""
    if arguments is None:
        show_own_warnings_plainly()
    run_command(lambda: app(arguments, standalone_mode=True))
