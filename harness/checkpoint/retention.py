"""Which checkpoints are kept and which is best: pure functions of their manifests."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.errors import ConfigError
from harness.stopping.budget import Every

# Of a manifest's facts: the metric by which its run ranked checkpoints, and its mode
RANKED_BY = "ranked_by"


@dataclass(frozen=True)
class Ranking:
    """How checkpoints are ranked: by a metric of their manifests.

    An earlier one wins a tie; NaN is never best. `chosen`: the step of the best, where noise has a
    say in it.
    """

    metric: str
    mode: Literal["max", "min"]
    chosen: int | None = None


def ranking_of(facts: Mapping[str, Any]) -> Ranking | None:
    """How the run that wrote a manifest ranked its checkpoints; None if not at all, or if it does
    not say so, like manifests of 0.1.0.
    """
    match facts.get(RANKED_BY):
        case (str() as metric, "max" | "min" as mode):
            return Ranking(metric, mode)
        case (str() as metric, "max" | "min" as mode, int() as chosen):
            return Ranking(metric, mode, chosen)
    return None


@dataclass(frozen=True)
class KeptCheckpoint:
    """What retention needs to know of a valid checkpoint."""

    step: int
    epoch: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Retention:
    """Keep the newest `keep_last`, the best `keep_best`, and the first of each stretch of
    `keep_every` epochs or steps.
    """

    keep_last: int = 2
    keep_best: int = 1
    keep_every: Every | None = None

    def __post_init__(self) -> None:
        if self.keep_last < 1 or self.keep_best < 0:
            raise ConfigError("checkpoint: keep_last must be at least 1 and keep_best at least 0.")

    def to_delete(
        self, checkpoints: Sequence[KeptCheckpoint], ranked_by: Ranking | None, committed: int
    ) -> list[int]:
        """The steps that may go, oldest first; never the newest, the best, or the one just
        `committed`.
        """
        ordered = sorted(checkpoints, key=lambda one: one.step)
        kept = {one.step for one in ordered[-self.keep_last :]} | {committed}
        kept.update(best_first(ordered, ranked_by)[: max(1, self.keep_best)])
        if self.keep_every is not None:
            stretches: dict[int, int] = {}
            for one in ordered:
                stretches.setdefault(_stretch(one, self.keep_every), one.step)
            kept.update(step for stretch, step in stretches.items() if stretch > 0)
        return [one.step for one in ordered if one.step not in kept]


def best_first(checkpoints: Sequence[KeptCheckpoint], ranked_by: Ranking | None) -> list[int]:
    """Steps of the checkpoints that have the metric, best first."""
    if ranked_by is None:
        return []
    sign = -1.0 if ranked_by.mode == "max" else 1.0
    values = [(sign * one.metrics.get(ranked_by.metric, math.nan), one.step) for one in checkpoints]
    ranked = [step for value, step in sorted(pair for pair in values if not math.isnan(pair[0]))]
    return sorted(ranked, key=lambda step: step != ranked_by.chosen)


def _stretch(checkpoint: KeptCheckpoint, every: Every) -> int:
    if every.steps is not None:
        return checkpoint.step // every.steps
    assert every.epochs is not None
    return checkpoint.epoch // every.epochs
