"""Improvement: how much a metric must improve, and for how long it may fall short."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, PlainValidator, field_serializer, field_validator, model_validator

from harness.errors import ConfigError
from harness.settings import Section, item_path
from harness.stopping.judge import Finding, Judge, Need, enough, problems_of, wrong_mode
from harness.stopping.patience import Patience, RunningPatience
from harness.stopping.smoothing import RunningSmooth, Smooth
from harness.stopping.verdict import (
    SIGNS,
    CriterionVerdict,
    Evaluation,
    MetricInfo,
    Metrics,
    Mode,
    show,
)

_PERCENT = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*%\s*")


_ERRORS = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*se\s*")


def error_of(metric: str) -> str:
    """The name under which evaluations hold the standard error of a metric."""
    return f"{metric}_se"


def _rate(value: object) -> float | str:
    """A number (an absolute gain), a text like "5%" (a share of the reference), or one like "2 se"
    (standard errors of the gain).
    """
    if (
        isinstance(value, str)
        and (found := _PERCENT.fullmatch(value) or _ERRORS.fullmatch(value))
        and float(found[1]) < float("inf")
    ):
        return value
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < float("inf")
    ):
        raise ValueError(
            f"{value!r} is neither a gain like 0.05 nor a share like 5% nor a number of standard "
            "errors like 2 se; none can be negative"
        )
    return float(value)


def share_of(rate: object) -> float:
    """The share that a rate like "5%" asks for; 0 for another."""
    share = _PERCENT.fullmatch(rate) if isinstance(rate, str) else None
    return float(share[1]) / 100 if share else 0.0


Rate = Annotated[float | str, PlainValidator(_rate, json_schema_input_type=float | str)]


class Gain(NamedTuple):
    """The gain of a value over its reference. `needed`: the required gain; `enough`: whether it was
    reached; `meaningful`: whether a relative gain is defined between the two values.
    """

    amount: float
    needed: float
    enough: bool
    meaningful: bool


class Improvement(Section):
    """How much a metric must improve, relative to what, and how many consecutive intervals may fall
    short.
    """

    metric: str = Field(description="A metric with its split, e.g. val/accuracy.")
    at_least: Rate = Field(
        0.0,
        description=(
            "The gain asked for: 0.05 in the metric's own unit, 5% of the reference, or 2 se, two "
            "standard errors of the gain; 0: any."
        ),
    )
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

    @property
    def errors(self) -> float:
        """How many standard errors of the gain are asked for; 0 if something else is."""
        errors = _ERRORS.fullmatch(self.at_least) if isinstance(self.at_least, str) else None
        return float(errors[1]) if errors else 0.0

    @property
    def absolute(self) -> float:
        """The gain asked for as it is; 0 if a share is asked for."""
        return self.at_least if isinstance(self.at_least, float) else 0.0

    @property
    def share(self) -> float:
        """The gain asked for as a share of the reference; 0 if an absolute gain is asked for."""
        return share_of(self.at_least)

    def gain(self, value: float, reference: float, mode: Mode, error: float = 0.0) -> Gain:
        """What a value gained on a reference; `error`: the standard error of that.

        (value - reference) * sign is enough when it is positive and at least max(absolute,
        share * |reference|, errors * error); nothing is divided. A share of zero, or of a value
        of the other sign, means nothing: any strict gain is enough then.
        """
        share = self.share
        amount = (value - reference) * SIGNS[mode]
        meaningful = not share or reference > 0 <= value or reference < 0 >= value
        asked = max(self.absolute, share * abs(reference), self.errors * error)
        needed = asked if meaningful else 0.0
        return Gain(amount, needed, amount >= needed and amount > 0, meaningful)

    def problems(self, where: str, info: MetricInfo) -> Iterator[str]:
        """What contradicts its metric's declaration."""
        yield from wrong_mode(where, self.metric, self.mode, info)
        if self.errors and not info.has_error:
            yield (
                f"{where}.at_least: the standard error of {self.metric} is not known. Give a gain "
                "like 0.05 or a share like 5%."
            )
        largest = _largest_gain(info)
        if info.upper is not None and largest is not None and self.absolute > largest:
            gain = show(self.absolute)
            lower = "" if info.lower is None else f"{show(info.lower)} and "
            yield (
                f"{where}.at_least: {self.metric} is bounded by {lower}{show(info.upper)} and can "
                f"hardly gain {gain}. Write {gain}% for a share of the reference or "
                f"{show(self.absolute / 100)} for an absolute gain."
            )


def _largest_gain(info: MetricInfo) -> float | None:
    """No more than its bound for a metric bounded by 1 (a correlation too), else the width of its
    range.
    """
    if info.upper is None or 0 < info.upper <= 1:
        return info.upper
    return None if info.lower is None else info.upper - info.lower


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
        # The standard errors of the last value and of the reference
        self._error = self._reference_error = 0.0
        # Better than the reference was seen, but never by enough
        self._crept = False
        # What the reference of the last evaluation is to people
        self._name = ""

    def take(
        self, evaluation: Evaluation, *, counts: bool, lr_dropped: bool
    ) -> tuple[CriterionVerdict, str | None]:
        """The verdict on an evaluation, and a warning if the rate has no meaning there.

        `counts`: whether it may be stale at all (not during warm-up). `lr_dropped`: the learning
        rate has dropped since the evaluation before.
        """
        raw = evaluation.metrics.get(self._metric)
        value = raw if raw is None or self._smooth is None else self._smooth.take(raw)
        error = evaluation.metrics.get(error_of(self._metric), math.nan)
        self._error = error if math.isfinite(error) else 0.0
        reference, reference_step = self._reference, self._reference_step
        self._name = "its previous"
        if self._from_best:
            self._name = "its reference" if self._crept else "its best"
        gain, improved, warning = None, False, None
        if value is not None:
            gain, improved, warning = self._measure(value, evaluation.step)
            if not math.isnan(value) and (improved or not self._from_best):
                self._reference, self._reference_step = value, evaluation.step
                self._reference_error = self._error
                self._crept = False
            elif gain is not None and gain.amount > 0:
                self._crept = True
            if self._settings.errors and not math.isfinite(error) and math.isfinite(value):
                warning = (
                    f"{self._metric}: its standard error is not known at step "
                    f"{evaluation.step:,}, which was evaluated without `se`, or in fewer than 8 "
                    "micro-batches, and taken as 0 there. If it stays so, lower "
                    "evaluation.micro_size, or give improvement.at_least as a number."
                )
            self._patience.take(evaluation, fresh=improved or not counts, lr_dropped=lr_dropped)
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
        )
        return verdict, warning

    def _measure(self, value: float, step: int) -> tuple[Gain | None, bool, str | None]:
        """(gain, whether the interval counts as improved, warning)."""
        reference = self._reference
        if math.isnan(value):
            undefined = f"{self._metric} is undefined (NaN) at step {step:,}"
            return None, False, f"{undefined}: it counts as no improvement."
        if reference is None:
            # The first value is the reference and never stale
            return None, True, None
        error = math.hypot(self._error, self._reference_error)
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
        asked = self._words_of_bar(verdict.needed)
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
