"""The stop controller: is the network good enough, is it still improving, has it diverged, is the
budget spent? Pure: no torch, no clock, no files.

It passes each evaluation to its judges. If several of them stop at the same evaluation, the first
in the order of judges.py determines the reason of the verdict:

    diverged > targets_reached > stop_requested > hopeless > overfitting > no_improvement >
    plateau > budget
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from harness.stopping.best import BestSoFar
from harness.stopping.divergence import LossWatch
from harness.stopping.judges import best_metric, judges_of, problems, refuse
from harness.stopping.record import Row, evaluation_of, row_of
from harness.stopping.request import RequestJudge
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Best, Evaluation, LoggedSteps, Metrics, Mode, Verdict


class StopController:
    """Judges the evaluations of one run, on rank 0; any rank would judge the same."""

    def __init__(self, settings: StopSettings, metrics: Metrics, *, replayed: bool = False) -> None:
        """`metrics`: those of the evaluations to come, by `split/name`; `replayed`: these are a
        history's. Raises ConfigError with all settings that do not fit them.
        """
        refuse(problems(settings, metrics, replayed=replayed))
        self._settings = settings
        self._metrics = dict(metrics)
        self._best_metric = best_metric(settings, metrics)
        self._watch = LossWatch(settings.spike, settings.skipped_steps)
        self._history: list[Row] = []
        self._begin()

    def judge(self, evaluation: Evaluation, *, requested: bool = False) -> Verdict:
        """The verdict on an evaluation, which joins the history.

        `requested`: someone asked to stop.

        Raises ConfigError if a cooldown is set and the evaluation has no `lr`.
        """
        verdict = self._fold(evaluation, requested)
        self._history.append(row_of(evaluation, verdict))
        return verdict

    def watch(self, steps: LoggedSteps) -> Verdict:
        """The verdict on the training losses read at a log point; it stops only for divergence."""
        finding = self._watch.take(steps)
        if finding.stop is not None:
            return Verdict("stop", "diverged", f"{finding.stop}.")
        return Verdict("go_on", warnings=list(finding.warnings))

    def best(self) -> Best | None:
        """The best value so far of the metric that checkpoints are ranked by."""
        return None if self._best is None else self._best.best

    def best_metric(self) -> tuple[str, Mode] | None:
        """What checkpoints are ranked by."""
        return self._best_metric

    def chosen_best(self) -> int | None:
        """The step of the best checkpoint where it is not simply the one of the best value; None
        where it is, or there is none yet.
        """
        one, best = self._settings.best, self.best()
        return None if one is None or not one.at_least or best is None else best.step

    def latest_metrics(self, step: int) -> Mapping[str, float]:
        """The metrics of the evaluation at exactly this step; empty if there was none."""
        last = self._history[-1] if self._history else None
        metrics: Mapping[str, float] = {} if last is None else last["metrics"]
        return {} if last is None or last["step"] != step else metrics

    def history(self) -> Sequence[Row]:
        """The evaluations and their verdicts, oldest first: not a copy; entries are only ever
        appended.
        """
        return self._history

    def state(self) -> dict[str, Any]:
        """JSON but for NaN and infinities: the running state of the losses' watch.

        What follows from the history is not stored: `restore` takes it from there under the
        settings of its own time.
        """
        return {"watch": self._watch.state()}

    def restore(self, state: Mapping[str, Any], history: Sequence[Row]) -> Verdict | None:
        """Take a state and a history back under the present settings; their verdict at its last
        evaluation, None without one.

        The verdicts of the history stay those that were given. A request to stop is not judged
        again: it was for then. Raises KeyError, TypeError and ValueError for what `state` and
        `history` do not give.
        """
        self._begin()
        self._history, last = list(history), None
        for row in history:
            last = self._fold(evaluation_of(row), requested=False)
        self._watch.restore(state["watch"])
        return last

    def _begin(self) -> None:
        """Reset the running state to that before the first evaluation."""
        self._request = RequestJudge()
        every = judges_of(self._settings, self._metrics, self._request)
        self._judges = [one for one in every if one.metrics() or not one.of_metrics]
        self._best = (
            None
            if self._best_metric is None
            else BestSoFar(*self._best_metric, self._settings.best)
        )

    def _fold(self, evaluation: Evaluation, requested: bool) -> Verdict:
        self._request.made = requested
        # A run that goes on later ends as one that never had the extra evaluation
        judges = copy.deepcopy(self._judges) if evaluation.extra else self._judges
        findings = [judge.take(evaluation) for judge in judges]
        reason, detail = next(
            (
                (judge.reason, finding.stop)
                for judge, finding in zip(self._judges, findings, strict=True)
                if finding.stop is not None and not (evaluation.extra and judge.of_intervals)
            ),
            (None, ""),
        )
        if reason is None:
            # What would end the training last in the order of precedence comes first in words
            outlooks = [one.outlook for one in reversed(findings) if one.outlook]
            detail = "; ".join(outlooks) or "within the budget"
        criteria = [criterion for one in findings for criterion in one.criteria]
        warnings = [warning for one in findings for warning in one.warnings]
        new_best = self._best is not None and self._best.take(evaluation)
        if self._best is not None and self._best.warning:
            warnings.append(self._best.warning)
        return Verdict(
            action="go_on" if reason is None else "stop",
            reason=reason,
            detail=f"{detail}.",
            improved=any(one.improved for one in criteria),
            new_best=new_best,
            criteria=criteria,
            warnings=warnings,
        )
