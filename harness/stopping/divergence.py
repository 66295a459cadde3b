"""Running watches for trainings that go wrong: metrics past a bound at evaluations, training losses
at log points.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from harness.settings import _Settings
from harness.stopping.best import BestSoFar
from harness.stopping.verdict import Evaluation, MetricInfo, Mode, Window, show


class Divergence(_Settings):
    """A metric past a bound, or `ratio_to_best` times worse than its best so far."""

    metric: str = Field(description="A metric with its split, e.g. val/loss.")
    above: float | None = Field(None, description="Diverged when the metric is above this.")
    below: float | None = Field(None, description="Diverged when the metric is below this.")
    ratio_to_best: float | None = Field(
        None,
        gt=1,
        description="Diverged when the metric is so many times worse than its best so far.",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("above", "below", "ratio_to_best")
        return self


def _of_divergence(where: str, divergence: Divergence, info: MetricInfo) -> Iterator[str]:
    if divergence.above is not None:
        if info.mode == "max":
            yield (
                f"{where}.above: of {divergence.metric} more is better. Write below, or "
                "ratio_to_best."
            )
        elif info.upper is not None and divergence.above >= info.upper:
            yield (
                f"{where}.above: {divergence.metric} is never above {show(info.upper)}. Give a "
                "lower bound."
            )
    if divergence.below is not None:
        if info.mode == "min":
            yield (
                f"{where}.below: of {divergence.metric} less is better. Write above, or "
                "ratio_to_best."
            )
        elif info.lower is not None and divergence.below <= info.lower:
            yield (
                f"{where}.below: {divergence.metric} is never below {show(info.lower)}. Give a "
                "higher bound."
            )


class Spike(_Settings):
    """A training loss more than `z` robust standard deviations above the median of the `steps`
    steps before it.
    """

    z: float = Field(
        10.0, gt=0, description="How many robust standard deviations above the median make a spike."
    )
    steps: int = Field(100, ge=10, description="How many steps the median is of.")
    action: Literal["warn", "stop"] = Field("warn", description="What follows from a spike.")


_MAD_TO_SIGMA = 1.4826  # of a normal distribution


# Of the median: a loss that has stood still is not said to spike at its first tremble
_LEAST_SIGMA = 1e-3


def lost_loss(evaluation: Evaluation) -> str | None:
    """A sentence on the first loss of an evaluation that is not finite."""
    for name, value in evaluation.metrics.items():
        if (name == "loss" or name.endswith("/loss")) and not math.isfinite(value):
            return f"{name} is {show(value)} at step {evaluation.step:,}"
    return None


class BoundJudge:
    """A metric that must not pass a bound, or not become so many times worse than its best before."""

    def __init__(self, settings: Divergence, mode: Mode) -> None:
        self._settings = settings
        self._best = BestSoFar(settings.metric, mode)

    def take(self, evaluation: Evaluation) -> tuple[str | None, str | None]:
        """(a sentence if the metric diverged, a warning if the ratio has no meaning here)."""
        value = evaluation.metrics.get(self._settings.metric)
        if value is None:
            return None, None
        name, step = self._settings.metric, f"{evaluation.step:,}"
        if math.isnan(value):
            return f"{name} is undefined (NaN) at step {step}", None
        above, below, ratio = (
            self._settings.above,
            self._settings.below,
            self._settings.ratio_to_best,
        )
        if above is not None and value > above:
            return f"{name} {show(value, above)} is above {show(above, value)} at step {step}", None
        if below is not None and value < below:
            return f"{name} {show(value, below)} is below {show(below, value)} at step {step}", None
        best = self._best.value
        self._best.take(evaluation)
        if ratio is None or best is None:
            return None, None
        if best <= 0:
            return (
                None,
                f"{name}: ratio_to_best means nothing for a best of {show(best)} (step {step}). "
                "Give above or below instead.",
            )
        if self._best.mode == "min" and value > ratio * best:
            return (
                f"{name} {show(value)} is above {show(ratio)} times its best {show(best)} at step "
                f"{step}",
                None,
            )
        if self._best.mode == "max" and value * ratio < best:
            return (
                f"{name} {show(value)} is below its best {show(best)} divided by {show(ratio)} at "
                f"step {step}",
                None,
            )
        return None, None


class LossWatch:
    """The training losses, step by step: not finite, spiking, or skipped by the fp16 scaler too
    often in a row.
    """

    def __init__(self, spike: Spike | None, skipped_steps: int) -> None:
        self._spike = spike
        self._limit = skipped_steps
        self._skipped = 0
        self._losses: deque[float] = deque()
        self._sorted: list[float] = []

    def take(self, window: Window) -> tuple[str | None, list[str]]:
        """(a sentence if the training diverged in these steps, warnings)."""
        spikes: list[tuple[float, str]] = []
        for index, (loss, norm, skipped) in enumerate(
            zip(window.losses, window.grad_norms, window.skipped, strict=True)
        ):
            step = window.first_step + index
            self._skipped = self._skipped + 1 if skipped else 0
            if self._skipped >= self._limit:
                return (
                    f"the fp16 scaler skipped {self._skipped} steps in a row, up to step "
                    f"{step:,}: gradients overflow at any scale",
                    [],
                )
            if skipped:
                continue  # the parameters did not change: the scaler deals with it
            if not math.isfinite(loss):
                rank = window.offenders.get(step)
                return f"the training loss is {show(loss)} at step {step:,}" + (
                    "" if rank is None else f" on rank {rank}"
                ), []
            if not math.isfinite(norm):
                return f"the gradient norm is {show(norm)} at step {step:,}", []
            if self._spike is not None:
                spikes += self._take_loss(self._spike, step, loss)
                if spikes and self._spike.action == "stop":
                    return spikes[0][1], []
        if not spikes:
            return None, []
        worst = max(spikes)[1]
        return None, [
            f"{worst}."
            if len(spikes) == 1
            else f"{worst}; {len(spikes)} spikes since step {window.first_step:,}."
        ]

    def _take_loss(self, spike: Spike, step: int, loss: float) -> list[tuple[float, str]]:
        """The robust z-score of a loss that spikes (Iglewicz & Hoaglin, "How to detect and handle
        outliers", 1993), in words.
        """
        found = []
        if len(self._losses) == spike.steps:
            middle = _median(self._sorted)
            deviation = _median(sorted(abs(one - middle) for one in self._sorted))
            sigma = max(_MAD_TO_SIGMA * deviation, _LEAST_SIGMA * abs(middle))
            if loss - middle > spike.z * sigma and sigma > 0:
                z = (loss - middle) / sigma
                words = (
                    f"is {show(z, spike.z)} robust standard deviations above the median "
                    f"{show(middle)} of the {spike.steps} steps before"
                )
                found.append(
                    (
                        z,
                        f"the training loss {show(loss)} at step {step:,} {words}, where "
                        f"{show(spike.z)} are borne",
                    )
                )
            del self._sorted[bisect_left(self._sorted, self._losses.popleft())]
        self._losses.append(loss)
        insort(self._sorted, loss)
        return found

    def state(self) -> dict[str, Any]:
        return {"skipped": self._skipped, "losses": list(self._losses)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`, under the present settings."""
        self._skipped = state["skipped"]
        kept = state["losses"][-self._spike.steps :] if self._spike is not None else []
        self._losses, self._sorted = deque(kept), sorted(kept)


def _median(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
