"""One self-contained HTML page: everything inserted is escaped, nothing in it runs, and it loads
nothing.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from harness.wording import printable

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
body{color:#222}h1{margin-bottom:0}table{border-collapse:collapse}
svg{max-width:100%;height:auto}
td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}
td{font-variant-numeric:tabular-nums}
pre{background:#f5f5f5;padding:1rem;overflow:auto}.reason{font-size:1.15rem}
.error{color:#b00020;font-weight:600}.warn{color:#8a5a00;font-weight:600}
</style>
<h1>{{ title }}</h1>
{% for section in sections %}{{ section }}
{% endfor %}</html>
"""
_ENVIRONMENT = Environment(
    autoescape=True, finalize=lambda value: printable(value) if type(value) is str else value
)


def page(title: str, sections: Sequence[Markup]) -> str:
    """The whole page."""
    return _ENVIRONMENT.from_string(_PAGE).render(title=title, sections=sections)


def section(template: str, **values: Any) -> Markup:
    """A section of a page from a template of jinja2: {{ name }} is escaped, unless it is a section
    itself.
    """
    return Markup(_ENVIRONMENT.from_string(template).render(values))


def figure_svg(figure: Any) -> Markup:
    """A figure of matplotlib, made inside of `figure_settings`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


@contextmanager
def figure_settings() -> Iterator[None]:
    """Around all drawing: names are text, not formulas, whatever a matplotlibrc says, and may
    contain characters missing from the fonts.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
