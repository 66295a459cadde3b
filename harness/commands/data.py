"""`fermarsi data build|inspect|prune`: the store of a config."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.console
from rich.table import Table

from harness.checks.check import ORDER, check_data
from harness.checks.report import Report
from harness.checks.roles import roles_of
from harness.commands.data_page import write_page
from harness.components import TARGET
from harness.config.read import read_config
from harness.config.schema import Config
from harness.console import Console
from harness.data.preparing import Feedback, Prepared, Sources, prepare
from harness.data.split import Split
from harness.data.store import Entry, Store
from harness.errors import ConfigError


@dataclass(frozen=True)
class Listed:
    """An entry of a store, and the split of the config that uses it, if one does."""

    entry: Entry
    used_by: str

    def to_json(self) -> dict[str, Any]:
        entry = self.entry
        return {
            "key": entry.key,
            "used_by": self.used_by,
            "num_samples": entry.num_samples,
            "size_bytes": entry.size_bytes,
            "columns": dict(entry.columns),
            "made_of": dict(entry.made_of),
        }

    def row(self) -> tuple[str, ...]:
        entry = self.entry
        source = str(entry.made_of.get("source", {}).get(TARGET, "")).rpartition(".")[2]
        once = [
            str(spec[TARGET]).rpartition(".")[2] for spec in entry.made_of.get("treatments", ())
        ]
        samples = "unfinished" if entry.num_samples is None else f"{entry.num_samples:,}"
        columns = ", ".join(f"{name} ({kind})" for name, kind in entry.columns.items())
        return (
            entry.key[:12],
            self.used_by,
            samples,
            f"{entry.size_bytes / 1e6:,.1f} MB",
            " > ".join([source, *once]),
            columns,
        )


def build_store(path: Path, overrides: Sequence[str]) -> list[Listed]:
    """Build what the config's splits lack in the store; returns its entries. Raises HarnessError."""
    config, store = _read(path, overrides)
    with Console(enabled=True) as console:
        prepared = _prepare(config, Feedback(console.say, progress=console.progress))
    return _listed(store, prepared)


def inspect_store(path: Path, overrides: Sequence[str]) -> list[Listed]:
    """The entries of a config's store, and which of them its splits use; nothing is built. Raises
    HarnessError.
    """
    config, store = _read(path, overrides)
    return _listed(store, _prepare(config, Feedback(), build=False))


def prune_store(paths: Sequence[Path]) -> list[Entry]:
    """Delete the entries that no split of these configs uses.

    Raises ConfigError if they do not share one store.
    """
    read = [_read(path, ()) for path in paths]
    if len({store.directory.resolve() for _, store in read}) > 1:
        raise ConfigError("the configs name several stores. Prune one store at a time.")
    used = {
        Path(entry).name
        for config, _ in read
        for entry in _prepare(config, Feedback(), build=False).stored.values()
    }
    return read[0][1].prune(used)


def _read(path: Path, overrides: Sequence[str]) -> tuple[Config, Store]:
    config = read_config(path, overrides)
    if config.data.store is None:
        raise ConfigError(
            f"{path}: the config has no store. Set data.store.dir, in the file or as "
            "data.store.dir=runs/store."
        )
    return config, Store(config.data.store.dir)


def _prepare(config: Config, feedback: Feedback, *, build: bool = True) -> Prepared:
    names = [name for name in ("train", "val", "test") if getattr(config.data, name) is not None]
    return prepare(
        config.data, names, Sources(config.data), None, config.run.dir, feedback, build=build
    )


def _listed(store: Store, prepared: Prepared) -> list[Listed]:
    used = {Path(entry).name: name for name, entry in prepared.stored.items()}
    return [Listed(entry, used.get(entry.key, "")) for entry in store.entries()]


def check_command(path: Path, overrides: Sequence[str], as_json: bool, page: Path | None) -> int:
    """Check all splits of a config, print what was found, and write a page if one is asked for.

    Exit code: 2 if there is an error, else 0.
    """
    config = read_config(path, overrides)
    sources = Sources(config.data)
    names = [name for name in ORDER if getattr(config.data, name) is not None]
    report = check_data(
        config.data,
        config.task,
        config.stop.targets,
        {name: Split(sources[name], (), f"data.{name}", _any_batch) for name in names},
    )
    if page is not None:
        write_page(
            page,
            f"fermarsi: data of {path.name}",
            report,
            {name: sources[name] for name in names},
            roles_of(config.task),
        )
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
        rich.console.Console().print(table)
    for one in report.findings:  # outside of the table, which would break paths at its border
        print(f"{one.level}: {one.check}: {one.message}", *one.examples, sep="\n    ")
    for line in [*map(str, report.looked), *report.notes]:
        print(line)
    if not report.findings:
        print("nothing was found")


def _any_batch(batch: Any) -> None:
    """Samples are looked at as they are."""
