"""`fermarsi folds`: cross-validation by split rules."""

import json
from collections.abc import Sequence
from pathlib import Path

from harness.commands.config import read_whole
from harness.commands.page import figure_settings, figure_svg, page, section
from harness.commands.show import say, show
from harness.commands.sweep import TABLE, objective, places_of
from harness.config.document import to_yaml
from harness.config.read import plain, read_config
from harness.durable import replace_file, write_json
from harness.errors import ConfigError
from harness.interrupt import Interruption
from harness.rundir.lease import Lease
from harness.rundir.outcome import INTERRUPTED
from harness.search.folds import Dealing, Folds, fold_overrides, run_folds
from harness.search.space import override
from harness.wording import printable


def folds_command(
    path: Path,
    overrides: Sequence[str],
    dealing: Dealing,
    *,
    at_once: int = 1,
    processes: int = 1,
    cpu: bool = False,
    directory: Path | None = None,
    as_json: bool = False,
) -> int:
    """Train all folds, or what is left of them, and show their metrics; the exit code. Raises
    HarnessError.
    """
    if dealing.group and dealing.stratify is not None:
        raise ConfigError("--group, --stratify: whole groups are not stratified. Leave one out.")
    config = read_whole(path, overrides)
    each = {}
    for fold in range(1, dealing.k + 1):
        name = override("run.name", f"{config.run.name}-{fold}")
        each[fold] = [*overrides, *fold_overrides(config, dealing, fold), name]
    read_config(path, each[1])
    metric, _ = objective(config)
    directory = directory or Path(f"{config.run.dir}-folds")
    places = places_of(at_once, processes, cpu=cpu)
    with Interruption() as interruption:
        lease = Lease(directory)
        lease.take(interruption.check)
        try:
            base = to_yaml(plain(config.model_dump(by_alias=True)))
            _keep(directory / "folds.json", {"config": base, **vars(dealing)})
            tell = (lambda text: None) if as_json else say
            ended = run_folds(path, each, directory, places, interruption, tell)
            result = Folds.read(directory, dealing.k, metric)
            write(result)
        finally:
            lease.release()
    show(result, as_json)
    return 0 if ended else INTERRUPTED


def _keep(path: Path, given: dict[str, object]) -> None:
    """Note what the folds are of, and refuse others. Raises ConfigError."""
    given = json.loads(json.dumps(given))
    if path.exists() and json.loads(path.read_text()) != given:
        raise ConfigError(
            f"{path.parent}: holds folds of another config, or dealt in another way. Give what "
            "they had to go on, or another --dir to begin anew."
        )
    write_json(path, given, sync=True, indent=2, end="\n")


def write(result: Folds) -> None:
    """The Parquet file and the page. Raises ConfigError."""
    from matplotlib.figure import Figure

    path = result.directory / "folds.html"
    with figure_settings():
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        axes = figure.subplots()
        for one in result.folds:
            axes.plot(*zip(*one.curve, strict=True), marker=".", label=f"fold {one.number}")
        more = f" ({result.missing()})" if result.missing() else ""
        axes.set(title=f"{printable(result.metric)[:60]}{more}", xlabel="epoch")
        if result.folds:
            axes.legend(frameon=False, fontsize=8)
        drawn = figure_svg(figure)
    head = ["", "mean", "spread", *(f"fold {one.number}" for one in result.folds)]
    rows = [
        [name, f"{found['mean']:.6g}", f"{found['spread']:.3g}"]
        + [f"{one.values[name]:.6g}" for one in result.folds]
        for name, found in result.summary().items()
    ]
    sections = [section("{{ drawn }}", drawn=drawn), section(TABLE, head=head, rows=rows)]
    sections += [section("<p>{{ said }}", said=one) for one in result.without_mean()]
    try:
        result.write_parquet(result.directory / "folds.parquet")
        replace_file(path, page(f"fermarsi: {result.directory.name}", sections), sync=False)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Make the directory writable.") from error
