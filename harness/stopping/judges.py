"""All criteria of the stop settings together: the one list of them."""

from collections.abc import Sequence

from harness.errors import ConfigError
from harness.settings import item_path
from harness.stopping.budget import BudgetJudge
from harness.stopping.divergence import DivergenceJudge
from harness.stopping.forecast import ForecastJudge, too_few_evaluations
from harness.stopping.improvement import ImprovementJudge
from harness.stopping.judge import Judge, problems_of, unknown_metric
from harness.stopping.milestones import MilestonesJudge
from harness.stopping.overfitting import OverfittingJudge
from harness.stopping.plateau import PlateauJudge
from harness.stopping.request import RequestJudge
from harness.stopping.settings import StopSettings
from harness.stopping.targets import TargetsJudge, expand
from harness.stopping.verdict import Metrics, Mode


def judges_of(settings: StopSettings, metrics: Metrics, request: RequestJudge) -> list[Judge]:
    """New judges in the order of precedence: of those that stop at one evaluation, the first gives
    the verdict its reason.
    """
    return [
        DivergenceJudge(settings.divergence, metrics),
        TargetsJudge(settings.targets, settings.targets_need, settings.hold, metrics),
        request,
        MilestonesJudge(settings.milestones, settings.budget, metrics),
        ForecastJudge(settings.forecast, settings.targets, settings.budget, metrics),
        OverfittingJudge(settings.gap, metrics),
        ImprovementJudge(
            settings.improvement,
            settings.improvement_needs,
            settings.warmup,
            metrics,
            whole_epochs=settings.every.epochs is not None,
        ),
        PlateauJudge(settings.plateau, metrics),
        BudgetJudge(settings.budget),
    ]


def problems(settings: StopSettings, metrics: Metrics, *, replayed: bool = False) -> list[str]:
    """All problems of the settings, given the available metrics: names without a metric,
    contradictions, settings without effect. replayed: evaluations are a history's, not by `every`.
    """
    judges = judges_of(settings, metrics, RequestJudge())
    found = [problem for judge in judges for problem in judge.problems()]
    if settings.forecast is not None and not replayed:
        found += too_few_evaluations(settings.budget, settings.every)
    best = [] if settings.best is None else [settings.best]
    return [*found, *problems_of("best", best, metrics)]


def refuse(problems: Sequence[str]) -> None:
    """Raise ConfigError with all problems in one message, if there are any."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(
            "\n".join([f"{len(problems)} problems:", *(f"  {one}" for one in problems)])
        )


def metrics_of(settings: StopSettings, metrics: Metrics) -> set[str]:
    """All metrics that the settings name."""
    judges = judges_of(settings, metrics, RequestJudge())
    named = set() if settings.best is None else {settings.best.metric}
    return named.union(*(judge.metrics() for judge in judges))


def best_metric(settings: StopSettings, metrics: Metrics) -> tuple[str, Mode] | None:
    """The metric by which checkpoints are ranked: `best`, or the first improvement's metric, or the
    first target's (validation), or val/loss. Raises ConfigError for one that is not there.
    """
    if settings.best is not None:
        where, name = "best.metric", settings.best.metric
    elif settings.improvement:
        one = settings.improvement
        where, name = f"{item_path('improvement', 0, one)}.metric", one[0].metric
    elif settings.targets:
        target = next(iter(settings.targets))
        where, name = f"targets.{target}", expand(target, metrics)[-1]
    elif "val/loss" in metrics:
        where, name = "best.metric", "val/loss"
    else:
        return None
    refuse([*unknown_metric(f"stop.{where}", name, metrics)])
    return name, metrics[name].mode
