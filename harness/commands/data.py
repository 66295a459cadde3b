"""`fermarsi data check|build|inspect|prune`: the data of a config, and its store."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from harness.checks.check import check_data
from harness.checks.report import Report
from harness.checks.roles import roles_of
from harness.commands.data_page import write_page
from harness.commands.show import Listing
from harness.components import TARGET
from harness.config.read import read_config
from harness.config.schema import Config
from harness.console import Console
from harness.data.preparing import Feedback, Sources, prepare, store_shelf
from harness.data.split import Split
from harness.data.store import Entry, Store
from harness.errors import ConfigError

COLUMNS = ("key", "split", "samples", "size", "made by", "columns")


@dataclass(frozen=True)
class StoreRow:
    """An entry of a store, and the splits of the config that use it, if any do."""

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

    def cells(self) -> tuple[str, ...]:
        """In the order of COLUMNS."""
        entry = self.entry
        source = _last_name(entry.made_of.get("source", {}))
        once = [_last_name(spec) for spec in entry.made_of.get("treatments", ())]
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


def _last_name(spec: Mapping[str, Any]) -> str:
    return str(spec.get(TARGET, "")).rpartition(".")[2]


def build_store(path: Path, overrides: Sequence[str]) -> Listing:
    """Build the entries that the config's splits lack in the store; returns all of its entries.

    Raises HarnessError.
    """
    config, store = _read(path, overrides)
    with Console(enabled=True) as console:
        prepared = _prepare(config, Feedback(console.say, progress=console.progress))
    return _listing(store, prepared)


def inspect_store(path: Path, overrides: Sequence[str]) -> Listing:
    """The entries of a config's store, and which of them its splits use; nothing is built. Raises
    HarnessError.
    """
    config, store = _read(path, overrides)
    return _listing(store, _prepare(config, Feedback(), build=False))


def prune_store(paths: Sequence[Path]) -> list[Entry]:
    """Delete the entries that no split of these configs uses.

    Raises ConfigError if they do not share one store.
    """
    read = [_read(path, ()) for path in paths]
    if len({store.directory.resolve() for _, store in read}) > 1:
        raise ConfigError("the configs name several stores. Prune one store at a time.")
    used = {key for config, _ in read for key in _prepare(config, Feedback(), build=False)}
    return read[0][1].prune(used)


def _read(path: Path, overrides: Sequence[str]) -> tuple[Config, Store]:
    config = read_config(path, overrides)
    if config.data.store is None:
        raise ConfigError(
            f"{path}: the config has no store. Set data.store.dir, in the file or as "
            "data.store.dir=runs/store."
        )
    return config, Store(config.data.store.dir)


def _prepare(
    config: Config, feedback: Feedback, *, build: bool = True
) -> Mapping[str, Sequence[str]]:
    """{name of an entry or reading in the store: the splits that use it}"""
    names = config.data.names
    assert config.data.store is not None
    sources = Sources(config.data, store_shelf(config.data.store, feedback, make=build))
    found = prepare(config.data, names, sources, None, config.run.dir, feedback, build=build)
    if config.data.store.samples:
        return {Path(entry).name: [name] for name, entry in found.stored.items()}
    splits: dict[str, list[str]] = {}
    for name in names:
        _ = sources[name]
        for reading in sources.readings[name]:
            splits.setdefault(reading, []).append(name)
    return splits


def _listing(store: Store, prepared: Mapping[str, Sequence[str]]) -> Listing:
    entries = store.entries()
    used = {key: [*splits] for key, splits in prepared.items()}
    for one in entries:
        for reading in one.made_of.get("readings", ()):
            used.setdefault(reading, []).extend(used.get(one.key, ()))
    rows = [StoreRow(one, ", ".join(sorted(used.get(one.key, ())))) for one in entries]
    return Listing("store", COLUMNS, rows)


@dataclass(frozen=True)
class CheckResult:
    """The findings of the checks, and the page with pictures, if one was written."""

    report: Report
    written: Path | None

    @property
    def exit_code(self) -> int:
        """2 if there is an error."""
        return 2 if self.report.errors() else 0

    def to_json(self) -> dict[str, Any]:
        return self.report.to_json()

    def page(self) -> Iterator[str | Table]:
        """A table of the findings, each in full, then what was checked."""
        report = self.report
        if report.findings:
            table = Table("", "check", "splits", "count")
            for one in report.findings:
                table.add_row(one.level, one.check, ", ".join(one.splits), f"{one.count:,}")
            yield table
        # Outside of the table, which would break paths at its border
        for one in report.findings:
            yield "\n    ".join([f"{one.level}: {one.check}: {one.message}", *one.examples])
        yield from [*map(str, report.summaries), *report.notes]
        if not report.findings:
            yield "no problems found"
        if self.written is not None:
            yield f"{self.written}: this report with pictures"


def check_config(path: Path, overrides: Sequence[str], html: Path | None) -> CheckResult:
    """Check all splits of a config, and write a page with pictures to `html`.

    Raises HarnessError.
    """
    config = read_config(path, overrides)
    store, names = config.data.store, config.data.names
    sources = Sources(config.data, None if store is None else store_shelf(store, Feedback()))
    report = check_data(
        config.data,
        config.task,
        config.stop.targets,
        {name: Split(sources[name], (), f"data.{name}", _any_batch) for name in names},
        thorough=True,
    )
    if html is not None:
        pictured = {name: sources[name] for name in names}
        title = f"fermarsi: data of {path.name}"
        write_page(html, title, report, pictured, roles_of(config.task))
    return CheckResult(report, html)


def _any_batch(batch: Any) -> None:
    """Accepts any samples: they are checked before any treatment."""
