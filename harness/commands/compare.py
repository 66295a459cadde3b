"""`fermarsi compare`: what differs between runs, in settings, results and time."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from harness.config.read import read_values
from harness.errors import ConfigError
from harness.rundir.ledger import ACCOUNTS
from harness.rundir.outcome import Outcome, read_outcome
from harness.tracking.records import METRICS, read_records
from harness.wording import duration, printable

_OWN = ("run.dir", "run.name")  # different by nature
_MISSING = "-"
_DURATIONS = (*ACCOUNTS, "all", "saved")

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """By row, one value for each run: `settings` that differ, `results`, and `time` in seconds."""

    runs: Sequence[Path]
    settings: Mapping[str, Sequence[Any]]
    results: Mapping[str, Sequence[Any]]
    time: Mapping[str, Sequence[Any]]

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": list(map(str, self.runs)),
            "settings": dict(self.settings),
            "results": dict(self.results),
            "time": dict(self.time),
        }

    def page(self) -> Iterator[str | Table]:
        if not self.settings:
            yield "All settings are the same."
        for title, rows in (
            ("settings that differ", self.settings),
            ("results", self.results),
            ("time", self.time),
        ):
            if rows:
                table = Table(title, *(printable(str(run)) for run in self.runs))
                for name, values in rows.items():
                    times = title == "time" and name in _DURATIONS
                    shown = (_duration(one) if times else _shown(one) for one in values)
                    table.add_row(printable(name), *map(printable, shown))
                yield table


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """What differs between runs, finished or not. Raises ConfigError and CheckpointError."""
    if len(runs) < 2:
        raise ConfigError("compare: one run. Give two or more, e.g. runs/a runs/b.")
    settings = [dict(_leaves(_config(run))) for run in runs]
    outcomes = [read_outcome(run) for run in runs]
    evaluations = [_last_evaluation(run) for run in runs]
    results = [{**_ended(one), **last} for one, last in zip(outcomes, evaluations, strict=True)]
    times = [_times(one) for one in outcomes]
    differing = {
        name: values
        for name, values in _rows(settings).items()
        if name not in _OWN and any(value != values[0] for value in values)
    }
    return Comparison(list(runs), differing, _rows(results), _rows(times))


def refuse_changes(path: Path, overrides: Sequence[str]) -> None:
    """Raise ConfigError: a run or checkpoint is evaluated as it was trained, so that none of these
    settings has an effect.
    """
    before = dict(_leaves(_config(path)))
    now = dict(_leaves(read_values(path / "config.yaml", overrides)))
    changed = [
        f"{name}: {_shown(before.get(name))} -> {_shown(now.get(name))}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    for key in (one.partition("=")[0] for one in overrides):
        if not any(one.startswith(key) for one in changed):
            changed.append(f"{key}: as it was trained")
    new = "\nOther samples: fermarsi predict --files or --source."
    reads = any(re.match(r"data\.(train|val|test)\.source", one) for one in changed)
    raise ConfigError(
        f"{path}: a network is evaluated with the settings that it was trained with, so these "
        f"have no effect:\n  " + "\n  ".join(changed) + "\nLeave them out, or train a run with "
        f"them: fermarsi train CONFIG KEY=VALUE run.dir=DIR.{new if reads else ''}"
    )


def _config(run: Path) -> Values:
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run}: no config.yaml. Give the directories of runs.")
    return read_values(run / "config.yaml")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The settings, by their keys with dots; lists of plain values as one."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(one, Mapping | list) for one in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}[{index}]")
    else:
        yield name, value


def _rows(columns: Sequence[Values]) -> dict[str, list[Any]]:
    """{name: a value for each run}, None where one has none."""
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name) for column in columns] for name in names}


def _ended(outcome: Outcome | None) -> dict[str, Any]:
    if outcome is None:
        return {"ended": "not yet"}
    ended = {
        "ended": outcome.reason,
        "step": outcome.step,
        "epoch": round(outcome.epoch, 4),
        "samples": outcome.samples,
        "processes": outcome.world_size,
        "launches": outcome.launches,
        "exact": outcome.exact,
    }
    best = outcome.best or {}
    return (
        ended | {f"best {best['metric']}": best["value"], "best at": best["step"]}
        if best
        else ended
    )


def _last_evaluation(run: Path) -> dict[str, Any]:
    last: Values = {}
    for record in read_records(run / METRICS):
        last = record if record["kind"] == "eval" else last
    return {f"last {name}": value for name, value in last.items() if "/" in name}


def _times(outcome: Outcome | None) -> dict[str, Any]:
    if outcome is None:
        return {}
    spent = {name: float(outcome.time.get(f"{name}_s", 0.0)) for name in ACCOUNTS}
    whole = {"all": sum(spent.values()), **spent, "saved": outcome.time.get("saved_s")}
    per_s = outcome.samples / spent["compute"] if spent.get("compute") else None
    return {**whole, "goodput": outcome.time.get("goodput"), "samples / compute second": per_s}


def _duration(value: float | None) -> str:
    return _MISSING if value is None else duration(value)


def _shown(value: Any) -> str:
    if value is None:
        return _MISSING
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
