"""The stop controller: is it good enough, does it still get better, has it gone wrong, is the
budget spent? Pure: no torch, no clock, no files.

It judges one evaluation after the other and keeps running state only, so that a verdict costs the
same after ten evaluations as after ten thousand. When several reasons hold at one evaluation, the
first of these is the verdict's:

    diverged > targets_reached > stop_requested > no_improvement > budget
"""

from collections.abc import Mapping
from typing import Any

from harness.errors import ConfigError
from harness.stopping.best import BestSoFar
from harness.stopping.budget import spent_budget
from harness.stopping.checks import best_metric, problems, told
from harness.stopping.divergence import BoundJudge, LossWatch, lost_loss
from harness.stopping.improvement import Criterion
from harness.stopping.settings import StopSettings
from harness.stopping.targets import TargetJudge, expand
from harness.stopping.verdict import (
    Best,
    CriterionVerdict,
    Evaluation,
    MetricInfo,
    Mode,
    Reason,
    Verdict,
    Window,
)


class StopController:
    """Judges the evaluations of one run, on rank 0; any rank would judge the same."""

    def __init__(self, settings: StopSettings, metrics: Mapping[str, MetricInfo]) -> None:
        """`metrics`: those that evaluations will have, by `split/name`.

        Raises ConfigError with all settings that do not fit them.
        """
        found = problems(settings, metrics)
        if found:
            raise ConfigError(told(found))
        self._settings = settings
        self._metrics = dict(metrics)
        self._best_metric = best_metric(settings, metrics)
        self._watch = LossWatch(settings.spike, settings.skipped_steps)
        self._evaluations: list[Evaluation] = []
        # What was said of each: action, reason, improved, new_best, detail
        self._given: list[tuple[str, Reason | None, bool, bool, str]] = []
        self._forget()

    def judge(self, evaluation: Evaluation, *, requested: bool = False) -> Verdict:
        """The verdict on an evaluation, which joins the history.

        `requested`: a person asked to stop.

        Raises ConfigError if a cooldown is set and the evaluation has no `lr`.
        """
        verdict = self._fold(evaluation, requested)
        self._evaluations.append(evaluation)
        self._given.append(
            (verdict.action, verdict.reason, verdict.improved, verdict.new_best, verdict.detail)
        )
        return verdict

    def watch(self, window: Window) -> Verdict:
        """The verdict on the training losses read at a log point: stops for divergence alone."""
        diverged, warnings = self._watch.take(window)
        return (
            Verdict("go_on", warnings=warnings)
            if diverged is None
            else Verdict("stop", "diverged", f"{diverged}.")
        )

    def best(self) -> Best | None:
        """The best value so far of the metric that checkpoints are ranked by."""
        best = self._best
        return (
            None if best is None or best.value is None else Best(best.metric, best.value, best.step)
        )

    def best_metric(self) -> tuple[str, Mode] | None:
        """What checkpoints are ranked by."""
        return self._best_metric

    def latest_metrics(self, step: int) -> Mapping[str, float]:
        """The metrics of the evaluation at exactly this step; empty if there was none."""
        return (
            self._evaluations[-1].metrics
            if self._evaluations and self._evaluations[-1].step == step
            else {}
        )

    def state(self) -> dict[str, Any]:
        """JSON but for NaN and infinities: the history of evaluations and verdicts, and the running
        state of the losses' watch.

        What follows from the evaluations is not stored: `restore` takes it from them under the
        settings of its own time.
        """
        names = list(dict.fromkeys(name for one in self._evaluations for name in one.metrics))
        rows = [
            [
                one.step,
                one.epoch,
                one.samples,
                one.hours,
                one.lr,
                [one.metrics.get(name) for name in names],
            ]
            for one in self._evaluations
        ]
        return {
            "metrics": names,
            "evaluations": rows,
            "verdicts": [list(one) for one in self._given],
            "watch": self._watch.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> Verdict | None:
        """Take a history back under the present settings; their verdict at its last evaluation,
        None without one.

        The verdicts of the history stay those that were given. A request to stop is not judged
        again: it was for then.
        """
        self._forget()
        self._evaluations, last = [], None
        for step, epoch, samples, hours, lr, values in state["evaluations"]:
            metrics = {
                name: value
                for name, value in zip(state["metrics"], values, strict=True)
                if value is not None
            }
            evaluation = Evaluation(step, epoch, samples, hours, metrics, lr)
            last = self._fold(evaluation, requested=False)
            self._evaluations.append(evaluation)
        self._given = [
            (action, reason, improved, new_best, detail)
            for action, reason, improved, new_best, detail in state["verdicts"]
        ]
        self._watch.restore(state["watch"])
        return last

    def _forget(self) -> None:
        """Running state as before the first evaluation."""
        settings = self._settings
        self._targets = [
            TargetJudge(expand(name, self._metrics), target, settings.hold)
            for name, target in settings.targets.items()
        ]
        whole_epochs = settings.every.epochs is not None
        self._criteria = [
            Criterion(one, self._metrics[one.metric].mode, whole_epochs)
            for one in settings.improvement
        ]
        self._bounds = [
            BoundJudge(one, self._metrics[one.metric].mode) for one in settings.divergence
        ]
        self._best = None if self._best_metric is None else BestSoFar(*self._best_metric)
        self._count = 0
        self._lr: float | None = None
        self._lr_stood = True  # whether the learning rate stood still over the last interval

    def _fold(self, evaluation: Evaluation, requested: bool) -> Verdict:
        """Every part takes the evaluation, whatever the others say, so that the state never depends
        on a verdict.
        """
        settings = self._settings
        dropped = self._lr_dropped(evaluation)
        counts = self._count >= settings.warmup
        self._count += 1
        warnings: list[str] = []
        diverged = lost_loss(evaluation)
        for bound in self._bounds:
            words, warning = bound.take(evaluation)
            diverged = diverged or words
            warnings += [warning] if warning else []
        reached = [target.take(evaluation.metrics) for target in self._targets]
        criteria: list[CriterionVerdict] = []
        for criterion in self._criteria:
            verdict, warning = criterion.take(evaluation, counts=counts, dropped=dropped)
            criteria.append(verdict)
            warnings += [warning] if warning else []
        new_best = self._best is not None and self._best.take(evaluation)
        reason, detail = self._conclude(evaluation, requested, diverged, reached, criteria)
        return Verdict(
            action="go_on" if reason is None else "stop",
            reason=reason,
            detail=f"{detail}.",
            improved=any(one.improved for one in criteria),
            new_best=new_best,
            criteria=criteria,
            warnings=warnings,
        )

    def _conclude(
        self,
        evaluation: Evaluation,
        requested: bool,
        diverged: str | None,
        reached: list[bool],
        criteria: list[CriterionVerdict],
    ) -> tuple[Reason | None, str]:
        """The first reason that holds, in the order of precedence, and the sentence for it."""
        if diverged is not None:
            return "diverged", diverged
        if _enough(reached, self._settings.targets_need):
            met = [
                target.sentence()
                for target, holds in zip(self._targets, reached, strict=True)
                if holds
            ]
            return "targets_reached", f"{' and '.join(met)} at step {evaluation.step:,}"
        if requested:
            return (
                "stop_requested",
                f"a stop was requested; it took effect at step {evaluation.step:,}",
            )
        if _enough([one.out for one in criteria], self._settings.improvement_needs):
            return "no_improvement", self._sentences(criteria, only_out=True)
        spent = spent_budget(self._settings.budget, evaluation)
        if spent is not None:
            return "budget", spent
        unmet = [
            target.sentence()
            for target, holds in zip(self._targets, reached, strict=True)
            if not holds
        ]
        return None, "; ".join(
            [words for words in (self._sentences(criteria, only_out=False), *unmet) if words]
        ) or "within the budget"

    def _sentences(self, criteria: list[CriterionVerdict], only_out: bool) -> str:
        told_of = [
            criterion.sentence(one)
            for criterion, one in zip(self._criteria, criteria, strict=True)
            if one.out or not only_out
        ]
        return "; ".join(told_of)

    def _lr_dropped(self, evaluation: Evaluation) -> bool:
        """Whether the learning rate fell after an interval in which it stood still: a step down,
        unlike the steady fall of a cosine.
        """
        if evaluation.lr is None:
            if any(one.cooldown for one in self._settings.improvement):
                raise ConfigError(
                    "stop.improvement.cooldown: the learning rate of the evaluations is not known. "
                    "Leave cooldown out."
                )
            return False
        before, self._lr = self._lr, evaluation.lr
        if before is None:
            return False
        dropped = self._lr_stood and evaluation.lr < before
        self._lr_stood = evaluation.lr == before
        return dropped


def _enough(holds: list[bool], need: str) -> bool:
    return bool(holds) and (all(holds) if need == "all" else any(holds))
