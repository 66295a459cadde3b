"""What a sweep sees of its trials: their evaluations as they are recorded, and their prospects."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.stopping.budget import Budget
from harness.stopping.forecast import Point, end_of, look_ahead
from harness.stopping.history import EXTRA
from harness.stopping.verdict import Evaluation, MetricInfo

# The defaults of stop.forecast
_CHANCE_BELOW, _FOR = 0.05, 3


@dataclass
class Tail:
    """The evaluations of a run's metrics.jsonl, each once, in order, as they are written."""

    path: Path
    _offset: int = 0
    _seen: int = -1  # the last step

    def read(self) -> Iterator[dict[str, Any]]:
        """Those since the last call, without extra ones, which fall on no interval's end."""
        try:
            size = self.path.stat().st_size
            if size == self._offset:
                return
            if size < self._offset:  # a launch cut back what it does again
                self._offset = 0
            with self.path.open("rb") as file:
                file.seek(self._offset)
                lines = file.read().splitlines(keepends=True)
        except OSError:
            return
        for line in lines:
            if not line.endswith(b"\n"):
                return
            self._offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:  # the offset fell into a line of a file that was cut back
                self._offset = 0
                return
            if record["kind"] == "eval" and not record.get(EXTRA) and record["step"] > self._seen:
                self._seen = record["step"]
                yield record


@dataclass
class Prospect:
    """Whether the forecasts of a run say that it will not reach a value within its budget."""

    metric: str
    info: MetricInfo
    budget: Budget
    _points: list[Point] = field(default_factory=list)
    _small: int = 0

    def take(self, record: dict[str, Any], wanted: float | None) -> bool:
        """Whether the chance to reach `wanted` was below 5 % at three forecasts in a row."""
        value = record.get(self.metric)
        if value is None or not math.isfinite(value):
            return False
        self._points.append(Point(record["step"], value, record.get("lr")))
        position = record["step"], record["epoch"], record["samples"], record["elapsed_s"] / 3600
        end = end_of(self.budget, Evaluation(*position, {}))
        if end is None or wanted is None:
            return False
        outlook = look_ahead(self.metric, self.info, self._points, end, wanted)
        small = outlook.chance is not None and outlook.chance < _CHANCE_BELOW
        self._small = self._small + 1 if small else 0
        return self._small >= _FOR
