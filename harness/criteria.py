"""Running judgements of metrics: is a target met, did a metric improve enough. Each takes a constant time per evaluation and holds no history."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.stop_settings import Improvement, Mode, Target
from harness.verdict import CriterionVerdict, Evaluation, show

SIGNS = {"max": 1.0, "min": -1.0}


@dataclass
class BestSoFar:
    """The best value of a metric: any strict gain; ties keep the earlier one; NaN never."""

    metric: str
    mode: Mode
    value: float | None = None
    step: int = 0

    def take(self, evaluation: Evaluation) -> bool:
        """Whether this evaluation is a new best."""
        value = evaluation.metrics.get(self.metric)
        if value is None or math.isnan(value) or (self.value is not None and not (value - self.value) * SIGNS[self.mode] > 0):
            return False
        self.value, self.step = value, evaluation.step
        return True


class TargetJudge:
    """One target, on one metric or on a training and a validation metric that must both reach it, `hold` evaluations in a row."""

    def __init__(self, metrics: tuple[str, ...], target: Target, hold: int) -> None:
        self._metrics = metrics
        self._hold = hold
        self._at_least = target.at_least is not None
        bound = target.at_least if target.at_least is not None else target.at_most
        assert bound is not None
        self._bound = bound
        relations = ("at least", "below") if self._at_least else ("at most", "above")
        self._met_words, self._short_words = (f"is {relation} {show(bound, digits=15)}" for relation in relations)
        self._held = 0
        self._values: list[float | None] = []
        self._met: list[bool] = []

    def take(self, metrics: Mapping[str, float]) -> bool:
        """Whether the target is reached: only a value of this very evaluation counts, NaN never."""
        self._values = [metrics.get(name) for name in self._metrics]
        self._met = [value is not None and (value >= self._bound if self._at_least else value <= self._bound) for value in self._values]
        self._held = self._held + 1 if all(self._met) else 0
        return self._held >= self._hold

    def sentence(self) -> str:
        """Where the target stands at the last evaluation: all metrics if it holds there, else those that fall short."""
        holds = self._held > 0
        words = [self._clause(name, value, met) for name, value, met in zip(self._metrics, self._values, self._met, strict=True) if met == holds]
        held = f", {self._held} of {self._hold} evaluations in a row" if holds and self._hold > 1 else ""
        return " and ".join(words) + held

    def _clause(self, name: str, value: float | None, met: bool) -> str:
        if value is None or math.isnan(value):
            return f"{name} is {'not measured' if value is None else 'undefined (NaN)'}"
        return f"{name} {show(value, self._bound)} {self._met_words if met else self._short_words}"


def measure(value: float, reference: float, mode: Mode, absolute: float, share: float) -> tuple[float, float, bool, bool]:
    """(gain, needed gain, whether the gain is enough, whether the share means anything between the two).

    gain = (value - reference) * sign is enough when gain >= max(absolute, share * |reference|) and gain > 0; nothing is divided. A share of zero, or
    of a value of the other sign, means nothing: any strict gain is enough then.
    """
    gain = (value - reference) * SIGNS[mode]
    meant = not share or reference > 0 <= value or reference < 0 >= value
    needed = max(absolute, share * abs(reference)) if meant else 0.0
    return gain, needed, gain >= needed and gain > 0, meant


class Criterion:
    """One improvement criterion and its patience."""

    def __init__(self, settings: Improvement, mode: Mode, whole_epochs: bool) -> None:
        """`whole_epochs`: intervals are epochs, which end on the first step that completes them, so that patience counts completed epochs."""
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
        self._since = Evaluation(step=0, epoch=0.0, samples=0, hours=0.0, metrics={})  # the last evaluation that was not stale

    def take(self, evaluation: Evaluation, *, counts: bool, dropped: bool) -> tuple[CriterionVerdict, str | None]:
        """The verdict on an evaluation, and a warning if the rate has no meaning there.

        `counts`: whether it may be stale at all (not during warm-up). `dropped`: the learning rate has dropped since the evaluation before.
        """
        value = evaluation.metrics.get(self._metric)
        reference, reference_step = self._reference, self._reference_step
        self._name = "its previous" if not self._from_best else "its reference" if self._crept else "its best"
        if value is None:
            return self._verdict(None, reference, reference_step, None, None, False), None
        gain, needed, improved, warning = self._measure(value, evaluation.step)
        if not math.isnan(value) and (improved or not self._from_best):
            self._reference, self._reference_step, self._crept = value, evaluation.step, False
        elif gain is not None and gain > 0:
            self._crept = True
        self._count(evaluation, improved or not counts, dropped)
        return self._verdict(value, reference, reference_step, gain, needed, improved), warning

    def _measure(self, value: float, step: int) -> tuple[float | None, float | None, bool, str | None]:
        """(gain, needed gain, whether the interval counts as improved, warning)."""
        reference = self._reference
        if math.isnan(value):
            return None, None, False, f"{self._metric} is undefined (NaN) at step {step:,}: it counts as no improvement."
        if reference is None:
            return None, None, True, None  # the first value is the reference and never stale
        gain, needed, enough, meant = measure(value, reference, self._mode, self._absolute, self._share)
        if meant:
            return gain, needed, enough, None
        warning = (
            f"{self._metric}: a share of {show(self._share * 100)} % means nothing from {show(reference)} to {show(value)} (step {step:,}): "
            f"any gain counted there. Give improvement.at_least as an absolute gain, such as {max(abs(reference), abs(value)) * self._share:.1g}."
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
        """How much of the patience is spent since the last interval that was not stale, and whether that is all of it; compared in whole numbers."""
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
            per_epoch = round(now.samples / now.epoch)  # exact: epoch is samples / per_epoch, rounded once
            samples = now.samples - then.samples
            return samples / per_epoch, samples >= self._patience * per_epoch
        return now.epoch - then.epoch, now.epoch - then.epoch >= self._patience

    def _verdict(
        self, value: float | None, reference: float | None, reference_step: int, gain: float | None, needed: float | None, improved: bool
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
            words = "is undefined (NaN)" if math.isnan(verdict.value) else f"{show(verdict.value)} is the first value"
            return f"{verdict.metric} {words}{tail}"
        compared = self._comparison(verdict.gain, verdict.needed, verdict.reference)
        return f"{verdict.metric} {compared} (step {verdict.reference_step:,}){self._asked}{tail}"

    def _comparison(self, gain: float, needed: float, reference: float) -> str:
        name = f"{self._name} {show(reference)}"
        if not gain:
            return f"gained nothing on {name}"
        share = self._share and reference
        amount = f"{show(abs(gain / reference) * 100, needed / abs(reference) * 100, 3)} %" if share else show(abs(gain), needed, 3)
        if self._mode == "max":
            return f"{'gained' if gain > 0 else 'lost'} {amount} on {name}"
        return f"{'fell' if gain > 0 else 'rose'} by {amount} from {name}"


def _asked(absolute: float, share: float) -> str:
    if share:
        return f" where {show(share * 100)} % was asked"
    return f" where {show(absolute)} was asked" if absolute else ""
