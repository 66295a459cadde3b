"""`fermarsi replay`: stop settings applied to a recorded training.

No torch, so that it starts fast.
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.errors import ConfigError
from harness.stopping.history import History, read_history
from harness.stopping.replay import Replay, replay
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import show
from harness.wording import printable


def replay_command(
    history: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    sweep: Sequence[str] = (),
    *,
    as_json: bool = False,
    plot: Path | None = None,
    suggest: bool = False,
    regret: float | None = None,
) -> int:
    """Print what settings would have decided; returns the exit code. `config` is optional for the
    directory of a run. `suggest`: from this history and those among `overrides` that are paths,
    at most at this `regret`, 0.01 by default. Raises ConfigError.
    """
    # What reads YAML and draws tables is not needed to replay
    from harness.commands.show import say

    if regret is not None and not suggest:
        raise ConfigError("--regret: no effect without --suggest. Give both, or drop it.")
    if suggest:
        if sweep or as_json or plot:
            raise ConfigError("--suggest: not together with --sweep, --json or --plot. Drop those.")
        from harness.commands.suggest import suggestion

        # Directories of runs are called lr=0.1 too
        is_path = {one: "=" not in one or Path(one).exists() for one in overrides}
        more = [Path(one) for one in overrides if is_path[one]]
        changes = [one for one in overrides if not is_path[one]]
        settings = read_stop(history, config, changes)
        say("\n".join(suggestion([history, *more], settings, 0.01 if regret is None else regret)))
        return 0
    recorded, replays = replay_all(history, config, overrides, sweep)
    if as_json:
        listed = [{"settings": one.label, **one.to_json()} for one in replays]
        print(json.dumps({"sweep": listed} if sweep else replays[0].to_json()))
    else:
        say("\n".join(comparison(replays, recorded) if sweep else story(replays[0])))
    if plot is not None:
        draw(replays, recorded, plot)
    return 0


def replay_all(
    history: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    sweep: Sequence[str] = (),
) -> tuple[History, list[Replay]]:
    """A recorded history, and what each set of settings would have decided. Raises ConfigError."""
    tried = []
    for label in map(dict, itertools.product(*map(_parse_sweep, sweep))):
        changes = [*overrides, *(f"{key}={value}" for key, value in label.items())]
        tried.append((read_stop(history, config, changes), label))
    recorded = read_history(history)
    return recorded, [replay(recorded, settings, label) for settings, label in tried]


def read_stop(history: Path, config: Path | None, overrides: Sequence[str]) -> StopSettings:
    """The stop settings of a config, by default of the run itself. Raises ConfigError."""
    from harness.config.read import read_section

    if config is not None:
        return read_section(config, StopSettings, overrides)
    stored = history / "config.yaml"
    if not stored.is_file():
        raise ConfigError(f"{history}: no config.yaml in it. Give the settings with --config.")
    return read_section(stored, StopSettings, overrides, stored=True)


def _parse_sweep(text: str) -> list[tuple[str, str]]:
    """`a=1,2` -> [("a", "1"), ("a", "2")]; commas inside brackets do not separate."""
    from harness.search.space import split_values

    key, equals, values = text.partition("=")
    choices = split_values(values)
    if not equals or not key.strip() or not choices:
        raise ConfigError(
            f"--sweep {text}: not of the form key=value,value. Write for example --sweep "
            "stop.improvement.patience=1,3,5."
        )
    return [(key.strip(), choice) for choice in choices]


def story(one: Replay) -> list[str]:
    """A table of the evaluations, then the end."""
    rows = [("", "step", "stale", "", "verdict")]
    for index, (evaluation, verdict) in enumerate(zip(one.evaluations, one.verdicts, strict=False)):
        marks = "best" if verdict.new_best else ""
        rows.append(
            (
                str(index),
                f"{evaluation.step:,}",
                str(one.stale(verdict)),
                marks,
                f"{verdict.reason or 'go on'}: {verdict.detail}",
            )
        )
        rows += [("", "", "", "", f"warning: {warning}") for warning in verdict.warnings]
    return [*table(rows, left=(3, 4)), "", *_end(one)]


def _end(one: Replay) -> list[str]:
    """Where the training stops, the best value kept and lost, and what is saved."""
    if not one.evaluations:
        return ["no evaluation has a metric that the settings name"]
    last = one.evaluations[-1]
    if one.stop_index is None:
        lines = [
            f"does not stop within {len(one.evaluations)} evaluations, up to step {last.step:,}"
        ]
    else:
        stop = one.evaluations[one.stop_index]
        lines = [
            f"stops at step {stop.step:,}, evaluation {one.stop_index + 1} of "
            f"{len(one.evaluations)}: {one.verdicts[-1].reason}"
        ]
        lines.append(f"saves {_describe_saving(one)}")
    if one.best is not None and one.best_after is not None:
        lines.append(
            f"keeps {one.best.metric} {show(one.best.value, one.best_after.value)} of step "
            f"{one.best.step:,}, {_describe_loss(one)}"
        )
    return lines


def _describe_saving(one: Replay) -> str:
    last = one.evaluations[-1]
    stop = last if one.stop_index is None else one.evaluations[one.stop_index]
    steps = f"{last.step - stop.step:,} of {last.step:,} steps"
    hours = last.hours - stop.hours
    return (
        f"{steps} and {show(hours, digits=3)} of {show(last.hours, digits=3)} hours"
        if hours > 0
        else steps
    )


def _describe_loss(one: Replay) -> str:
    if one.best is None or one.best_after is None or one.best == one.best_after:
        return "the best of the history"
    return f"loses {show(one.best_after.value, one.best.value)} of step {one.best_after.step:,}"


def comparison(replays: Sequence[Replay], history: History) -> list[str]:
    """One line per set of settings."""
    rows = [
        (*replays[0].label, "stops at step", "reason", "best kept", "best lost", "saved"),
        *map(_row, replays),
    ]
    return [
        f"{history.path}: {len(history.evaluations)} evaluations",
        *table(rows, left=range(len(rows[0]))),
    ]


def _row(one: Replay) -> tuple[str, ...]:
    kept = "none" if one.best is None else f"{show(one.best.value)} (step {one.best.step:,})"
    lost = (
        ""
        if one.best == one.best_after or one.best_after is None
        else f"{show(one.best_after.value)} (step {one.best_after.step:,})"
    )
    if one.stop_index is None:
        return (*one.label.values(), "never", "", kept, lost, "")
    return (
        *one.label.values(),
        f"{one.evaluations[one.stop_index].step:,}",
        one.verdicts[-1].reason or "",
        kept,
        lost,
        _describe_saving(one),
    )


def table(rows: Sequence[Sequence[str]], left: Iterable[int]) -> list[str]:
    """Lines of aligned cells, the columns `left` to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ["<" if column in set(left) else ">" for column in range(len(widths))]
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, aligned, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def draw(replays: Sequence[Replay], history: History, path: Path) -> None:
    """Plot the metrics behind the verdicts, with a line where each set of settings stops. Raises
    ConfigError.
    """
    from harness.commands.page import figure_settings

    with figure_settings():
        _draw(replays, history, path)


def _draw(replays: Sequence[Replay], history: History, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    names = {
        one.metric for whole in replays for verdict in whole.verdicts for one in verdict.criteria
    } | {whole.best.metric for whole in replays if whole.best}
    for name in sorted(names):
        points = [
            (one.step, one.metrics[name]) for one in history.evaluations if name in one.metrics
        ]
        axes.plot(
            [step for step, _ in points],
            [value for _, value in points],
            marker=".",
            label=printable(name),
        )
    for index, one in enumerate(replays):
        if one.stop_index is not None:
            words = ", ".join(
                f"{key.rpartition('.')[2]}={value}" for key, value in one.label.items()
            )
            label = f"{words + ': ' if words else ''}{one.verdicts[-1].reason}"
            axes.axvline(
                one.evaluations[one.stop_index].step,
                color=f"C{index + len(names)}",
                linestyle="--",
                label=label,
            )
    axes.set_xlabel("step")
    axes.set_title(history.path.name)
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: the plot cannot be written: {error}. Give a path like stops.png or stops.svg."
        ) from error
