"""The checks' report as one self-contained HTML page, with pictures of samples of each class."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.checks.report import Report, SplitSummary
from harness.checks.roles import Roles
from harness.checks.survey import content_of
from harness.commands.report import PAGE
from harness.commands.show import writing
from harness.data.columns import Values, read_samples

# Shown of a split
CLASSES = 30

# Samples with at most this many numbers are shown as numbers; larger ones are plotted
WIDEST_ROW = 32

_RGB = (3, 4)
_STYLE = (
    "<style>.error{color:#b00020;font-weight:600}.warn{color:#8a5a00;font-weight:600}"
    "td{font-variant-numeric:tabular-nums}</style>"
)


Cell = NDArray[Any]


def write_page(
    path: Path, title: str, report: Report, sources: Mapping[str, Any], roles: Roles
) -> None:
    """Write the page.

    `sources`: by split, to read the pictured samples from. Raises ConfigError if it cannot be
    written, and DataError.
    """
    parts = [_STYLE, _findings(report), "<h2>Samples</h2>", _counts(report.summaries)]
    parts += [
        f"<h3>data.{html.escape(one.split)}</h3>{_samples(one, sources[one.split], roles)}"
        for one in report.summaries
    ]
    page = PAGE.format(title=html.escape(title), body="\n".join(parts))
    with writing("--html", path):
        path.write_text(page, encoding="utf-8")


def _findings(report: Report) -> str:
    rows = []
    for one in report.findings:
        examples = "".join(f"<li>{html.escape(example)}" for example in one.examples)
        rows.append(
            f"<tr><td class={one.level}>{one.level}<td>{html.escape(one.check)}"
            f"<td>{html.escape(one.message)}<ul>{examples}</ul>"
        )
    found = f"<table>{''.join(rows)}</table>" if rows else "<p class=reason>No problems found.</p>"
    notes = "".join(
        f"<li>{html.escape(note)}" for note in [*map(str, report.summaries), *report.notes]
    )
    return f"<h2>Findings</h2>{found}<ul>{notes}</ul>"


def _counts(looked: Sequence[SplitSummary]) -> str:
    """A row per class, a column per split."""
    names = list(dict.fromkeys(name for one in looked for name in one.classes))
    if names in ([""], []):
        return ""
    head = "".join(f"<th>data.{html.escape(one.split)}" for one in looked)
    rows = [
        f"<tr><td>{html.escape(name)}"
        + "".join(f"<td>{one.classes.get(name, 0):,} ({_share(one, name):.1%})" for one in looked)
        for name in names
    ]
    return f"<table><tr><th>class{head}{''.join(rows)}</table>"


def _share(one: SplitSummary, name: str) -> float:
    return one.classes.get(name, 0) / max(1, one.looked_at)


def _samples(one: SplitSummary, source: Any, roles: Roles) -> str:
    names = list(one.some)[:CLASSES]
    where = f"data.{one.split}"
    read = {name: read_samples(source, one.some[name], where) for name in names}
    first = next(iter(read.values()))
    drawable = [key for key, cells in first.items() if _is_picture(cells[0])]
    pictures = [key for key in content_of(first, roles) if key in drawable]
    page = "".join(f"<p>{html.escape(key)}</p>{_drawn(key, read)}" for key in pictures)
    if not pictures:
        page = _table(read, [key for key in first if key not in drawable])
    if len(one.some) > CLASSES:
        page += f"<p>{len(one.some) - CLASSES:,} more classes are not shown.</p>"
    return page


def _is_picture(cell: Any) -> bool:
    array = np.asarray(cell)
    return array.dtype.kind in "biuf" and (array.ndim >= 2 or array.size > WIDEST_ROW)


def _table(read: Mapping[str, Mapping[str, Values]], keys: Sequence[str]) -> str:
    """A row per sample."""
    rows = []
    for name, samples in read.items():
        for cells in zip(*(samples[key] for key in keys), strict=True):
            texts = (str(np.asarray(cell).tolist()).strip("[]") for cell in cells)
            rows.append(
                f"<tr><td>{html.escape(name)}"
                + "".join(f"<td>{html.escape(text)}" for text in texts)
            )
    head = "".join(f"<th>{html.escape(key)}" for key in keys)
    return f"<table><tr><th>class{head}{''.join(rows)}</table>"


def _drawn(key: str, read: Mapping[str, Mapping[str, Values]]) -> str:
    """A figure with a row per class: images, the middle frames of clips, and line plots of data
    with one time axis.
    """
    from matplotlib.figure import Figure

    widest = max(len(samples[key]) for samples in read.values())
    figure = Figure(figsize=(1.3 * widest + 1.5, 1.15 * len(read) + 0.2), layout="constrained")
    axes = figure.subplots()
    for row, samples in enumerate(read.values()):
        for column, cell in enumerate(samples[key]):
            _draw(axes, np.asarray(cell), column, row)
    axes.set(xlim=(0, widest), ylim=(len(read), 0), xticks=[], yticks=np.arange(len(read)) + 0.45)
    axes.set_yticklabels([name or key for name in read])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return (
        f'<img alt="samples of {html.escape(key)}" '
        f'src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    )


def _draw(axes: Any, cell: Cell, column: int, row: int) -> None:
    """Draw into the square [column, column + 0.9] x [row, row + 0.9]; y points down."""
    if cell.ndim >= 3:
        axes.imshow(
            _picture(cell),
            cmap="gray",
            extent=(column, column + 0.9, row + 0.9, row),
            interpolation="nearest",
        )
        return
    lines = cell.reshape(-1, cell.shape[-1])[:8].astype(float)
    lines = np.where(np.isfinite(lines), lines, np.nan)
    low, high = np.nanmin(lines, initial=np.inf), np.nanmax(lines, initial=-np.inf)
    for channel, line in enumerate(lines):
        height = (line - low) / max(high - low, 1e-12)
        axes.plot(
            np.linspace(column, column + 0.9, len(line)),
            row + 0.8 - 0.7 * height,
            linewidth=0.6,
            color=f"C{channel}",
        )


def _picture(cell: Cell) -> Cell:
    """(C, H, W), or of a clip (C, T, H, W) or (T, C, H, W) the middle one -> (H, W) or (H, W, 3) in
    [0, 1].
    """
    if cell.ndim > 3:
        cell = (
            cell[:, cell.shape[1] // 2] if cell.shape[0] in (1, *_RGB) else cell[cell.shape[0] // 2]
        )
    cell = cell.reshape(-1, *cell.shape[-2:]).astype(float)
    cell = np.where(np.isfinite(cell), cell, np.nan)
    low, high = np.nanmin(cell, initial=np.inf), np.nanmax(cell, initial=-np.inf)
    scaled: Cell = np.nan_to_num((cell - low) / max(high - low, 1e-12))
    return scaled[:3].transpose(1, 2, 0) if len(scaled) in _RGB else scaled[0]
