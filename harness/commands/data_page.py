"""The checks' report as one self-contained HTML page, with pictures of samples of each class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from harness.checks.report import Finding, Report, SplitSummary
from harness.checks.roles import Roles
from harness.checks.survey import content_of
from harness.commands.page import figure_settings, page, section
from harness.commands.pictures import TABLE, draw, figure_png, is_picture
from harness.commands.show import write_errors
from harness.data.columns import Values, read_samples
from harness.wording import printable

# Shown of a split
CLASSES = 30

_FINDINGS = """<h2>Findings</h2>
{% if found %}<table>{% for one in found -%}
<tr><td class={{ one.level }}>{{ one.level }}<td>{{ one.check }}<td>{{ one.message }}<ul>
{%- for example in one.examples %}<li>{{ example }}{% endfor %}</ul>{% endfor %}</table>
{% else %}<p class=reason>No problems found.</p>{% endif %}
<ul>{% for note in notes %}<li>{{ note }}{% endfor %}</ul>"""


def write_page(
    path: Path, title: str, report: Report, sources: Mapping[str, Any], roles: Roles
) -> None:
    """Write the page.

    `sources`: by split, to read the pictured samples from. Raises ConfigError if it cannot be
    written, and DataError.
    """
    notes = [*map(str, report.summaries), *report.notes]
    sections = [
        section(_FINDINGS, found=report.findings, notes=notes),
        section("<h2>Samples</h2>{{ counts }}", counts=_counts(report.summaries)),
    ]
    with figure_settings():
        sections[1:1] = [
            section("<h2>{{ check }}</h2>{{ drawn }}", check=one.check, drawn=drawn)
            for one in report.findings
            if (drawn := _side_by_side(one, sources, roles))
        ]
        sections += [
            section(
                "<h3>data.{{ name }}</h3>{{ samples }}",
                name=one.split,
                samples=_samples(one, sources[one.split], roles),
            )
            for one in report.summaries
        ]
    with write_errors("--html", path):
        path.write_text(page(title, sections), encoding="utf-8")


def _counts(looked: Sequence[SplitSummary]) -> Markup:
    """A row per class, a column per split."""
    names = list(dict.fromkeys(name for one in looked for name in one.classes))
    if names in ([""], []):
        return Markup()
    rows = [
        [name, *(f"{one.classes.get(name, 0):,} ({_share(one, name):.1%})" for one in looked)]
        for name in names
    ]
    return section(TABLE, head=["class", *(f"data.{one.split}" for one in looked)], rows=rows)


def _share(one: SplitSummary, name: str) -> float:
    return one.classes.get(name, 0) / max(1, one.looked_at)


def _samples(one: SplitSummary, source: Any, roles: Roles) -> Markup:
    names = list(one.some)[:CLASSES]
    where = f"data.{one.split}"
    read = {name: read_samples(source, one.some[name], where) for name in names}
    first = next(iter(read.values()))
    drawable = [key for key, cells in first.items() if is_picture(cells[0])]
    pictures = [key for key in content_of(first, roles) if key in drawable]
    drawn = [
        section("<p>{{ key }}</p>{{ drawn }}", key=key, drawn=_figure(key, read))
        for key in pictures
    ]
    rest = [key for key in first if key not in drawable]
    return section(
        "{% for one in drawn %}{{ one }}{% endfor %}{{ table }}"
        "{% if more > 0 %}<p>{{ more }} more classes are not shown.</p>{% endif %}",
        drawn=drawn,
        table=Markup() if pictures else _table(read, rest),
        more=len(one.some) - CLASSES,
    )


def _side_by_side(finding: Finding, sources: Mapping[str, Any], roles: Roles) -> Markup:
    """The pairs of samples of a finding, each in a row; empty if it has none that can be drawn."""
    read: dict[str, dict[str, Values]] = {}
    for split, row, other, other_row in finding.pairs:
        both = [
            read_samples(sources[name], [at], f"data.{name}")
            for name, at in ((split, row), (other, other_row))
        ]
        shown = [key for key in content_of(both[0], roles) if is_picture(both[0][key][0])]
        if shown:
            title = f"{split} {row:,} ~ {other} {other_row:,}"
            read[title] = {shown[0]: [one[shown[0]][0] for one in both]}
    key = next((key for of in read.values() for key in of), "")
    return _figure(key, read) if read else Markup()


def _table(read: Mapping[str, Mapping[str, Values]], keys: Sequence[str]) -> Markup:
    """A row per sample."""
    rows = [
        [name, *(str(np.asarray(cell).tolist()).strip("[]") for cell in cells)]
        for name, samples in read.items()
        for cells in zip(*(samples[key] for key in keys), strict=True)
    ]
    return section(TABLE, head=["class", *keys], rows=rows)


def _figure(key: str, read: Mapping[str, Mapping[str, Values]]) -> Markup:
    """A figure with a row per class: images, the middle frames of clips, and line plots of data
    with one time axis.
    """
    from matplotlib.figure import Figure

    widest = max(len(samples[key]) for samples in read.values())
    names = [printable(name or key) for name in read]
    width = 1.3 * widest + max(1.5, 0.1 * max(map(len, names)))
    figure = Figure(figsize=(width, 1.15 * len(read) + 0.2), layout="constrained")
    axes = figure.subplots()
    for row, samples in enumerate(read.values()):
        for column, cell in enumerate(samples[key]):
            draw(axes, np.asarray(cell), column, row)
    axes.set(xlim=(0, widest), ylim=(len(read), 0), xticks=[], yticks=np.arange(len(read)) + 0.45)
    axes.set_yticklabels(names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure_png(figure, f"samples of {key}")
