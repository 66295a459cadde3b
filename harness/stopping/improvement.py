"""Running judgements of metrics: is a target met, did a metric improve enough.

Each takes a constant time per evaluation and holds no history.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, field_serializer, field_validator, model_validator

from harness.settings import _Settings
from harness.stopping.best import SIGNS, _of_mode
from harness.stopping.verdict import CriterionVerdict, Evaluation, MetricInfo, Mode, _bounds, show


def _gain(value: object) -> float | str:
    """A number (an absolute gain) or a text like "5%" (a share of the reference)."""
    if (
        isinstance(value, str)
        and (share := _PERCENT.fullmatch(value))
        and float(share[1]) < float("inf")
    ):
        return value
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < float("inf")
    ):
        raise ValueError(
            f"{value!r} is neither a gain like 0.05 nor a share like 5%; neither can be negative"
        )
    return float(value)


Gain = Annotated[float | str, PlainValidator(_gain, json_schema_input_type=float | str)]


class Patience(_Settings):
    """For how long too little improvement is borne. In a config a bare number counts intervals."""

    intervals: int | None = Field(
        None, ge=1, description="So many intervals in a row; the same as the bare number."
    )
    epochs: int | None = Field(
        None, ge=1, description="So many epochs since the last interval that was not stale."
    )
    steps: int | None = Field(None, ge=1, description="So many optimizer steps since then.")
    samples: int | None = Field(None, ge=1, description="So many samples since then.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("intervals", "epochs", "steps", "samples")
        return self

    @property
    def unit(self) -> Literal["intervals", "epochs", "steps", "samples"]:
        if self.intervals is not None:
            return "intervals"
        if self.epochs is not None:
            return "epochs"
        return "steps" if self.steps is not None else "samples"

    @property
    def count(self) -> int:
        value = getattr(self, self.unit)
        assert isinstance(value, int)
        return value


class Improvement(_Settings):
    """How much a metric must get better, measured from what, and how many intervals in a row may
    fall short of it.
    """

    metric: str = Field(description="A metric with its split, e.g. val/accuracy.")
    at_least: Gain = Field(
        0.0,
        description="The gain asked for: 0.05 in the metric's own unit, or 5% of the reference; 0: any.",
    )
    from_: Literal["best", "previous"] = Field(
        "best",
        alias="from",
        description="The reference: the best that counted, or the interval before.",
    )
    patience: Patience = Field(
        description="A number of intervals in a row, or a mapping with another unit."
    )
    cooldown: int = Field(
        0, ge=0, description="Intervals after a drop of the learning rate that are not stale."
    )
    mode: Mode | None = Field(
        None, description="Which way is better; null: what the metric declares."
    )

    @field_validator("patience", mode="before")
    @classmethod
    def _bare_number(cls, value: object) -> object:
        return value if isinstance(value, Mapping | Patience) else {"intervals": value}

    @field_serializer("patience")
    def _as_given(self, patience: Patience) -> Any:
        return (
            patience.intervals
            if patience.intervals is not None
            else {patience.unit: patience.count}
        )

    @property
    def absolute(self) -> float:
        """The gain asked for as it is; 0 if a share is asked for."""
        return self.at_least if isinstance(self.at_least, float) else 0.0

    @property
    def share(self) -> float:
        """The gain asked for as a share of the reference; 0 if an absolute gain is asked for."""
        return (
            float(self.at_least.strip().rstrip("%")) / 100
            if isinstance(self.at_least, str)
            else 0.0
        )


def _of_improvement(where: str, improvement: Improvement, info: MetricInfo) -> Iterator[str]:
    yield from _of_mode(where, improvement.metric, improvement.mode, info)
    largest = _largest_gain(info)
    if largest is not None and improvement.absolute > largest:
        gain = show(improvement.absolute)
        yield (
            f"{where}.at_least: {improvement.metric} is bounded by {_bounds(info)} and can hardly "
            f"gain {gain}. "
            f"Write {gain}% for a share of the reference or {show(improvement.absolute / 100)} for "
            "an absolute gain."
        )


def _largest_gain(info: MetricInfo) -> float | None:
    """No more than its bound for a metric bounded by 1 (a correlation too), else the width of its
    range.
    """
    if info.upper is None:
        return None
    return (
        info.upper
        if 0 < info.upper <= 1
        else None
        if info.lower is None
        else info.upper - info.lower
    )


_PERCENT = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*%\s*")


def measure(
    value: float, reference: float, mode: Mode, absolute: float, share: float
) -> tuple[float, float, bool, bool]:
    """(gain, needed gain, whether the gain is enough, whether the share means anything between the
    two).

    gain = (value - reference) * sign is enough when gain >= max(absolute, share * |reference|) and
    gain > 0; nothing is divided. A share of zero, or
    of a value of the other sign, means nothing: any strict gain is enough then.
    """
    gain = (value - reference) * SIGNS[mode]
    meant = not share or reference > 0 <= value or reference < 0 >= value
    needed = max(absolute, share * abs(reference)) if meant else 0.0
    return gain, needed, gain >= needed and gain > 0, meant


class Criterion:
    """One improvement criterion and its patience."""

    def __init__(self, settings: Improvement, mode: Mode, whole_epochs: bool) -> None:
        """`whole_epochs`: intervals are epochs, which end on the first step that completes them, so
        that patience counts completed epochs.
        """
        self._metric = settings.metric
        self._mode = mode
        self._absolute = settings.absolute
        self._share = settings.share
        self._from_best = settings.from_ == "best"
        self._asked = _asked(self._absolute, self._share)
        self._patience = settings.patience.count
        self._unit = settings.patience.unit
        self._cooldown = settings.cooldown
        self._whole_epochs = whole_epochs
        self._reference: float | None = None
        self._reference_step = 0
        self._crept = False  # better than the reference was seen, but never by enough
        self._name = ""  # what the reference of the last evaluation is to people
        self._pause = 0  # intervals of cooldown left
        self._stale = 0
        self._spent: float = 0
        self._out = False
        # The last evaluation that was not stale
        self._since = Evaluation(step=0, epoch=0.0, samples=0, hours=0.0, metrics={})

    def take(
        self, evaluation: Evaluation, *, counts: bool, dropped: bool
    ) -> tuple[CriterionVerdict, str | None]:
        """The verdict on an evaluation, and a warning if the rate has no meaning there.

        `counts`: whether it may be stale at all (not during warm-up). `dropped`: the learning rate
        has dropped since the evaluation before.
        """
        value = evaluation.metrics.get(self._metric)
        reference, reference_step = self._reference, self._reference_step
        self._name = (
            "its previous"
            if not self._from_best
            else "its reference"
            if self._crept
            else "its best"
        )
        if value is None:
            return self._verdict(None, reference, reference_step, None, None, False), None
        gain, needed, improved, warning = self._measure(value, evaluation.step)
        if not math.isnan(value) and (improved or not self._from_best):
            self._reference, self._reference_step, self._crept = value, evaluation.step, False
        elif gain is not None and gain > 0:
            self._crept = True
        self._count(evaluation, improved or not counts, dropped)
        return self._verdict(value, reference, reference_step, gain, needed, improved), warning

    def _measure(
        self, value: float, step: int
    ) -> tuple[float | None, float | None, bool, str | None]:
        """(gain, needed gain, whether the interval counts as improved, warning)."""
        reference = self._reference
        if math.isnan(value):
            return (
                None,
                None,
                False,
                f"{self._metric} is undefined (NaN) at step {step:,}: it counts as no improvement.",
            )
        if reference is None:
            return None, None, True, None  # the first value is the reference and never stale
        gain, needed, enough, meant = measure(
            value, reference, self._mode, self._absolute, self._share
        )
        if meant:
            return gain, needed, enough, None
        warning = (
            f"{self._metric}: a share of {show(self._share * 100)} % means nothing from "
            f"{show(reference)} to {show(value)} (step {step:,}): "
            "any gain counted there. Give improvement.at_least as an absolute gain, such as "
            f"{max(abs(reference), abs(value)) * self._share:.1g}."
        )
        return gain, needed, enough, warning

    def _count(self, evaluation: Evaluation, fresh: bool, dropped: bool) -> None:
        if self._cooldown and dropped:
            self._pause = self._cooldown
            fresh = True
        elif self._pause:
            self._pause -= 1
            fresh = True
        if fresh:
            self._stale, self._spent, self._out, self._since = 0, 0, False, evaluation
            return
        self._stale += 1
        self._spent, self._out = self._use_up(evaluation)

    def _use_up(self, now: Evaluation) -> tuple[float, bool]:
        """How much of the patience is spent since the last interval that was not stale, and whether
        that is all of it; compared in whole numbers.
        """
        then = self._since
        if self._unit == "intervals":
            return self._stale, self._stale >= self._patience
        if self._unit == "steps":
            return now.step - then.step, now.step - then.step >= self._patience
        if self._unit == "samples":
            return now.samples - then.samples, now.samples - then.samples >= self._patience
        if self._whole_epochs:
            epochs = math.floor(now.epoch) - math.floor(then.epoch)
            return epochs, epochs >= self._patience
        if now.samples > 0 and now.epoch > 0:
            # Exact: epoch is samples / per_epoch, rounded once
            per_epoch = round(now.samples / now.epoch)
            samples = now.samples - then.samples
            return samples / per_epoch, samples >= self._patience * per_epoch
        return now.epoch - then.epoch, now.epoch - then.epoch >= self._patience

    def _verdict(
        self,
        value: float | None,
        reference: float | None,
        reference_step: int,
        gain: float | None,
        needed: float | None,
        improved: bool,
    ) -> CriterionVerdict:
        return CriterionVerdict(
            metric=self._metric,
            value=value,
            reference=reference,
            reference_step=None if reference is None else reference_step,
            gain=gain,
            needed=needed,
            improved=improved,
            stale=self._stale,
            spent=self._spent,
            patience=self._patience,
            unit=self._unit,
            out=self._out,
        )

    def sentence(self, verdict: CriterionVerdict) -> str:
        """The verdict in words and numbers."""
        tail = ""
        if verdict.stale:
            spent = f"{verdict.spent:,}" if isinstance(verdict.spent, int) else show(verdict.spent)
            tail = f"; {spent} of {verdict.patience:,} {verdict.unit} without enough improvement"
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
        return f"{verdict.metric} {compared} (step {verdict.reference_step:,}){self._asked}{tail}"

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


def _asked(absolute: float, share: float) -> str:
    if share:
        return f" where {show(share * 100)} % was asked"
    return f" where {show(absolute)} was asked" if absolute else ""
