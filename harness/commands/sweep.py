"""`fermarsi sweep`: many runs of one config with other values, by Optuna."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from harness import components
from harness.commands.config import read_whole
from harness.commands.page import figure_settings, figure_svg, page, section
from harness.commands.show import say, show
from harness.config.document import to_yaml
from harness.config.read import plain
from harness.config.schema import Config
from harness.durable import replace_file
from harness.errors import ConfigError, require_choice
from harness.interrupt import Interruption
from harness.rundir.lease import Lease
from harness.rundir.outcome import INTERRUPTED
from harness.search.process import Place
from harness.search.results import Trials
from harness.search.space import Parameter, Range, grid, read_space
from harness.search.study import (
    FEWEST_EVALUATIONS,
    MEDIAN_OF,
    PRUNERS,
    SAMPLERS,
    Design,
    Study,
)
from harness.search.sweep import Plan, Sweep
from harness.stopping.budget import num_evaluations
from harness.stopping.judges import best_metric
from harness.stopping.verdict import MetricInfo
from harness.tasks.task import Task, known_metrics
from harness.wording import printable

TRIALS, ETA = 20, 3
TABLE = """<table><tr>{% for cell in head %}<th>{{ cell }}{% endfor %}
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}{% endfor %}
{% endfor %}</table>"""


@dataclass(frozen=True)
class Options:
    """What the command line asks for; None: the default. `at_once`: trials side by side."""

    trials: int | None = None
    sampler: str | None = None
    prune: str = "none"
    eta: int | None = None
    seed: int = 0
    at_once: int = 1
    processes: int = 1
    cpu: bool = False
    directory: Path | None = None


def sweep_command(
    path: Path,
    overrides: Sequence[str],
    over: Sequence[str],
    options: Options,
    *,
    as_json: bool = False,
) -> int:
    """Run the sweep's trials, or what is left of them, and show them; the exit code. Raises
    HarnessError.
    """
    space, config = read_space(path, over, overrides, reader(path))
    design = design_of(config, space, options)
    trials = TRIALS if options.trials is None else options.trials
    if design.sampler == "grid":
        combinations = sum(1 for _ in grid(space))
        trials = min(combinations, options.trials or combinations)
    if options.prune == "median":
        if trials <= MEDIAN_OF:
            raise ConfigError(
                f"--prune median: can end no trial before its end: there are {trials} trials, and "
                f"it needs more than {MEDIAN_OF}, the first of which are never ended. Give more "
                "--trials, or leave --prune out."
            )
        if not as_json:
            say(f"--prune median ends trials once {MEDIAN_OF} are complete")
    directory = options.directory or Path(f"{config.run.dir}-sweep")
    places = places_of(options.at_once, options.processes, cpu=options.cpu)
    plan = Plan(path, overrides, directory, config.run.name, trials, places, config.stop.budget)
    with Interruption() as interruption:
        lease = Lease(directory)
        lease.take(interruption.check)
        try:
            study = Study(directory, design)
            ended = Sweep(plan, study, (lambda text: None) if as_json else say).run(interruption)
            result = Trials.of(study, directory)
            write(result)
        finally:
            lease.release()
    show(result, as_json)
    if ended and not as_json and options.prune != "none" and result.were_too_short():
        say(
            f"--prune {options.prune} had no effect: no trial was evaluated before its end. "
            "Evaluate more often (stop.every), or give a larger budget."
        )
    return 0 if ended else INTERRUPTED


def design_of(config: Config, space: Sequence[Parameter], options: Options) -> Design:
    """Raises ConfigError for what does not fit together."""
    sampler = options.sampler or "tpe"
    if options.sampler is None and options.prune == "asha":
        sampler = "random"
    if options.sampler is None and options.trials is None:
        sampler = sampler if any(isinstance(one, Range) for one in space) else "grid"
    require_choice("--sampler", sampler, SAMPLERS)
    require_choice("--prune", options.prune, PRUNERS)
    if options.eta is not None and options.prune not in ("hyperband", "asha"):
        raise ConfigError(
            "--eta: no effect without --prune hyperband or asha. Give one, or drop --eta."
        )
    budget = config.stop.budget
    intervals = num_evaluations(budget, config.stop.every)
    fewest = FEWEST_EVALUATIONS.get(options.prune, 0)
    if intervals is not None and intervals < fewest:
        raise ConfigError(
            f"--prune {options.prune}: can end no trial before its end: there are {intervals} "
            f"evaluations in stop.budget, by stop.every, and it needs {fewest}. Evaluate more "
            "often, give a larger budget, or leave --prune out."
        )
    if options.prune == "hyperband" and intervals is None:
        raise ConfigError(
            "--prune hyperband: needs the number of evaluations in the budget. Give stop.budget in "
            "the unit of stop.every."
        )
    if options.prune == "forecast" and budget is None:
        raise ConfigError("--prune forecast: needs a budget to look ahead to. Give stop.budget.")
    metric, info = objective(config)
    base = to_yaml(plain(config.model_dump(by_alias=True)))
    eta = ETA if options.eta is None else options.eta
    return Design(space, metric, info, sampler, options.prune, eta, options.seed, base, intervals)


def reader(path: Path) -> Callable[[Sequence[str]], Config]:
    """What reads the config of a trial by its overrides: all that can be checked is, and that it is
    ranked as the first one that was read. Raises ConfigError.
    """
    ranked: list[str] = []

    def read(overrides: Sequence[str]) -> Config:
        config = read_whole(path, overrides)
        ranked.append(objective(config)[0])
        if ranked[-1] != ranked[0]:
            raise ConfigError(
                f"override {overrides[-1]}: such trials would be ranked by {ranked[-1]}, others by "
                f"{ranked[0]}. Set stop.best.metric."
            )
        return config

    return read


def objective(config: Config) -> tuple[str, MetricInfo]:
    """The metric by which checkpoints are ranked, and trials with them. Raises ConfigError."""
    task: Task = components.build(config.task, "task")
    metrics = known_metrics(task, config.data.evaluated_splits)
    found = best_metric(config.stop, metrics)
    if found is None:
        raise ConfigError("stop.best: no metric to compare runs by. Give stop.best.metric.")
    return found[0], metrics[found[0]]


def places_of(at_once: int, processes: int, *, cpu: bool) -> list[Place]:
    """Where so many launches run side by side. Raises ConfigError for more than there are GPUs."""
    import torch

    gpus = [] if cpu else [str(one) for one in range(torch.cuda.device_count())]
    if not gpus:
        return [Place(processes, cpu=True) for _ in range(at_once)]
    if at_once * processes > len(gpus):
        raise ConfigError(
            f"--at-once {at_once}, --processes {processes}: torch sees {len(gpus)} GPUs here, one "
            "a process. Give fewer."
        )
    if at_once * processes == 1:
        return [Place()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = gpus if visible is None else [one.strip() for one in visible.split(",")]
    return [
        Place(processes, gpus=tuple(names[first : first + processes]))
        for first in range(0, at_once * processes, processes)
    ]


def write(result: Trials) -> None:
    """The Parquet file and the page. Raises ConfigError."""
    path = result.directory / "sweep.html"
    try:
        result.write_parquet(result.directory / "trials.parquet")
        with figure_settings():
            sections = [section("{{ drawn }}", drawn=_draw(result)), _table(result)]
        replace_file(path, page(f"fermarsi: {result.directory.name}", sections), sync=False)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Make the directory writable.") from error


def _table(result: Trials) -> Markup:
    keys = result.keys()
    rows = [
        [
            one.number,
            one.state,
            "" if math.isnan(one.value) else f"{one.value:.6g}",
            max(one.curve, default=0),
            one.reason,
        ]
        + [one.values.get(key, "") for key in keys]
        for one in result.ranked()
    ]
    head = ["trial", "", result.metric, "evaluations", "ended by", *keys]
    return section(TABLE, head=head, rows=rows)


def _draw(result: Trials) -> Markup:
    """The curves of all trials, and the values against each of what is varied."""
    from matplotlib.figure import Figure

    keys = result.keys()
    columns = 1 + len(keys)
    figure = Figure(figsize=(min(4.2 * columns, 16), 3.4), layout="constrained")
    axes, *others = figure.subplots(1, columns, squeeze=False)[0]
    for one in result.trials:
        color = "tab:blue" if one.state == "complete" else "0.7"
        axes.plot(list(one.curve), list(one.curve.values()), color=color, marker=".", alpha=0.6)
    axes.set(title=printable(result.metric)[:60], xlabel="evaluations")
    for key, one_axes in zip(keys, others, strict=True):
        shown = [one for one in result.trials if one.state in ("complete", "pruned")]
        cells = [one.values.get(key, "") for one in shown]
        numbers = _numbers(cells)
        colors = ["tab:blue" if one.state == "complete" else "0.7" for one in shown]
        across: Sequence[float | str] = numbers or [printable(cell)[:20] for cell in cells]
        one_axes.scatter(across, [one.value for one in shown], c=colors)
        if numbers and min(numbers) > 0 and max(numbers) > 20 * min(numbers):
            one_axes.set_xscale("log")
        one_axes.set(xlabel=printable(key)[:60])
    return figure_svg(figure)


def _numbers(cells: Sequence[str]) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return []
