"""The interface of judges, one per stop criterion, and what the criteria share. To add one: a file
in this folder with its settings and its judge, a field in settings.py, a line in judges.py.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from harness.settings import item_path
from harness.stopping.verdict import CriterionVerdict, Evaluation, MetricInfo, Metrics, Mode
from harness.wording import closest

Need = Literal["all", "any"]


class Finding(NamedTuple):
    """What a judge finds at one evaluation.

    `stop`: the sentence, without its full stop, that ends the training, None to continue;
    `outlook`: where the criterion stands, for the verdict of a training that continues.
    """

    stop: str | None = None
    outlook: str = ""
    warnings: Sequence[str] = ()
    criteria: Sequence[CriterionVerdict] = ()


class Judge(Protocol):
    """One criterion, with all settings of its kind.

    A judge is pure and keeps running state only, so that `take` costs the same after ten
    evaluations as after ten thousand. Nothing of it is saved: after a resume a new judge takes the
    recorded evaluations again, under the settings of then. It is also made of settings that have
    problems, to name them, and takes no evaluation then.
    """

    # What the outcome of a run says when this judge ends it
    reason: str
    # Whether its criterion is one of intervals, which an extra evaluation does not end
    of_intervals: bool = False
    # Whether it is off, and takes no evaluation, while its settings name no metric
    of_metrics: bool = True

    def problems(self) -> Iterator[str]:
        """What is wrong with the settings, given the available metrics, each as "where: what. What
        to do.".
        """
        return iter(())

    def metrics(self) -> set[str]:
        """The metrics that the settings name, by `split/name`."""
        return set()

    def needs(self) -> Iterator[tuple[str, str]]:
        """What the settings need from each evaluation besides its metrics: a setting, and one of
        epochs, samples, hours and lr.
        """
        return iter(())

    def take(self, evaluation: Evaluation) -> Finding:
        """Judge the next evaluation. Called for each one, whatever the other judges find, so that
        the state never depends on a verdict.
        """
        ...


def enough(hold: Sequence[bool], need: Need) -> bool:
    """Whether as many hold as are needed; never if there are none."""
    return bool(hold) and (all(hold) if need == "all" else any(hold))


def unknown_metric(
    where: str, name: str, metrics: Metrics, meant: Sequence[str] = ()
) -> Iterator[str]:
    """The problem of a name that refers to a missing metric. `meant`: the metrics that a name
    without a split stands for.
    """
    missing = [one for one in meant or (name,) if one not in metrics]
    if not missing:
        return
    both = bool(meant) and tuple(meant) != (name,)
    names = [one.partition("/")[2] for one in metrics] if both else list(metrics)
    near = [
        *filter(None, [closest(name, names, cutoff=0.5)]),
        *(one for one in reversed(list(metrics)) if one.endswith(f"/{name}")),
    ]
    meaning = f" ({name} without a split means {' and '.join(meant)})" if both else ""
    hint = ""
    if near and near[0] != name:
        hint = f" Did you mean {near[0]}?"
    elif len(near) > 1:
        hint = f" Write {near[1]}."
    yield (
        f"{where}: there is no metric {missing[0]}{meaning}.{hint} There are "
        f"{', '.join(metrics) or 'none'}."
    )


class OnMetric(Protocol):
    """Settings on one metric."""

    @property
    def metric(self) -> str: ...

    def problems(self, where: str, info: MetricInfo) -> Iterator[str]:
        """What contradicts their metric's declaration."""


def problems_of(kind: str, settings: Sequence[OnMetric], metrics: Metrics) -> Iterator[str]:
    """What is wrong with one or several settings of `stop.<kind>`."""
    for index, one in enumerate(settings):
        where = f"stop.{item_path(kind, index, settings)}"
        yield from unknown_metric(f"{where}.metric", one.metric, metrics)
        if one.metric in metrics:
            yield from one.problems(where, metrics[one.metric])


def wrong_mode(where: str, metric: str, mode: Mode | None, info: MetricInfo) -> Iterator[str]:
    """The problem of a mode that contradicts the metric's declaration."""
    if mode is not None and mode != info.mode:
        yield f"{where}.mode: {mode}, but of {metric} {info.better} is better. Remove mode."
