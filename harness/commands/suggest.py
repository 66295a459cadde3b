"""`fermarsi replay RUNS --suggest`: what patience and rate would have saved most on past runs."""

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.commands.replay import table
from harness.errors import ConfigError
from harness.stopping.history import History, read_history
from harness.stopping.judges import best_metric, refuse
from harness.stopping.replay import metric_infos, replay, unclear
from harness.stopping.settings import StopSettings

PATIENCES = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30)
RATES = ("0%", "0.1%", "0.5%", "1%", "2%", "5%")


@dataclass(frozen=True)
class Trial:
    """One run under one setting: the shares of its steps saved and of its best value lost."""

    saved: float
    regret: float


Setting = tuple[int, str]


def suggestion(paths: Sequence[Path], settings: StopSettings, regret: float) -> Iterator[str]:
    """A table of the best settings, what is suggested, and what choosing it without a run would
    have done to that run.

    Only settings that lose at most `regret` on every run count. Raises ConfigError.
    """
    if len(paths) < 2:
        raise ConfigError("--suggest: one run says nothing of the next. Give at least two runs.")
    histories = [read_history(path) for path in paths]
    metric = _metric(histories[0], settings)
    refuse([*unclear([metric], settings)])
    tried = {
        setting: [_try(history, settings, setting) for history in histories]
        for setting in itertools.product(PATIENCES, RATES)
    }
    allowed = sorted(
        (one for one in tried if _worst(tried[one]) <= regret),
        key=lambda one: (-_mean_saved(tried[one]), one[0]),
    )
    if not allowed:
        yield (
            f"no setting keeps {metric} of all {len(paths)} runs within {regret:.2%} of its best. "
            "Allow a larger --regret."
        )
        return
    rows = [("patience", "at_least", "steps saved", "mean regret", "largest")]
    rows += [(str(p), rate, *_numbers(tried[p, rate])) for p, rate in allowed[:5]]
    yield from table(rows, left=())
    patience, rate = allowed[0]
    yield (
        f"suggested: stop.improvement={{metric: {metric}, at_least: {rate}, patience: {patience}}}"
    )
    left_out = [_leave_one_out(tried, index, regret) for index in range(len(paths))]
    known = [one for one in left_out if one is not None]
    if known:
        saved, mean, largest = _numbers(known)
        yield (
            f"chosen without a run and tried on it (leave-one-out, {len(known)} of {len(paths)} "
            f"runs): saves {saved} of its steps at a regret of {mean}, at most {largest}"
        )


def _metric(history: History, settings: StopSettings) -> str:
    """What patience is about: the first improvement's metric, or the best checkpoint's."""
    if settings.improvement:
        return settings.improvement[0].metric
    found = best_metric(settings, metric_infos(history, settings))
    if found is None:
        raise ConfigError(f"{history.path}: no metric to judge by. Give stop.best.metric.")
    return found[0]


def _try(history: History, settings: StopSettings, setting: Setting) -> Trial:
    metric, (patience, rate) = _metric(history, settings), setting
    info = metric_infos(history, settings).get(metric)
    mode = None if info is None else info.mode
    given: Mapping[str, object] = {
        "improvement": {"metric": metric, "patience": patience, "at_least": rate, "mode": mode},
        "best": {"metric": metric},
        "warmup": settings.warmup,
    }
    found = replay(history, StopSettings.model_validate(given))
    best, after = (math.nan if one is None else one.value for one in (found.best, found.best_after))
    if not (math.isfinite(best) and math.isfinite(after)):
        raise ConfigError(
            f"{history.path}: {metric} has no finite value before the run ends. Leave this run out."
        )
    last = found.evaluations[-1].step
    stop = last if found.stop_index is None else found.evaluations[found.stop_index].step
    return Trial((last - stop) / (last or 1), abs(after - best) / (abs(after) or 1.0))


def _leave_one_out(
    tried: Mapping[Setting, Sequence[Trial]], index: int, regret: float
) -> Trial | None:
    """The run `index` under the setting that the others suggest; None if they suggest none."""
    others = {
        setting: [one for other, one in enumerate(runs) if other != index]
        for setting, runs in tried.items()
    }
    allowed = [setting for setting, runs in others.items() if _worst(runs) <= regret]
    if not allowed:
        return None
    return tried[min(allowed, key=lambda one: (-_mean_saved(others[one]), one[0]))][index]


def _mean_saved(runs: Sequence[Trial]) -> float:
    return statistics.fmean(one.saved for one in runs)


def _worst(runs: Sequence[Trial]) -> float:
    return max(one.regret for one in runs)


def _numbers(runs: Sequence[Trial]) -> tuple[str, str, str]:
    mean = statistics.fmean(one.regret for one in runs)
    return f"{_mean_saved(runs):.0%}", f"{mean:.2%}", f"{_worst(runs):.2%}"
