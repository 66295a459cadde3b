"""Improvement: how much a metric must improve, and for how long it may fall short."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from harness.errors import ConfigError
from harness.settings import item_path
from harness.stopping.judge import Finding, Judge, Need, enough, problems_of, wrong_mode
from harness.stopping.pairs import Deviations, paired_error
from harness.stopping.patience import Patience, RunningPatience
from harness.stopping.rate import AskedGain, Gain, error_of, unknown_error
from harness.stopping.smoothing import RunningSmooth, Smooth
from harness.stopping.verdict import (
    CriterionVerdict,
    Evaluation,
    MetricInfo,
    Metrics,
    Mode,
    show,
)


class Improvement(AskedGain):
    """How much a metric must improve, relative to what, and how many consecutive intervals may fall
    short.
    """

    metric: str = Field(description="A metric with its split, e.g. val/accuracy.")
    from_: Literal["best", "previous"] = Field(
        "best",
        alias="from",
        description="The reference: the last value that reached the required gain (best), or the "
        "previous interval.",
    )
    smooth: Smooth | None = Field(
        None,
        description=(
            "Judge a smoothed value; targets, divergence and the best checkpoint keep the raw one."
        ),
    )
    patience: Patience = Field(
        description="A number of consecutive intervals, or a mapping with another unit."
    )
    cooldown: int = Field(
        0, ge=0, description="Intervals after a drop of the learning rate that are not stale."
    )
    mode: Mode | None = Field(
        None,
        description="Whether higher (max) or lower (min) is better; null: as the metric declares.",
    )

    @field_validator("patience", mode="before")
    @classmethod
    def _bare_number(cls, value: object) -> object:
        return value if isinstance(value, Mapping | Patience) else {"intervals": value}

    @field_serializer("patience")
    def _as_given(self, patience: Patience) -> Any:
        return patience.intervals or {patience.unit: patience.count}

    @model_validator(mode="after")
    def _one_kind_of_noise(self) -> Self:
        if self.smooth is not None and self.errors:
            raise ValueError(
                "smooth: the standard error of a smoothed value is not known; give at_least as a "
                "gain or a share, or leave smooth out"
            )
        return self

    def problems(self, where: str, info: MetricInfo) -> Iterator[str]:
        """What contradicts its metric's declaration."""
        yield from wrong_mode(where, self.metric, self.mode, info)
        yield from self.gain_problems(where, self.metric, info)


class ImprovementJudge(Judge):
    """Stops when all or any of the criteria have run out of patience."""

    reason = "no_improvement"
    of_intervals = True

    def __init__(
        self,
        settings: Sequence[Improvement],
        need: Need,
        warmup: int,
        metrics: Metrics,
        *,
        whole_epochs: bool,
    ) -> None:
        """`whole_epochs`: intervals are epochs, which end on the first step that completes them, so
        that patience counts completed epochs.
        """
        self._settings = settings
        self._need: Need = need
        self._metrics = metrics
        self._criteria = [
            RunningCriterion(one, metrics[one.metric].mode, whole_epochs)
            for one in settings
            if one.metric in metrics
        ]
        # Intervals of warm-up left
        self._warmup = warmup
        self._lr: float | None = None
        # Whether the learning rate stood still over the last interval
        self._lr_stood = True

    def problems(self) -> Iterator[str]:
        return problems_of("improvement", self._settings, self._metrics)

    def metrics(self) -> set[str]:
        return {one.metric for one in self._settings}

    def needs(self) -> Iterator[tuple[str, str]]:
        for index, one in enumerate(self._settings):
            where = f"stop.{item_path('improvement', index, self._settings)}"
            if one.patience.unit in ("epochs", "samples"):
                yield f"{where}.patience", one.patience.unit
            if one.cooldown:
                yield f"{where}.cooldown", "lr"

    def take(self, evaluation: Evaluation) -> Finding:
        """Raises ConfigError if a cooldown is set and the evaluation has no `lr`."""
        lr_dropped = self._has_lr_dropped(evaluation)
        counts = not self._warmup
        self._warmup = max(0, self._warmup - 1)
        taken = [
            criterion.take(evaluation, counts=counts, lr_dropped=lr_dropped)
            for criterion in self._criteria
        ]
        verdicts = [verdict for verdict, _ in taken]
        stops = enough([verdict.out for verdict in verdicts], self._need)
        words = "; ".join(
            criterion.sentence(verdict)
            for criterion, verdict in zip(self._criteria, verdicts, strict=True)
            if verdict.out or not stops
        )
        return Finding(
            stop=words if stops else None,
            outlook=words,
            warnings=[warning for _, warning in taken if warning],
            criteria=verdicts,
        )

    def _has_lr_dropped(self, evaluation: Evaluation) -> bool:
        """Whether the learning rate fell after an interval in which it stood still: a step down,
        unlike the steady fall of a cosine.
        """
        if evaluation.lr is None:
            if any(one.cooldown for one in self._settings):
                raise ConfigError(
                    "stop.improvement.cooldown: the learning rate of the evaluations is not "
                    "known. Remove cooldown."
                )
            return False
        before, self._lr = self._lr, evaluation.lr
        if before is None:
            return False
        dropped = self._lr_stood and evaluation.lr < before
        self._lr_stood = evaluation.lr == before
        return dropped


class RunningCriterion:
    """One improvement criterion and its patience."""

    def __init__(self, settings: Improvement, mode: Mode, whole_epochs: bool) -> None:
        self._settings = settings
        self._metric = settings.metric
        self._mode: Mode = mode
        self._share = settings.share
        self._from_best = settings.from_ == "best"
        self._patience = RunningPatience(
            settings.patience, settings.cooldown, whole_epochs=whole_epochs
        )
        self._smooth = None if settings.smooth is None else RunningSmooth(settings.smooth)
        self._reference: float | None = None
        self._reference_step = 0
        # Of the last value and of the reference: standard errors, and deviations by groups
        self._error = self._reference_error = 0.0
        self._groups: Deviations | None = None
        self._reference_groups: Deviations | None = None
        # Better than the reference was seen, but never by enough
        self._crept = False
        # What the reference of the last evaluation is to people
        self._name = ""
        # Since the metric was measured last
        self._lr_dropped = False

    def take(
        self, evaluation: Evaluation, *, counts: bool, lr_dropped: bool
    ) -> tuple[CriterionVerdict, str | None]:
        """The verdict on an evaluation, and a warning if the rate has no meaning there.

        `counts`: whether it may be stale at all (not during warm-up). `lr_dropped`: the learning
        rate has dropped since the evaluation before.
        """
        self._lr_dropped = self._lr_dropped or lr_dropped
        raw = evaluation.metrics.get(self._metric)
        value = raw if raw is None or self._smooth is None else self._smooth.take(raw)
        error = evaluation.metrics.get(error_of(self._metric), math.nan)
        self._error = error if math.isfinite(error) else 0.0
        self._groups = evaluation.deviations.get(self._metric)
        paired = paired_error(self._groups, self._reference_groups)
        unpaired = math.hypot(self._error, self._reference_error)
        gain_error = unpaired if paired is None else paired
        reference, reference_step = self._reference, self._reference_step
        self._name = "its previous"
        if self._from_best:
            self._name = "its reference" if self._crept else "its best"
        gain, improved, warning = None, False, None
        if value is not None:
            gain, improved, warning = self._measure(value, evaluation.step, gain_error)
            if not math.isnan(value) and (improved or not self._from_best):
                self._reference, self._reference_step = value, evaluation.step
                self._reference_error, self._reference_groups = self._error, self._groups
                self._crept = False
            elif gain is not None and gain.amount > 0:
                self._crept = True
            known = math.isfinite(error) or self._groups is not None
            if self._settings.errors and not known and math.isfinite(value):
                warning = unknown_error("improvement", self._metric, evaluation.step)
            fresh = improved or not counts
            self._patience.take(evaluation, fresh=fresh, lr_dropped=self._lr_dropped)
            self._lr_dropped = False
        verdict = CriterionVerdict(
            metric=self._metric,
            value=value,
            reference=reference,
            reference_step=None if reference is None else reference_step,
            gain=None if gain is None else gain.amount,
            needed=None if gain is None else gain.needed,
            improved=improved,
            stale=self._patience.stale,
            spent=self._patience.spent,
            patience=self._patience.count,
            unit=self._patience.unit,
            out=self._patience.out,
            raw=None if self._smooth is None else raw,
            error=gain_error if self._settings.errors and gain is not None else None,
            pairs=0 if paired is None or self._groups is None else self._groups.samples,
        )
        return verdict, warning

    def _measure(
        self, value: float, step: int, error: float
    ) -> tuple[Gain | None, bool, str | None]:
        """(gain, whether the interval counts as improved, warning)."""
        reference = self._reference
        if math.isnan(value):
            undefined = f"{self._metric} is undefined (NaN) at step {step:,}"
            return None, False, f"{undefined}: it counts as no improvement."
        if reference is None:
            # The first value is the reference and never stale
            return None, True, None
        gain = self._settings.gain(value, reference, self._mode, error)
        if gain.meaningful:
            return gain, gain.enough, None
        warning = (
            f"{self._metric}: a share of {show(self._share * 100)} % means nothing from "
            f"{show(reference)} to {show(value)} (step {step:,}): any gain counted there. Give "
            "improvement.at_least as an absolute gain, such as "
            f"{max(abs(reference), abs(value)) * self._share:.1g}."
        )
        return gain, gain.enough, warning

    def sentence(self, verdict: CriterionVerdict) -> str:
        """The verdict in words and numbers."""
        tail = ""
        if verdict.stale:
            spent = f"{verdict.spent:,}" if isinstance(verdict.spent, int) else show(verdict.spent)
            tail = f"; {spent} of {verdict.patience:,} {verdict.unit} without enough improvement"
        if verdict.raw is not None and verdict.value is not None and self._settings.smooth:
            value = show(verdict.value, verdict.raw)
            smoothed = f"{value}, {self._settings.smooth.words}, where {show(verdict.raw)} was"
            tail = f" ({smoothed} measured){tail}"
        if verdict.value is None:
            return f"{verdict.metric} was not measured{tail}"
        if verdict.gain is None or verdict.needed is None or verdict.reference is None:
            words = (
                "is undefined (NaN)"
                if math.isnan(verdict.value)
                else f"{show(verdict.value)} is the first value"
            )
            return f"{verdict.metric} {words}{tail}"
        compared = self._comparison(verdict.gain, verdict.needed, verdict.reference)
        asked = _words_of_error(verdict) + self._words_of_bar(verdict.needed)
        return f"{verdict.metric} {compared} (step {verdict.reference_step:,}){asked}{tail}"

    def _comparison(self, gain: float, needed: float, reference: float) -> str:
        name = f"{self._name} {show(reference)}"
        if not gain:
            return f"gained nothing on {name}"
        share = self._share and reference
        amount = (
            f"{show(abs(gain / reference) * 100, needed / abs(reference) * 100, 3)} %"
            if share
            else show(abs(gain), needed, 3)
        )
        if self._mode == "max":
            return f"{'gained' if gain > 0 else 'lost'} {amount} on {name}"
        return f"{'fell' if gain > 0 else 'rose'} by {amount} from {name}"

    def _words_of_bar(self, needed: float) -> str:
        if self._settings.errors:
            times = show(self._settings.errors)
            return f" where {show(needed, digits=3)} was asked, {times} standard errors of the gain"
        if self._share:
            return f" where {show(self._share * 100)} % was asked"
        absolute = self._settings.absolute
        return f" where {show(absolute)} was asked" if absolute else ""


def _words_of_error(verdict: CriterionVerdict) -> str:
    if verdict.error is None:
        return ""
    how = f"paired, {verdict.pairs:,} samples" if verdict.pairs else "not paired"
    return f" +- {show(verdict.error, digits=3)} ({how})"
