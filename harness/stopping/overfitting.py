"""Overfitting: validation that stays behind training by more than is borne."""

import math
from collections.abc import Iterator

from pydantic import Field

from harness.settings import Section
from harness.stopping.judge import Finding, Judge, unknown_metric
from harness.stopping.verdict import SIGNS, Evaluation, Metrics, show


class Gap(Section):
    """How far a metric may be worse in validation than in training, and for how long."""

    metric: str = Field(description="A metric without its split, e.g. loss.")
    above: float = Field(ge=0, description="Overfitting when the gap is above this.")
    for_: int = Field(1, ge=1, alias="for", description="The number of consecutive intervals.")


class OverfittingJudge(Judge):
    """Stops when the gap was above its bound at so many evaluations in a row."""

    reason = "overfitting"
    of_intervals = True

    def __init__(self, settings: Gap | None, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._above = 0

    def problems(self) -> Iterator[str]:
        if self._settings is None:
            return
        name, where = self._settings.metric, "stop.gap"
        if name.startswith(("train/", "val/")):
            yield (
                f"{where}.metric: {name}: a gap is between train/ and val/. Write "
                f"{name.partition('/')[2]}."
            )
            return
        yield from unknown_metric(f"{where}.metric", name, self._metrics, sorted(self.metrics()))
        info = self._metrics.get(f"val/{name}")
        if info is None or info.upper is None or info.lower is None:
            return
        if self._settings.above >= info.upper - info.lower:
            yield (
                f"{where}.above: {name} is bounded by {show(info.lower)} and {show(info.upper)}: "
                f"no gap is above {show(self._settings.above)}. Give a smaller one."
            )

    def metrics(self) -> set[str]:
        name = None if self._settings is None else self._settings.metric
        return set() if name is None else {f"train/{name}", f"val/{name}"}

    def take(self, evaluation: Evaluation) -> Finding:
        if self._settings is None:
            return Finding()
        one, values = self._settings, evaluation.metrics
        train, val = (values.get(f"{split}/{one.metric}") for split in ("train", "val"))
        if train is None or val is None:
            return Finding()
        gap = (train - val) * SIGNS[self._metrics[f"val/{one.metric}"].mode]
        # Two infinities have no gap
        self._above = self._above + 1 if not math.isnan(gap) and gap > one.above else 0
        if not self._above:
            return Finding()
        words = (
            f"val/{one.metric} ({show(val)}) is {show(gap, one.above)} worse than "
            f"train/{one.metric} ({show(train)}); the gap has been above {show(one.above)} at "
            f"{self._above} of {one.for_} consecutive evaluations"
        )
        stops = self._above >= one.for_
        return Finding(f"{words} (step {evaluation.step:,})" if stops else None, words)
