"""`fermarsi data show`: samples of a split as they reach the network."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from harness.commands.page import figure_settings, page, section
from harness.commands.pictures import TABLE, gallery, is_picture
from harness.commands.show import write_errors
from harness.config.read import read_config
from harness.data.preparing import Feedback, Preparation, Sources, fit, open_splits
from harness.data.settings import SPLITS
from harness.data.source import Batch, class_names_of, decoded, known_of, some_of
from harness.data.split import Split
from harness.durable import replace_file
from harness.errors import ConfigError, require_choice

SHOWN = 12  # samples, where none are asked for
MOST = 240
_ASKED = re.compile(r"(\d+)(?:-(\d+))?")
_LONGEST = 4000  # characters of a text


def show_samples(path: Path, name: str, asked: Sequence[str], out: Path) -> str:
    """Write a page with samples of a split after all treatments, of the training split one draw of
    the random ones; returns what was done.

    asked: indices ("7") and ranges ("10-19", both ends included), by default some spread over the
    split, and settings ("key=value"). Raises HarnessError.
    """
    require_choice("SPLIT", name, SPLITS)
    ids = [one for one in asked if _ASKED.fullmatch(one)]
    config = read_config(path, [one for one in asked if one not in ids])
    if name not in config.data.names:
        raise ConfigError(
            f"SPLIT: {path} has no data.{name}. It has {', '.join(config.data.names)}."
        )
    sources = Sources(config.data)
    prepared = Preparation({}, {}, fit(config.data, sources, Feedback()))
    split = open_splits(config.data, [name], sources, prepared, _accept)[name]
    rows = _rows(split, ids)
    batch = split.fetch(rows, rows.astype(np.uint64), config.run.seed, training=name == "train")
    shown = Shown(split, rows, batch)
    with write_errors("--html", out), figure_settings():
        title = f"fermarsi: {len(rows)} of {len(split):,} samples of data.{name}, {path.name}"
        replace_file(out, page(title, list(shown.sections())), sync=False)
    return f"{out}: {len(rows)} of {len(split):,} samples of data.{name}, as the network gets them"


@dataclass(frozen=True)
class Shown:
    """Samples `rows` (B,) of a split, and what the network gets of them."""

    split: Split
    rows: NDArray[np.int64]
    batch: Batch

    def sections(self) -> Iterator[Markup]:
        """Shapes, a gallery of each column that can be drawn, and a table of all others."""
        columns = {name: [_plain(cell) for cell in values] for name, values in self.batch.items()}
        texts = {
            name: [self._text(name, cell) for cell in cells] for name, cells in columns.items()
        }
        drawn = [
            name
            for name, cells in columns.items()
            if texts[name][0] is None and is_picture(cells[0])
        ]
        shapes = [[name, *_form(cells[0]), _span(cells)] for name, cells in columns.items()]
        yield section(TABLE, head=["column", "type", "shape", "values"], rows=shapes)
        written = {
            name: [
                _short(_value(cell) if text is None else text)
                for cell, text in zip(cells, texts[name], strict=True)
            ]
            for name, cells in columns.items()
            if name not in drawn
        }
        single = [name for name in written if np.ndim(columns[name][0]) == 0]
        captions = [
            " ".join([f"{row}:", *(written[name][at] for name in single)])[:32]
            for at, row in enumerate(self.rows.tolist())
        ]
        for name in drawn:
            pictures = gallery(captions, columns[name], f"samples of {name}")
            yield section("<h2>{{ name }}</h2>{{ drawn }}", name=name, drawn=pictures)
        known = {
            name: [values[row] for row in self.rows.tolist()]
            for name, values in known_of(self.split.source).items()
            if name not in written
        }
        cells = zip(self.rows.tolist(), *written.values(), *known.values(), strict=True)
        yield section(TABLE, head=["sample", *written, *known], rows=list(cells))

    def _text(self, name: str, cell: Any) -> str | None:
        """What numbers stand for: tokens, or a class."""
        owners = (*reversed(self.split.treatments), self.split.source)
        if np.ndim(cell) == 0 and not isinstance(cell, str):
            for owner in owners:
                names = class_names_of(owner).get(name, [])
                if np.asarray(cell).dtype.kind in "iu" and 0 <= cell < len(names):
                    return f"{cell} ({names[int(cell)]})"
            return None
        if np.ndim(cell) == 1:
            found = (decoded(owner, name, cell) for owner in owners)
            return next((text for text in found if text is not None), None)
        return None


def _rows(split: Split, asked: Sequence[str]) -> NDArray[np.int64]:
    rows: list[int] = []
    for one in asked:
        first, last = (int(end or one.partition("-")[0]) for end in one.partition("-")[::2])
        if not first <= last < len(split):
            raise ConfigError(
                f"{one}: data has samples 0 to {len(split) - 1}. Give some of these, e.g. 3 or 3-8."
            )
        rows += range(first, last + 1)
    if len(rows) > MOST:
        raise ConfigError(f"{len(rows)} samples: at most {MOST} fit on a page. Give fewer.")
    return np.array(rows, np.int64) if rows else some_of(split.source, SHOWN)


def _plain(cell: Any) -> Any:
    return cell.numpy() if hasattr(cell, "numpy") else cell


def _form(cell: Any) -> tuple[str, str]:
    if isinstance(cell, str):
        return "text", ""
    array = np.asarray(cell)
    return str(array.dtype), " x ".join(map(str, array.shape))


def _span(cells: Sequence[Any]) -> str:
    """The lowest and highest number of these samples."""
    if isinstance(cells[0], str):
        return ""
    ends = [(np.min(cell), np.max(cell)) for cell in cells if np.size(cell)]
    return (
        f"{min(low for low, _ in ends):.4g} to {max(high for _, high in ends):.4g}" if ends else ""
    )


def _value(cell: Any) -> str:
    return cell if isinstance(cell, str) else str(np.asarray(cell).tolist()).strip("[]")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text):,} characters)"


def _accept(batch: Batch) -> None:
    """Whatever the task says of them, samples can be looked at."""
