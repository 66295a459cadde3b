"""Detection of divergence: metrics past a bound at evaluations, training losses at log points."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from harness.settings import Section
from harness.stopping.best import BestSoFar
from harness.stopping.judge import Finding, Judge, problems_of
from harness.stopping.verdict import Evaluation, LoggedSteps, MetricInfo, Metrics, Mode, show


class Divergence(Section):
    """A metric past a bound, or `ratio_to_best` times worse than its best so far."""

    metric: str = Field(description="A metric with its split, e.g. val/loss.")
    above: float | None = Field(None, description="Diverged when the metric is above this.")
    below: float | None = Field(None, description="Diverged when the metric is below this.")
    ratio_to_best: float | None = Field(
        None,
        gt=1,
        description="Diverged when the metric is this many times worse than its best so far.",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("above", "below", "ratio_to_best")
        return self

    def problems(self, where: str, info: MetricInfo) -> Iterator[str]:
        """What contradicts its metric's declaration."""
        if self.above is not None:
            side, other, limit, better = "above", "below", info.upper, "more"
            beyond = limit is not None and self.above >= limit
        elif self.below is not None:
            side, other, limit, better = "below", "above", info.lower, "less"
            beyond = limit is not None and self.below <= limit
        else:
            return
        if better == info.better:
            yield (
                f"{where}.{side}: of {self.metric} {better} is better. Write {other}, or "
                "ratio_to_best."
            )
        elif limit is not None and beyond:
            direction = "lower" if side == "above" else "higher"
            yield (
                f"{where}.{side}: {self.metric} is never {side} {show(limit)}. Give a {direction} "
                "bound."
            )


class Spike(Section):
    """A training loss more than `z` robust standard deviations above the median of the `steps`
    steps before it.
    """

    z: float = Field(
        10.0,
        gt=0,
        description="The number of robust standard deviations above the median that make a spike.",
    )
    steps: int = Field(
        100, ge=10, description="The number of steps over which the median is taken."
    )
    action: Literal["warn", "stop"] = Field("warn", description="What to do about a spike.")


def _non_finite_loss(evaluation: Evaluation) -> str | None:
    """A sentence on the first non-finite loss of an evaluation."""
    for name, value in evaluation.metrics.items():
        if (name == "loss" or name.endswith("/loss")) and not math.isfinite(value):
            return f"{name} is {show(value)} at step {evaluation.step:,}"
    return None


class RunningBound:
    """A metric that must not pass a bound, or become so many times worse than its best so far."""

    def __init__(self, settings: Divergence, mode: Mode) -> None:
        self._settings = settings
        self._best = BestSoFar(settings.metric, mode)

    def take(self, evaluation: Evaluation) -> Finding:
        """Stops if the metric diverged; warns if the ratio has no meaning here."""
        name, step = self._settings.metric, f"{evaluation.step:,}"
        value = evaluation.metrics.get(name)
        if value is None:
            return Finding()
        if math.isnan(value):
            return Finding(f"{name} is undefined (NaN) at step {step}")
        above, below = self._settings.above, self._settings.below
        for side, bound in (("above", above), ("below", below)):
            if bound is not None and (value > bound if side == "above" else value < bound):
                return Finding(
                    f"{name} {show(value, bound)} is {side} {show(bound, value)} at step {step}"
                )
        known, ratio = self._best.best, self._settings.ratio_to_best
        self._best.take(evaluation)
        if ratio is None or known is None:
            return Finding()
        best = known.value
        if best <= 0:
            warning = (
                f"{name}: ratio_to_best means nothing for a best of {show(best)} (step {step}). "
                "Give above or below instead."
            )
            return Finding(warnings=[warning])
        if self._best.mode == "min":
            past, words = value > ratio * best, f"above {show(ratio)} times its best {show(best)}"
        else:
            past, words = (
                value * ratio < best,
                f"below its best {show(best)} divided by {show(ratio)}",
            )
        return Finding(f"{name} {show(value)} is {words} at step {step}" if past else None)


class DivergenceJudge(Judge):
    """Stops at a loss that is not finite, and when one of the bounds is passed."""

    reason = "diverged"
    of_metrics = False

    def __init__(self, settings: Sequence[Divergence], metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._bounds = [
            RunningBound(one, metrics[one.metric].mode) for one in settings if one.metric in metrics
        ]

    def problems(self) -> Iterator[str]:
        return problems_of("divergence", self._settings, self._metrics)

    def metrics(self) -> set[str]:
        return {one.metric for one in self._settings}

    def take(self, evaluation: Evaluation) -> Finding:
        findings = [bound.take(evaluation) for bound in self._bounds]
        stops = [_non_finite_loss(evaluation), *(one.stop for one in findings)]
        return Finding(
            next(filter(None, stops), None),
            warnings=[warning for one in findings for warning in one.warnings],
        )


# The standard deviation of a normal distribution whose median absolute deviation is 1
_MAD_TO_SIGMA = 1.4826
# Of the median: a loss that has stood still is not said to spike at its first tremble
_LEAST_SIGMA = 1e-3


class LossWatch:
    """The training losses, step by step: non-finite, spiking, or skipped too many times in a row by
    the fp16 scaler.
    """

    def __init__(self, spike: Spike | None, skipped_steps: int) -> None:
        self._spike = spike
        self._limit = skipped_steps
        self._skipped = 0
        self._losses: deque[float] = deque()
        self._sorted: list[float] = []

    def take(self, steps: LoggedSteps) -> Finding:
        """Stops if the training diverged in these steps."""
        spikes: list[tuple[float, str]] = []
        for step, (loss, norm, skipped) in enumerate(
            zip(steps.losses, steps.grad_norms, steps.skipped, strict=True), steps.first_step
        ):
            self._skipped = self._skipped + 1 if skipped else 0
            if self._skipped >= self._limit:
                return Finding(
                    f"the fp16 scaler skipped {self._skipped} steps in a row, up to step "
                    f"{step:,}: gradients overflow at any scale"
                )
            if skipped:
                continue  # the parameters did not change: the scaler deals with it
            if not math.isfinite(loss):
                rank = steps.offenders.get(step)
                where = "" if rank is None else f" on rank {rank}"
                return Finding(f"the training loss is {show(loss)} at step {step:,}{where}")
            if not math.isfinite(norm):
                return Finding(f"the gradient norm is {show(norm)} at step {step:,}")
            if self._spike is not None:
                spikes += self._take_loss(self._spike, step, loss)
                if spikes and self._spike.action == "stop":
                    return Finding(spikes[0][1])
        if not spikes:
            return Finding()
        others = f"; {len(spikes)} spikes since step {steps.first_step:,}" if spikes[1:] else ""
        return Finding(warnings=[f"{max(spikes)[1]}{others}."])

    def _take_loss(self, spike: Spike, step: int, loss: float) -> Iterator[tuple[float, str]]:
        """The robust z-score of a loss that spikes (Iglewicz & Hoaglin, "How to detect and handle
        outliers", 1993), and a sentence on it.
        """
        if len(self._losses) == spike.steps:
            middle = _median(self._sorted)
            deviation = _median(sorted(abs(one - middle) for one in self._sorted))
            sigma = max(_MAD_TO_SIGMA * deviation, _LEAST_SIGMA * abs(middle))
            if loss - middle > spike.z * sigma and sigma > 0:
                z = (loss - middle) / sigma
                yield (
                    z,
                    f"the training loss {show(loss)} at step {step:,} is {show(z, spike.z)} robust "
                    f"standard deviations above the median {show(middle)} of the {spike.steps} "
                    f"steps before (limit: {show(spike.z)})",
                )
            del self._sorted[bisect_left(self._sorted, self._losses.popleft())]
        self._losses.append(loss)
        insort(self._sorted, loss)

    def state(self) -> dict[str, Any]:
        return {"skipped": self._skipped, "losses": list(self._losses)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`, under the current settings."""
        self._skipped = state["skipped"]
        kept = state["losses"][-self._spike.steps :] if self._spike is not None else []
        self._losses, self._sorted = deque(kept), sorted(kept)


def _median(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
