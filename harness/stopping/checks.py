"""Stop settings against the metrics that there are: every setting that names none, contradicts one
or cannot take effect on it.
"""

from collections.abc import Sequence
from difflib import get_close_matches

from harness.settings import place
from harness.stopping.best import _of_mode
from harness.stopping.divergence import _of_divergence
from harness.stopping.improvement import _of_improvement
from harness.stopping.settings import StopSettings
from harness.stopping.targets import _of_target, expand
from harness.stopping.verdict import Metrics, Mode


def best_metric(settings: StopSettings, metrics: Metrics) -> tuple[str, Mode] | None:
    """What the best checkpoint is best in: `best`, or the first improvement's metric, or the first
    target's (validation), or val/loss.
    """
    if settings.best is not None:
        names = [settings.best.metric]
    elif settings.improvement:
        names = [settings.improvement[0].metric]
    else:
        names = [expand(name, metrics)[-1] for name in settings.targets] or [
            name for name in ("val/loss",) if name in metrics
        ]
    return (names[0], metrics[names[0]].mode) if names else None


def used_metrics(settings: StopSettings, metrics: Metrics) -> set[str]:
    """All metrics that the settings name."""
    named = {one.metric for one in settings.improvement} | {
        one.metric for one in settings.divergence
    }
    if settings.best is not None:
        named.add(settings.best.metric)
    return named.union(*(expand(name, metrics) for name in settings.targets))


def problems(settings: StopSettings, metrics: Metrics) -> list[str]:
    """Everything that is wrong with the settings, each as "where: what. What to do."."""
    found: list[str] = []
    for name, target in settings.targets.items():
        where = f"stop.targets.{name}"
        found += _unknown(where, name, expand(name, metrics), metrics)
        found += next(
            (
                wrong
                for one in expand(name, metrics)
                if one in metrics and (wrong := list(_of_target(where, one, target, metrics[one])))
            ),
            [],
        )
    for index, improvement in enumerate(settings.improvement):
        where = f"stop.{place('improvement', index, settings.improvement)}"
        found += _unknown_one(f"{where}.metric", improvement.metric, metrics) or _of_improvement(
            where, improvement, metrics[improvement.metric]
        )
    for index, divergence in enumerate(settings.divergence):
        where = f"stop.{place('divergence', index, settings.divergence)}"
        found += _unknown_one(f"{where}.metric", divergence.metric, metrics) or _of_divergence(
            where, divergence, metrics[divergence.metric]
        )
    if settings.best is not None:
        best = settings.best
        found += _unknown_one("stop.best.metric", best.metric, metrics) or list(
            _of_mode("stop.best", best.metric, best.mode, metrics[best.metric])
        )
    return found


def _unknown_one(where: str, metric: str, metrics: Metrics) -> list[str]:
    return _unknown(where, metric, (metric,), metrics)


def _unknown(where: str, name: str, meant: Sequence[str], metrics: Metrics) -> list[str]:
    """`meant`: the metrics that `name` stands for."""
    missing = [one for one in meant if one not in metrics]
    if not missing:
        return []
    both = tuple(meant) != (name,)
    names = [one.partition("/")[2] for one in metrics] if both else list(metrics)
    near = [
        *get_close_matches(name, names, n=1, cutoff=0.5),
        *(one for one in reversed(list(metrics)) if one.endswith(f"/{name}")),
    ]
    meaning = f" ({name} without a split means {' and '.join(meant)})" if both else ""
    hint = (
        f" Did you mean {near[0]}?"
        if near and near[0] != name
        else f" Write {near[1]}."
        if len(near) > 1
        else ""
    )
    return [
        f"{where}: there is no metric {missing[0]}{meaning}.{hint} There are "
        f"{', '.join(metrics) or 'none'}."
    ]


def told(found: Sequence[str]) -> str:
    """One message of all problems."""
    return (
        found[0]
        if len(found) == 1
        else "\n".join([f"{len(found)} problems:", *(f"  {one}" for one in found)])
    )
