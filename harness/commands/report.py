"""One self-contained HTML page about a run: why it ended, its curves, its confusion matrices, and
its time ledger.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from harness.commands.curve import MOST_POINTS, Curve
from harness.commands.forecast import forecasts
from harness.commands.page import figure_settings, figure_svg, page, section
from harness.config.document import to_yaml
from harness.config.read import read_section, read_values
from harness.durable import replace_file
from harness.errors import ConfigError
from harness.rundir.ledger import ACCOUNTS
from harness.rundir.outcome import Outcome, read_outcome
from harness.stopping.forecast import BUDGET_SPENT, Outlook
from harness.stopping.history import read_history
from harness.stopping.settings import StopSettings
from harness.stopping.targets import expand
from harness.tracking.records import METRICS, class_names, read_records
from harness.tracking.tables import read_table
from harness.wording import printable

# Names of metrics that are drawn, and classes of a table; reports are for people
MAX_CURVES = 60
MAX_CLASSES = 1000
_MAX_TABLES = 12
_MOST_NAMES = 40  # beside a matrix
_LARGEST = 1e100  # that can be drawn
_SUMMARY = """<p class=reason><b>{{ reason }}</b>: {{ detail }}</p>
<table>{% for name, value in rows.items() %}<tr><th>{{ name }}<td>{{ value }}{% endfor %}</table>"""

_CURVES = """<h2>Curves</h2>{{ curves }}
<ul>{% for one in said %}<li>{{ one }}{% endfor %}</ul>"""


def write_report(directory: Path) -> Path:
    """Write report.html into a run directory and return its path.

    Raises ConfigError if there is nothing to report.
    """
    history = RecordSummary.read(directory / METRICS)
    if history.last is None:
        raise ConfigError(
            f"{directory}: no {METRICS} with records. Give the directory of a run, e.g. "
            "runs/digits."
        )
    outcome = read_outcome(directory)
    config = directory / "config.yaml"
    stop = read_section(config, StopSettings, stored=True)
    targets, outlooks = _targets(stop), _outlooks(directory, stop, history)
    with figure_settings():
        sections = [
            _summary(outcome, history.last),
            section(_CURVES, curves=_curves(history, targets, outlooks), said=_said(outlooks)),
        ]
        tables = history.evaluation.get("tables", {})
        if tables:
            sections.append(
                section(
                    "<h2>At step {{ step }}</h2>{{ tables }}",
                    step=f"{history.evaluation['step']:,}",
                    tables=_confusions(directory, tables, history.classes),
                )
            )
        if outcome is not None:
            sections.append(_time(outcome.time))
    sections.append(
        section("<h2>Config</h2><pre>{{ text }}</pre>", text=to_yaml(read_values(config)))
    )
    path = directory / "report.html"
    try:
        replace_file(path, page(f"fermarsi: {directory.name}", sections), sync=False)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Make the run directory writable.") from error
    return path


def _summary(outcome: Outcome | None, last: Mapping[str, Any]) -> Markup:
    if outcome is None:
        return section(
            "<p class=reason>No outcome yet: the last record is of step {{ step }}.</p>",
            step=f"{last['step']:,}",
        )
    best, saved_s = outcome.best, outcome.time.get("saved_s", 0.0)
    kept = "none"
    if best:
        kept = (
            f"{best['metric']} {best['value']:.6g} at step {best['step']:,}: {best['checkpoint']}"
        )
    rows = {
        "step": f"{outcome.step:,} (epoch {outcome.epoch:.2f}, {outcome.samples:,} samples)",
        "best": kept,
        "last checkpoint": outcome.checkpoint or "none",
        "processes": f"{outcome.world_size}, launch {outcome.launches}",
        "time saved": f"about {saved_s:,.1f} s of training before the budget's end",
        "exact": f"{'yes' if outcome.exact else 'no'}: {outcome.exact_reason}",
    }
    return section(_SUMMARY, reason=outcome.reason, detail=outcome.detail, rows=rows)


def _targets(stop: StopSettings) -> dict[str, float]:
    """The bounds of the targets, by metric; a metric without a split means both splits."""
    return {
        metric: target.bound for name, target in stop.targets.items() for metric in expand(name, ())
    }


def _outlooks(directory: Path, stop: StopSettings, seen: "RecordSummary") -> dict[str, Outlook]:
    """The forecasts of a run, by metric; none where there is nothing to forecast, the history
    cannot be read as one, or is too long to be held in memory.
    """
    if any(len(curve.steps) >= MOST_POINTS for curve in seen.evaluated.values()):
        return {}
    try:
        return {one.metric: one for one in forecasts(read_history(directory), stop, None)}
    except ConfigError:
        return {}


@dataclass
class RecordSummary:
    """What a report shows of a run's records, in bounded memory whatever their number.

    `training`, `evaluated`: curves by metric; `last`: the last record; `evaluation`: the last
    evaluation, {} without one; `classes`: names by table, where the run knows them.
    """

    training: dict[str, Curve] = field(default_factory=dict)
    evaluated: dict[str, Curve] = field(default_factory=dict)
    last: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "RecordSummary":
        """Raises ConfigError for records that cannot be read."""
        found = cls()
        for record in read_records(path):
            found.last = record
            if record.get("event") == "launch":
                found.classes = class_names(record)
            if record["kind"] == "train":
                # Before 0.2 both means were called train/loss.
                _extend(found.training, record, ("train/loss", "train/loss_step"))
            elif record["kind"] == "eval":
                found.evaluation = record
                _extend(found.evaluated, record, [name for name in record if "/" in name])
        return found


def _extend(curves: dict[str, Curve], record: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        value = record.get(name)
        curve = curves.setdefault(name, Curve())
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if -_LARGEST < value < _LARGEST:
            curve.add(record["step"], float(value))


def _curves(
    history: RecordSummary, targets: Mapping[str, float], outlooks: Mapping[str, Outlook]
) -> Markup:
    found = sorted({name.split("/", 1)[1] for name in history.evaluated} | {"loss"})
    names = found[:MAX_CURVES]
    figure, grid = _figure(len(names))
    for axes, name in zip(grid, names, strict=False):
        if name == "loss":
            for curve in history.training.values():
                if curve.steps:
                    axes.plot(curve.steps, curve.values, color="0.8", label="training steps")
        for split, color in (("train", "tab:blue"), ("val", "tab:orange")):
            curve = history.evaluated.get(f"{split}/{name}", Curve())
            axes.plot(curve.steps, curve.values, color=color, marker=".", label=split)
            outlook = outlooks.get(f"{split}/{name}")
            if outlook is not None and not outlook.abstains and curve.steps:
                _draw_fan(axes, curve, outlook, color)
            if f"{split}/{name}" in targets:
                axes.axhline(
                    targets[f"{split}/{name}"], color=color, linestyle=":", label=f"{split} target"
                )
        axes.set(title=printable(name)[:80], xlabel="step")
        axes.legend(frameon=False, fontsize=8)
    more = len(found) - len(names)
    left_out = f"{more:,} more metrics are not drawn." if more else ""
    return figure_svg(figure) + section("<p>{{ left_out }}</p>", left_out=left_out)


def _said(outlooks: Mapping[str, Outlook]) -> list[str]:
    """The forecasts in words, unless the budget is spent."""
    return [one.words() for one in outlooks.values() if one.abstains != BUDGET_SPENT]


def _draw_fan(axes: Any, curve: Curve, outlook: Outlook, color: str) -> None:
    """From the last value to where the metric will be at the end of the budget, at 95 %."""
    begin, value = curve.steps[-1], curve.values[-1]
    steps, lows, highs = zip((begin, value, value), *outlook.fan, strict=True)
    axes.fill_between(steps, lows, highs, color=color, alpha=0.2, label="95 %")


def _confusions(
    directory: Path, tables: Mapping[str, Any], classes: Mapping[str, Sequence[str]]
) -> Markup:
    """Of the tables that are square and small enough to read."""
    matrices = {
        name: matrix
        for name, rows in sorted(tables.items())[:_MAX_TABLES]
        if (matrix := _matrix(read_table(directory, rows))) is not None
    }
    if not matrices:
        return section("<p>No table that can be drawn.</p>")
    figure, grid = _figure(len(matrices))
    for axes, (name, matrix) in zip(grid, matrices.items(), strict=False):
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(title=printable(name)[:80], xlabel="predicted", ylabel="true")
        names = classes.get(name.partition("/")[2], ())
        if len(names) == len(matrix) <= _MOST_NAMES:
            shown = [printable(one)[:20] for one in names]
            axes.set_xticks(range(len(names)), shown, rotation=90, fontsize=7)
            axes.set_yticks(range(len(names)), shown, fontsize=7)
        if len(matrix) <= 20:
            for row, column in np.argwhere(matrix):
                axes.text(
                    column,
                    row,
                    f"{matrix[row, column]:.0f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if shares[row, column] > 0.5 else "black",
                )
    return figure_svg(figure)


def _matrix(rows: Any) -> NDArray[np.float64] | None:
    if not isinstance(rows, list | np.ndarray) or not 0 < len(rows) <= MAX_CLASSES:
        return None
    try:
        matrix = np.asarray(rows, dtype=np.float64)
    except (ValueError, TypeError):
        return None
    fits = matrix.shape == (len(rows),) * 2 and bool((np.abs(matrix) < _LARGEST).all())
    return matrix if fits else None


def _time(seconds: Mapping[str, float]) -> Markup:
    booked = {
        name: seconds[f"{name}_s"]
        for name in ACCOUNTS
        if 0 <= seconds.get(f"{name}_s", -1) < _LARGEST
    }
    figure, (axes,) = _figure(1, height=2.6)
    axes.barh(list(booked), list(booked.values()), color="tab:blue")
    axes.invert_yaxis()
    axes.set(
        title=f"goodput {seconds.get('goodput', 0):.0%} of {sum(booked.values()):,.1f} s",
        xlabel="seconds",
    )
    return section(
        "<h2>Time</h2>{{ drawn }}<p>{{ booked }}</p>",
        drawn=figure_svg(figure),
        booked=", ".join(f"{name} {value:,.1f} s" for name, value in booked.items()),
    )


def _figure(count: int, height: float = 3.2) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(5.2 * columns, height * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for axes in grid[count:]:
        axes.axis("off")
    return figure, grid
