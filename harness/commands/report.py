"""One self-contained HTML page about a run: why it ended, its curves, its confusion matrices, and
its time ledger.
"""

import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.document import to_yaml
from harness.config.read import read_section, read_values
from harness.durable import replace_file
from harness.errors import ConfigError
from harness.rundir.outcome import Outcome, read_outcome
from harness.stopping.settings import StopSettings
from harness.stopping.targets import expand
from harness.tracking.records import METRICS, read_records

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
body{{color:#222}}h1{{margin-bottom:0}}table{{border-collapse:collapse}}svg{{max-width:100%;height:auto}}
td,th{{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}}
pre{{background:#f5f5f5;padding:1rem;overflow:auto}}.reason{{font-size:1.15rem}}</style>
<h1>{title}</h1>{body}</html>
"""


def write_report(directory: Path) -> Path:
    """Write report.html into a run directory and return its path.

    Raises ConfigError if there is nothing to report.
    """
    records = list(read_records(directory / METRICS))
    if not records:
        raise ConfigError(
            f"{directory}: no {METRICS} with records. Give the directory of a run, e.g. "
            "runs/digits."
        )
    evaluations = [record for record in records if record["kind"] == "eval"]
    training = [record for record in records if record["kind"] == "train"]
    outcome = read_outcome(directory)
    config = directory / "config.yaml"
    sections = [
        _summary(outcome, records[-1]),
        "<h2>Curves</h2>",
        _curves(training, evaluations, _targets(read_section(config, StopSettings, stored=True))),
    ]
    tables = evaluations[-1].get("tables", {}) if evaluations else {}
    if tables:
        sections += [f"<h2>At step {evaluations[-1]['step']:,}</h2>", _confusions(tables)]
    if outcome is not None:
        sections += ["<h2>Time</h2>", _time(outcome.time)]
    sections += ["<h2>Config</h2>", f"<pre>{html.escape(to_yaml(read_values(config)))}</pre>"]
    path = directory / "report.html"
    try:
        page = PAGE.format(
            title=html.escape(f"fermarsi: {directory.name}"), body="\n".join(sections)
        )
        replace_file(path, page, sync=False)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Make the run directory writable.") from error
    return path


def _summary(outcome: Outcome | None, last: Mapping[str, Any]) -> str:
    if outcome is None:
        return f"<p class=reason>No outcome yet: the last record is of step {last['step']:,}.</p>"
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
    cells = "".join(
        f"<tr><th>{html.escape(name)}<td>{html.escape(str(value))}" for name, value in rows.items()
    )
    return (
        f"<p class=reason><b>{html.escape(outcome.reason)}</b>: "
        f"{html.escape(outcome.detail)}</p><table>{cells}</table>"
    )


def _targets(stop: StopSettings) -> dict[str, float]:
    """The bounds of the targets, by metric; a metric without a split means both splits."""
    return {
        metric: target.bound for name, target in stop.targets.items() for metric in expand(name, ())
    }


def _curves(
    training: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    targets: Mapping[str, float],
) -> str:
    names = sorted(
        {name.split("/", 1)[1] for record in evaluations for name in record if "/" in name}
        | {"loss"}
    )
    figure, grid = _figure(len(names))
    for axes, name in zip(grid, names, strict=False):
        if name == "loss":
            # Before 0.2 both means were called train/loss.
            for steps in ("train/loss", "train/loss_step"):
                if (points := _points(training, steps))[0]:
                    axes.plot(*points, color="0.8", label="training steps")
        for split, color in (("train", "tab:blue"), ("val", "tab:orange")):
            axes.plot(
                *_points(evaluations, f"{split}/{name}"), color=color, marker=".", label=split
            )
            if f"{split}/{name}" in targets:
                axes.axhline(
                    targets[f"{split}/{name}"], color=color, linestyle=":", label=f"{split} target"
                )
        axes.set(title=name, xlabel="step")
        axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _points(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    pairs = [
        (record["step"], record[name])
        for record in records
        if isinstance(record.get(name), int | float) and math.isfinite(record[name])
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _confusions(tables: Mapping[str, Any]) -> str:
    figure, grid = _figure(len(tables))
    for axes, (name, rows) in zip(grid, sorted(tables.items()), strict=False):
        matrix = np.asarray(rows, dtype=float)
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(title=name, xlabel="predicted", ylabel="true")
        if len(matrix) <= 20:
            for row, column in np.ndindex(matrix.shape):
                if matrix[row, column]:
                    color = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(
                        column,
                        row,
                        int(matrix[row, column]),
                        ha="center",
                        va="center",
                        fontsize=6,
                        color=color,
                    )
    return _svg(figure)


def _time(seconds: Mapping[str, float]) -> str:
    booked = {
        name.removesuffix("_s"): value
        for name, value in seconds.items()
        if name.endswith("_s") and name != "saved_s"
    }
    figure, (axes,) = _figure(1, height=2.6)
    axes.barh(list(booked), list(booked.values()), color="tab:blue")
    axes.invert_yaxis()
    axes.set(
        title=f"goodput {seconds.get('goodput', 0):.0%} of {sum(booked.values()):,.1f} s",
        xlabel="seconds",
    )
    return _svg(figure) + f"<!-- {json.dumps(dict(seconds))} -->"


def _figure(count: int, height: float = 3.2) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(5.2 * columns, height * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for axes in grid[count:]:
        axes.axis("off")
    return figure, grid


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
