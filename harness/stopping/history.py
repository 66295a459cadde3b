"""The recorded evaluations of a training: from a run's metrics.jsonl, any JSON lines, or a CSV
file. No torch, no pandas, so that it starts quickly.
"""

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from harness.bounded import MAX_LINE_BYTES, open_regular, parse_json
from harness.errors import ConfigError
from harness.stopping.pairs import Deviations
from harness.stopping.verdict import Evaluation

POSITION = ("step", "epoch", "samples", "hours", "elapsed_s", "lr")
# In records of evaluations that fall on no interval's end: true
EXTRA = "extra_evaluation"
# In records of evaluations: by metric, what compares it with another evaluation in pairs
DEVIATIONS = "deviations"
_LARGEST_GROUP = 10**9
_NOT_METRICS = (*POSITION, "kind", EXTRA, DEVIATIONS, "")


@dataclass(frozen=True)
class History:
    """Evaluations in order of steps. `known`: which of epoch, samples, hours and lr every
    evaluation has.
    """

    path: Path
    evaluations: list[Evaluation]
    known: frozenset[str] = field(default_factory=frozenset)

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics, in the order of their first appearance."""
        return list(dict.fromkeys(name for one in self.evaluations for name in one.metrics))


def read_history(path: Path) -> History:
    """A history from a run's directory, JSON lines or CSV.

    Each record has a `step`, perhaps epoch, samples, hours (or elapsed_s) and lr; every other
    number is a metric. Records of other kinds than "eval" are passed over, and records of one step
    are taken together (Lightning's CSV files keep training and validation apart). Raises
    ConfigError for a file that cannot be read, records without a step and steps that go backwards.
    """
    source = path / "metrics.jsonl" if path.is_dir() else path
    if not source.is_file():
        raise ConfigError(
            f"{source}: no such file. Give a run's directory, its metrics.jsonl, or a history in "
            "JSON lines or CSV."
        )
    records: dict[int, dict[str, Any]] = {}
    last = -1
    try:
        for where, values in (
            _csv_records(source)
            if source.suffix.lower() == ".csv"
            else _json_records(source, links=source == path)
        ):
            step = _step(where, values)
            if step < last:
                raise ConfigError(
                    f"{where}: step {step} comes after step {last}: steps go backwards. Sort the "
                    "records and remove those that were undone."
                )
            known = records.setdefault(step, {})
            twice = [
                name
                for name, value in values.items()
                if name in known
                and name not in (*POSITION, DEVIATIONS)
                and not _same(value, known[name])
            ]
            if twice:
                raise ConfigError(
                    f"{where}: step {step} comes twice, with two values of {twice[0]}. Keep one "
                    "record a step."
                )
            known.update(values)
            last = step
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise ConfigError(
            f"{source}: cannot be read as a history: {error}. Give JSON lines or CSV in UTF-8."
        ) from error
    if not records:
        raise ConfigError(
            f"{source}: no evaluation in it. Give a history with at least one record."
        )
    return History(
        source,
        [_evaluation(step, values) for step, values in records.items()],
        _known_units(list(records.values())),
    )


def _json_records(path: Path, *, links: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Line, numbers and deviations of each evaluation record; half a line left by a crash at the
    end is skipped.
    """
    with TextIOWrapper(open_regular(path, links=links), encoding="utf-8") as file:
        for line_number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), ""), 1):
            where = f"{path}, line {line_number}"
            if not line.strip():
                continue
            try:
                record = parse_json(line)
            except ValueError as error:
                if not line.endswith("\n"):
                    return
                raise ConfigError(
                    f"{where}: not valid JSON: {error}. Give one JSON object a line."
                ) from error
            if not isinstance(record, dict):
                raise ConfigError(
                    f'{where}: not a JSON object. Give one object a line, such as {{"step": 100, '
                    f'"val/accuracy": 0.91}}.'
                )
            if record.get("kind", "eval") == "eval":
                extra = {EXTRA: 1.0} if record.get(EXTRA) is True else {}
                found: dict[str, Any] = {**_numbers(record, _json_number), **extra}
                if isinstance(record.get(DEVIATIONS), dict):
                    found[DEVIATIONS] = _deviations(record[DEVIATIONS])
                yield where, found


def _deviations(value: Mapping[str, Any]) -> dict[str, Deviations]:
    """Those that a run has written; anything else is passed over."""
    found = {}
    for name, one in value.items():
        match one:
            case [int() as samples, float() as scale, [*groups]] if len(groups) > 1 and all(
                type(group) is int and abs(group) < _LARGEST_GROUP for group in groups
            ):
                found[name] = Deviations(samples, scale, groups)
    return found


def _numbers(
    record: Mapping[str, Any], number_of: Callable[[Any], float | None]
) -> dict[str, float]:
    found = {name: number_of(value) for name, value in record.items()}
    return {name: number for name, number in found.items() if number is not None}


def _json_number(value: Any) -> float | None:
    """A number unchanged, null as NaN; None for anything else, which is not a metric."""
    if value is None:
        return math.nan
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _csv_records(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Line and numbers of each row; an empty cell was not measured, a column of words is not a
    metric.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        columns = [name.strip() for name in rows.fieldnames or []]
        if "step" not in columns:
            raise ConfigError(
                f"{path}: no column step (there are {', '.join(columns) or 'none'}). Name the "
                "column of optimizer steps step."
            )
        for row in rows:
            cells = {str(name).strip(): value for name, value in row.items()}
            where = f"{path}, line {rows.line_num}"
            if None in row or None in row.values():
                raise ConfigError(
                    f"{where}: {'more' if None in row else 'fewer'} cells than the header has "
                    "columns. Fix the row."
                )
            if cells.get("kind") in (None, "", "eval"):
                yield where, _numbers(cells, _cell_number)


def _cell_number(cell: str) -> float | None:
    cell = cell.strip()
    if cell.lower() in ("null", "none"):
        return math.nan
    try:
        return int(cell) if cell.lstrip("+-").isdigit() else float(cell)
    except ValueError:
        return None


def _step(where: str, values: Mapping[str, float]) -> int:
    step = values.get("step")
    if step is None or not math.isfinite(step) or step != int(step) or step < 0:
        found = (
            f"there are {', '.join(values) or 'no numbers'}" if step is None else f"step is {step}"
        )
        raise ConfigError(
            f"{where}: no step ({found}). Give each record the number of optimizer steps done, as "
            "step."
        )
    return int(step)


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _evaluation(step: int, values: Mapping[str, Any]) -> Evaluation:
    samples = values.get("samples", math.nan)
    return Evaluation(
        step=step,
        epoch=values.get("epoch", 0.0),
        samples=int(samples) if math.isfinite(samples) else 0,
        hours=values.get("hours", values.get("elapsed_s", 0.0) / 3600),
        metrics={name: float(value) for name, value in values.items() if name not in _NOT_METRICS},
        lr=values.get("lr"),
        extra=EXTRA in values,
        deviations=values.get(DEVIATIONS, {}),
    )


def _known_units(records: list[dict[str, float]]) -> frozenset[str]:
    return frozenset(
        name
        for name in ("epoch", "samples", "hours", "lr")
        if all(
            math.isfinite(one.get(name, math.nan))
            or (name == "hours" and math.isfinite(one.get("elapsed_s", math.nan)))
            for one in records
        )
    )
