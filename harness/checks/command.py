"""`fermarsi data check`: the checks of a config's data, without a training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.checks.check import ORDER, check_data
from harness.checks.page import write_page
from harness.checks.report import Report
from harness.checks.roles import roles_of
from harness.config import read_config
from harness.loading import Split
from harness.preparing import Sources


def check_command(path: Path, overrides: Sequence[str], as_json: bool, page: Path | None) -> int:
    """Check all splits of a config, print what was found, and write a page if one is asked for. Exit code: 2 if there is an error, else 0."""
    config = read_config(path, overrides)
    sources = Sources(config)
    names = [name for name in ORDER if getattr(config.data, name) is not None]
    report = check_data(config, {name: Split(sources[name], (), f"data.{name}", _any_batch) for name in names})
    if page is not None:
        write_page(page, f"fermarsi: data of {path.name}", report, {name: sources[name] for name in names}, roles_of(config.task))
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        print_report(report)
        if page is not None:
            print(f"{page}: the same with pictures")
    return 2 if report.errors() else 0


def print_report(report: Report) -> None:
    """A table of findings, each in full, then what was looked at, on standard output."""
    if report.findings:
        table = Table("", "check", "splits", "count")
        for one in report.findings:
            table.add_row(one.level, one.check, ", ".join(one.splits), f"{one.count:,}")
        Console().print(table)
    for one in report.findings:  # outside of the table, which would break paths at its border
        print(f"{one.level}: {one.check}: {one.message}", *one.examples, sep="\n    ")
    for line in [*map(str, report.looked), *report.notes]:
        print(line)
    if not report.findings:
        print("nothing was found")


def _any_batch(batch: Any) -> None:
    """Samples are looked at as they are."""
