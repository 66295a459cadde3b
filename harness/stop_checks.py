"""Stop settings against the metrics that there are: every setting that names none, contradicts one or cannot take effect on it."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from harness.stop_settings import Divergence, Improvement, Mode, StopSettings, Target, place
from harness.verdict import MetricInfo, show

Metrics = Mapping[str, MetricInfo]

SPLITS = ("train", "val")


def expand(name: str, metrics: Metrics) -> tuple[str, ...]:
    """The metrics that a target's name means: itself, or, named without a split, the training and the validation one."""
    return (name,) if name in metrics or name.startswith(tuple(f"{split}/" for split in SPLITS)) else tuple(f"{split}/{name}" for split in SPLITS)


def best_metric(settings: StopSettings, metrics: Metrics) -> tuple[str, Mode] | None:
    """What the best checkpoint is best in: `best`, or the first improvement's metric, or the first target's (validation), or val/loss."""
    if settings.best is not None:
        names = [settings.best.metric]
    elif settings.improvement:
        names = [settings.improvement[0].metric]
    else:
        names = [expand(name, metrics)[-1] for name in settings.targets] or [name for name in ("val/loss",) if name in metrics]
    return (names[0], metrics[names[0]].mode) if names else None


def used_metrics(settings: StopSettings, metrics: Metrics) -> set[str]:
    """All metrics that the settings name."""
    named = {one.metric for one in settings.improvement} | {one.metric for one in settings.divergence}
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
            (wrong for one in expand(name, metrics) if one in metrics and (wrong := list(_of_target(where, one, target, metrics[one])))), []
        )
    for index, improvement in enumerate(settings.improvement):
        where = f"stop.{place('improvement', index, settings.improvement)}"
        found += _unknown_one(f"{where}.metric", improvement.metric, metrics) or _of_improvement(where, improvement, metrics[improvement.metric])
    for index, divergence in enumerate(settings.divergence):
        where = f"stop.{place('divergence', index, settings.divergence)}"
        found += _unknown_one(f"{where}.metric", divergence.metric, metrics) or _of_divergence(where, divergence, metrics[divergence.metric])
    if settings.best is not None:
        best = settings.best
        found += _unknown_one("stop.best.metric", best.metric, metrics) or list(_of_mode("stop.best", best.metric, best.mode, metrics[best.metric]))
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
    near = [*get_close_matches(name, names, n=1, cutoff=0.5), *(one for one in reversed(list(metrics)) if one.endswith(f"/{name}"))]
    meaning = f" ({name} without a split means {' and '.join(meant)})" if both else ""
    hint = f" Did you mean {near[0]}?" if near and near[0] != name else f" Write {near[1]}." if len(near) > 1 else ""
    return [f"{where}: there is no metric {missing[0]}{meaning}.{hint} There are {', '.join(metrics) or 'none'}."]


def _of_mode(where: str, metric: str, mode: Mode | None, info: MetricInfo) -> Iterator[str]:
    if mode is not None and mode != info.mode:
        yield f"{where}.mode: {mode}, but of {metric} {_better(info.mode)} is better. Leave mode out."


def _of_target(where: str, metric: str, target: Target, info: MetricInfo) -> Iterator[str]:
    if target.at_least is not None:
        if info.upper is not None and target.at_least > info.upper:
            yield f"{where}.at_least: {metric} is never above {show(info.upper)}, so not at least {show(target.at_least)}. Give a value it can reach."
        elif info.mode == "min":
            yield f"{where}.at_least: of {metric} less is better. Write at_most: {show(target.at_least)}."
    if target.at_most is not None:
        if info.lower is not None and target.at_most < info.lower:
            yield f"{where}.at_most: {metric} is never below {show(info.lower)}, so not at most {show(target.at_most)}. Give a value it can reach."
        elif info.mode == "max":
            yield f"{where}.at_most: of {metric} more is better. Write at_least: {show(target.at_most)}."


def _of_improvement(where: str, improvement: Improvement, info: MetricInfo) -> Iterator[str]:
    yield from _of_mode(where, improvement.metric, improvement.mode, info)
    largest = _largest_gain(info)
    if largest is not None and improvement.absolute > largest:
        gain = show(improvement.absolute)
        yield (
            f"{where}.at_least: {improvement.metric} is bounded by {_bounds(info)} and can hardly gain {gain}. "
            f"Write {gain}% for a share of the reference or {show(improvement.absolute / 100)} for an absolute gain."
        )


def _largest_gain(info: MetricInfo) -> float | None:
    """No more than its bound for a metric bounded by 1 (a correlation too), else the width of its range."""
    if info.upper is None:
        return None
    return info.upper if 0 < info.upper <= 1 else None if info.lower is None else info.upper - info.lower


def _of_divergence(where: str, divergence: Divergence, info: MetricInfo) -> Iterator[str]:
    if divergence.above is not None:
        if info.mode == "max":
            yield f"{where}.above: of {divergence.metric} more is better. Write below, or ratio_to_best."
        elif info.upper is not None and divergence.above >= info.upper:
            yield f"{where}.above: {divergence.metric} is never above {show(info.upper)}. Give a lower bound."
    if divergence.below is not None:
        if info.mode == "min":
            yield f"{where}.below: of {divergence.metric} less is better. Write above, or ratio_to_best."
        elif info.lower is not None and divergence.below <= info.lower:
            yield f"{where}.below: {divergence.metric} is never below {show(info.lower)}. Give a higher bound."


def _better(mode: Mode) -> str:
    return "more" if mode == "max" else "less"


def _bounds(info: MetricInfo) -> str:
    assert info.upper is not None
    return show(info.upper) if info.lower is None else f"{show(info.lower)} and {show(info.upper)}"


def told(found: Sequence[str]) -> str:
    """One message of all problems."""
    return found[0] if len(found) == 1 else "\n".join([f"{len(found)} problems:", *(f"  {one}" for one in found)])
