"""Judging a recorded history again: what would these stop settings have decided on it?

What a history does not hold is not replayed: requests to stop, and the losses of single steps
(spikes, skipped steps).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.stopping.best import BestSoFar
from harness.stopping.controller import StopController
from harness.stopping.history import History
from harness.stopping.judges import judges_of, metrics_of, problems, refuse
from harness.stopping.milestones import chance_of
from harness.stopping.rate import error_of
from harness.stopping.request import RequestJudge
from harness.stopping.settings import StopSettings
from harness.stopping.targets import expand
from harness.stopping.verdict import Best, Evaluation, MetricInfo, Mode, Verdict


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SPLIT = re.compile("^(train|val)/")
# Words in the names of metrics
_SMALLER_IS_BETTER = _words(
    "loss error err mse rmse rmsle mae mape smape nll entropy crossentropy perplexity ppl wer cer "
    "bpc fid brier ece cost deviance distance"
)
_SHARES = _words(
    "accuracy acc f1 precision recall sensitivity specificity auc auroc ap map iou miou dice top1 "
    "top5"
)
_LARGER_IS_BETTER = _SHARES | _words(
    "r2 mcc kappa bleu rouge psnr ssim reward correlation pearson spearman snr score jaccard "
    "ndcg mrr"
)


@dataclass(frozen=True)
class Replay:
    """What one set of settings decides on a history, up to where it stops.

    `best_after`: what the whole history had to offer.
    """

    label: Mapping[str, str]
    evaluations: list[Evaluation]
    verdicts: list[Verdict]
    stop_index: int | None
    best: Best | None
    best_after: Best | None
    need: str

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints; indices count evaluations from 0."""
        steps = [one.step for one in self.evaluations]
        last = self.verdicts[-1] if self.stop_index is not None else None
        return {
            "stop_index": self.stop_index,
            "reason": None if last is None else last.reason,
            "detail": None if last is None else last.detail,
            "best_index": None if self.best is None else steps.index(self.best.step),
            "verdicts": [
                {
                    "index": index,
                    "step": steps[index],
                    "improved": verdict.improved,
                    "new_best": verdict.new_best,
                    "stale": self.stale(verdict),
                    "action": verdict.action,
                    "reason": verdict.reason,
                }
                for index, verdict in enumerate(self.verdicts)
            ],
        }

    def stale(self, verdict: Verdict) -> int:
        """Stale intervals in a row: with several criteria those of the freshest if all must run
        out, of the stalest if any may.
        """
        counts = [one.stale for one in verdict.criteria] or [0]
        return min(counts) if self.need == "all" else max(counts)


def replay(
    history: History, settings: StopSettings, label: Mapping[str, str] | None = None
) -> Replay:
    """Judge a history evaluation by evaluation until the settings stop.

    Raises ConfigError for settings that the history cannot answer.
    """
    infos = metric_infos(history, settings)
    used = metrics_of(settings, infos)
    refuse(
        [
            *problems(settings, infos, replayed=True),
            *_unanswerable_settings(history, settings, infos),
            *unclear(sorted(used & infos.keys()), settings),
        ]
    )
    controller = StopController(settings, infos, replayed=True)
    evaluations = [one for one in history.evaluations if not used or used & one.metrics.keys()]
    verdicts: list[Verdict] = []
    for evaluation in evaluations:
        verdicts.append(controller.judge(evaluation))
        if verdicts[-1].stops:
            break
    ranked = controller.best_metric()
    after = None if ranked is None else BestSoFar(*ranked)
    for evaluation in evaluations:
        if after is not None:
            after.take(evaluation)
    return Replay(
        label=label or {},
        evaluations=evaluations,
        verdicts=verdicts,
        stop_index=len(verdicts) - 1 if verdicts and verdicts[-1].stops else None,
        best=controller.best(),
        best_after=None if after is None else after.best,
        need=settings.improvement_needs,
    )


def metric_infos(history: History, settings: StopSettings) -> dict[str, MetricInfo]:
    """What the metrics of a history declare, as far as one can tell: the mode from the settings or
    else from the name, "max" where that is `unclear`.

    A share by its name (accuracy, F1, ...) is bounded by 0 and 1 if all its values are.
    """
    infos = {}
    names = dict.fromkeys(history.metrics)
    for name in names:
        words = _words_of(name)
        mode = _mode_of(name, settings) or "max"
        values = [
            value
            for one in history.evaluations
            if (value := one.metrics.get(name)) is not None and math.isfinite(value)
        ]
        share = mode == "max" and words & _SHARES and all(0 <= value <= 1 for value in values)
        lower, upper = (0.0, 1.0) if share else (None, None)
        known = (chance_of(name) in names, error_of(name) in names)
        infos[name] = MetricInfo(mode, lower, upper, *known)
    return infos


def unclear(names: Sequence[str], settings: StopSettings) -> Iterator[str]:
    """The problems of metrics of which neither settings nor name say whether more is better."""
    for name in names:
        if _mode_of(name, settings) is None:
            yield (
                f"{name}: its name does not tell whether more or less of it is better. Add "
                f"stop.best={{metric: {name}, mode: min}}, or mode: max."
            )


def _words_of(name: str) -> frozenset[str]:
    return frozenset(re.split(r"[^a-z0-9]+", name.lower()))


def _mode_of(name: str, settings: StopSettings) -> Mode | None:
    for one in (*settings.improvement, settings.best):
        # A metric of the other split is better the same way
        if one and one.mode and _SPLIT.sub("", one.metric) == _SPLIT.sub("", name):
            return one.mode
    words = _words_of(name)
    if words & _SMALLER_IS_BETTER:
        return "min"
    return "max" if words & _LARGER_IS_BETTER else dict(_hints(settings)).get(name)


def _hints(settings: StopSettings) -> Iterator[tuple[str, Mode]]:
    """The modes that targets and bounds take for granted."""
    for name, target in settings.targets.items():
        for metric in (name, *expand(name, ())):
            yield metric, target.mode
    for one in settings.milestones:
        yield one.metric, "max" if one.at_most is None else "min"
    for bound in settings.divergence:
        if bound.ratio_to_best is None:
            yield bound.metric, "min" if bound.above is not None else "max"


def _unanswerable_settings(
    history: History, settings: StopSettings, infos: Mapping[str, MetricInfo]
) -> Iterator[str]:
    """Settings that need what the history does not hold."""
    for judge in judges_of(settings, infos, RequestJudge()):
        for where, unit in judge.needs():
            column = "epoch" if unit == "epochs" else unit
            if column not in history.known:
                also = " (or elapsed_s)" if column == "hours" else ""
                yield (
                    f"{where}: {history.path} does not have {column}{also} at each evaluation. Add "
                    "it, or leave the setting out."
                )
