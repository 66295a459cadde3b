"""What came out of many runs: rows for a table, a Parquet file and a page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from harness.rundir.outcome import read_outcome
from harness.search.study import Study
from harness.stopping.verdict import SIGNS
from harness.wording import printable

_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "unfinished"}


@dataclass(frozen=True)
class Trial:
    """One trial. `value`: the best of a complete one, the last of a pruned one, NaN without one;
    `curve`: value by number of evaluations.
    """

    number: int
    state: str
    value: float
    values: Mapping[str, str]
    reason: str
    curve: Mapping[int, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; a value that is not there is null."""
        value = self.value if math.isfinite(self.value) else None
        return {
            "trial": self.number,
            "state": self.state,
            "value": value,
            "evaluations": max(self.curve, default=0),
            "reason": self.reason,
            **self.values,
        }


@dataclass(frozen=True)
class Trials:
    """All trials of a sweep, by number."""

    directory: Path
    metric: str
    mode: str
    trials: Sequence[Trial]

    @classmethod
    def of(cls, study: Study, directory: Path) -> "Trials":
        """As the study has them. Raises CheckpointError for an outcome that is not one."""
        found = []
        for one in study.trials():
            if one.state.name not in _STATES:
                continue
            outcome = read_outcome(directory / f"trial-{one.number:04}")
            last = list(one.intermediate_values.values())[-1:] or [math.nan]
            complete = one.state.name == "COMPLETE" and one.values is not None
            found.append(
                Trial(
                    one.number,
                    _STATES[one.state.name],
                    one.values[0] if complete else last[0],
                    {name: str(value) for name, value in one.params.items()},
                    "" if outcome is None else outcome.reason,
                    one.intermediate_values,
                )
            )
        return cls(directory, study.design.metric, study.design.info.mode, found)

    def ranked(self) -> list[Trial]:
        """The complete ones first, the best of them first."""
        sign = SIGNS["max" if self.mode == "max" else "min"]
        order = {"complete": 0, "pruned": 1, "unfinished": 2, "failed": 3}
        return sorted(
            self.trials,
            key=lambda one: (
                order[one.state],
                math.isnan(one.value),
                -sign * one.value,
                one.number,
            ),
        )

    def were_too_short(self) -> bool:
        """Whether all trials ended by themselves at their first evaluation."""
        return all(one.state == "complete" and len(one.curve) < 2 for one in self.trials)

    def keys(self) -> list[str]:
        """What the trials vary."""
        return list(dict.fromkeys(key for one in self.trials for key in one.values))

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        best = next((one for one in self.ranked() if one.state == "complete"), None)
        return {
            "metric": self.metric,
            "mode": self.mode,
            "best": None if best is None else best.number,
            "trials": [one.to_json() for one in self.trials],
        }

    def page(self) -> Iterator[str | Table]:
        """For people: the best first."""
        keys = self.keys()
        table = Table("trial", "", self.metric, "evaluations", *map(printable, keys))
        for one in self.ranked():
            value = f"{one.value:.6g}" if math.isfinite(one.value) else ""
            cells = [str(one.number), one.state, value, str(max(one.curve, default=0))]
            table.add_row(*cells, *(printable(_short(one.values.get(key, ""))) for key in keys))
        yield table
        yield f"{self.directory}: trials.parquet, sweep.html, and a run a trial"

    def write_parquet(self, path: Path) -> None:
        """One row a trial; what is varied as numbers where all of it are. Raises OSError."""
        import pyarrow as pa
        from pyarrow import parquet

        rows = [one.to_json() for one in self.trials]
        columns: dict[str, list[Any]] = {}
        for key in rows[0] if rows else ():
            cells = [row.get(key) for row in rows]
            columns[key] = _numbers(cells) if key in self.keys() else cells
        parquet.write_table(pa.table(columns), path)


def _numbers(cells: list[Any]) -> list[Any]:
    try:
        return [None if cell is None else float(cell) for cell in cells]
    except ValueError:
        return cells


def _short(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text
