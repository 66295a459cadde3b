"""Samples as pictures in a page: images, the middle frames of clips, and lines of all that has one
time axis.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from harness.commands.page import section
from harness.wording import printable

# Samples with at most this many numbers are shown as numbers; larger ones are plotted
WIDEST_ROW = 32

TABLE = (
    "<table><tr>{% for one in head %}<th>{{ one }}{% endfor %}"
    "{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}{% endfor %}{% endfor %}</table>"
)
_RGB = (3, 4)
_ACROSS = 6  # pictures of a gallery

Cell = NDArray[Any]


def is_picture(cell: Any) -> bool:
    """Whether a sample's value is drawn, not written."""
    array = np.asarray(cell)
    return array.dtype.kind in "biuf" and (array.ndim >= 2 or array.size > WIDEST_ROW)


def gallery(captions: Sequence[str], cells: Sequence[Any], alt: str) -> Markup:
    """Pictures in rows, each under its caption; made inside of `figure_settings`."""
    from matplotlib.figure import Figure

    rows = -(-len(cells) // _ACROSS)
    figure = Figure(figsize=(1.6 * _ACROSS, 1.9 * rows), layout="constrained")
    axes = figure.subplots()
    for at, (caption, cell) in enumerate(zip(captions, cells, strict=True)):
        row, column = divmod(at, _ACROSS)
        draw(axes, np.asarray(cell), column, row)
        axes.text(column, row - 0.02, printable(caption), fontsize=6.5, va="bottom")
    axes.set(xlim=(0, _ACROSS), ylim=(rows, -0.15))
    axes.set_axis_off()
    return figure_png(figure, alt)


def figure_png(figure: Any, alt: str) -> Markup:
    """A figure of matplotlib as a picture in a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return section(
        '<img alt="{{ alt }}" src="data:image/png;base64,{{ data }}">',
        alt=alt,
        data=base64.b64encode(buffer.getvalue()).decode(),
    )


def draw(axes: Any, cell: Cell, column: int, row: int) -> None:
    """Into the square [column, column + 0.9] x [row, row + 0.9]; y points down."""
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
