"""`fermarsi forecast`: where the metrics of a run are going. No torch, so that it starts fast."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import ConfigError
from harness.stopping.forecast import Outlook, Point, end_of, look_ahead
from harness.stopping.history import History, read_history
from harness.stopping.judge import unknown_metric
from harness.stopping.judges import best_metric, refuse
from harness.stopping.replay import metric_infos, unclear
from harness.stopping.settings import StopSettings
from harness.stopping.targets import expand


def forecast_command(
    run: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    metric: str | None = None,
    *,
    as_json: bool = False,
) -> int:
    """Print the forecasts of the targets of a run, or of one metric; returns the exit code.
    `config` is optional for the directory of a run. Raises ConfigError.
    """
    from harness.commands.show import say

    outlooks = forecast_run(run, config, overrides, metric)
    if as_json:
        print(json.dumps([_plain(one) for one in outlooks]))
    else:
        say("\n".join(one.words() for one in outlooks))
    return 0


def forecast_run(
    run: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    metric: str | None = None,
) -> list[Outlook]:
    """The forecasts that the command prints. Raises ConfigError."""
    from harness.config.read import read_section

    stored = config is None
    if config is None:
        config = run / "config.yaml"
        if not config.is_file():
            raise ConfigError(f"{run}: no config.yaml in it. Give the settings with --config.")
    settings = read_section(config, StopSettings, overrides, stored=stored)
    return list(forecasts(read_history(run), settings, metric))


def forecasts(history: History, settings: StopSettings, metric: str | None) -> Iterator[Outlook]:
    """The forecasts of what the targets of the settings name, or of one metric, or of the metric of
    the best checkpoint. Raises ConfigError.
    """
    if settings.budget is None:
        raise ConfigError(
            f"{history.path}: stop.budget is not set, so there is no time to forecast. Give one, "
            "e.g. stop.budget.epochs=100."
        )
    infos = metric_infos(history, settings)
    wanted: list[tuple[str, float | None]] = [
        (name, target.bound)
        for named, target in settings.targets.items()
        for name in expand(named, infos)
        if metric in (None, name)
    ]
    if not wanted:
        best = None if metric else best_metric(settings, infos)
        name = metric if best is None else best[0]
        wanted = [] if name is None else [(name, None)]
    if not wanted:
        raise ConfigError(f"{history.path}: no metric to forecast. Name one with --metric.")
    last = history.evaluations[-1]
    end = end_of(settings.budget, last)
    if end is None:
        raise ConfigError(
            f"{history.path}: does not have what stop.budget counts, so its end is not known. Add "
            "a budget of steps, e.g. stop.budget.steps=10000."
        )
    for name, value in wanted:
        refuse([*unknown_metric(str(history.path), name, infos), *unclear([name], settings)])
        yield look_ahead(name, infos[name], _points(history, name), end, value)


def _points(history: History, name: str) -> list[Point]:
    return [
        Point(one.step, one.metrics[name], one.lr)
        for one in history.evaluations
        if math.isfinite(one.metrics.get(name, math.nan)) and not one.extra
    ]


def _plain(outlook: Outlook) -> dict[str, Any]:
    """JSON has no NaN."""
    band = None if outlook.abstains else list(outlook.band)
    return {**vars(outlook), "band": band}
