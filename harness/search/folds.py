"""Cross-validation: a run a fold, of a config whose split rules become folds."""

import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from harness import components
from harness.components import TARGET
from harness.config.schema import Config
from harness.errors import ConfigError, DataError
from harness.interrupt import Interruption
from harness.rundir.outcome import Outcome, read_outcome
from harness.search.process import (
    POLL_S,
    Launched,
    Place,
    await_leaving,
    is_cut_off,
    newest_step,
    no_further,
)
from harness.search.space import override
from harness.tracking.records import METRICS, read_records
from harness.wording import Keys, dotted, printable

RULE = "harness.sources.split.ByFold"
# What sources call theirs
_NAMES = ("split", "rule")


@dataclass(frozen=True)
class Dealing:
    """How samples are dealt to `k` folds: by whole groups, by strata, or one by one."""

    k: int
    group: Sequence[str] = ()
    stratify: str | None = None


def fold_overrides(config: Config, dealing: Dealing, fold: int) -> list[str]:
    """What makes a config the run of one fold. Raises ConfigError for sources without parts, and
    for rules that differ.
    """
    rules: dict[str, Any] = {}
    overrides = []
    for name in config.data.names:
        found = list(_parted(getattr(config.data, name).source, ("data", name, "source")))
        if not found and name != "test":
            raise ConfigError(
                f"data.{name}.source: has no `part`, which a split rule gives. Give a source of "
                "files, a table or a dataset with part: train and part: val."
            )
        for keys, source in found:
            rule = _rule_of(source)
            old = source.get(rule)
            old = old if isinstance(old, Mapping) and TARGET in old else None
            rules[dotted((*keys, rule))] = old
            new = {TARGET: RULE, "k": dealing.k, "fold": fold, **_columns(dealing, old)}
            if old is not None:
                new["within"] = old
            overrides.append(override(dotted((*keys, rule)), new))
    if "val" not in config.data.names:
        raise ConfigError("data.val: there is none to measure a fold by. Add it, with part: val.")
    first = next(iter(rules))
    other = next((key for key in rules if rules[key] != rules[first]), None)
    if other is not None:
        raise ConfigError(
            f"{first} and {other} differ, so their parts may share samples. Give all splits one "
            "rule."
        )
    return overrides


def _parted(source: Any, keys: Keys) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
    """The components of a source that read a part, and their keys."""
    for inner, spec in (((), source), *components.inside(source, ())):
        if TARGET in spec and spec.get("part") in ("train", "val", "test"):
            yield (*keys, *inner), spec


def _rule_of(source: Mapping[str, Any]) -> str:
    given = next((name for name in _NAMES if isinstance(source.get(name), Mapping)), None)
    takes = inspect.signature(components.find(source[TARGET])).parameters
    return given or ("rule" if "rule" in takes else "split")


def _columns(dealing: Dealing, old: Mapping[str, Any] | None) -> dict[str, Any]:
    """The columns of the new rule: whole groups stay whole if the old one kept them so."""
    if dealing.group:
        return {"column": list(dealing.group)}
    if dealing.stratify is not None:
        return {"stratify": dealing.stratify}
    if old is not None and components.target_of(old).endswith(".ByGroup"):
        return {"column": old["column"]}
    return {}


@dataclass
class _Job:
    fold: int
    launched: Launched
    place: Place
    begin: int  # the step


def run_folds(
    config: Path,
    overrides: Mapping[int, Sequence[str]],
    directory: Path,
    places: Sequence[Place],
    interruption: Interruption,
    say: Callable[[str], None],
) -> bool:
    """Train each fold in its directory, or go on with it; False if it was interrupted: then all
    that ran have saved. `overrides`: by fold. Raises DataError with the message of one that fails.
    """
    left, jobs = list(overrides), list[_Job]()
    try:
        while (left or jobs) and interruption.cause is None:
            for job in [one for one in jobs if one.launched.exit_code() is not None]:
                job.launched.wait()
                jobs.remove(job)
                left[:0] = [] if _has_ended(job, directory, say) else [job.fold]
            free = [one for one in places if one not in [job.place for job in jobs]]
            for place, fold in list(zip(free, left, strict=False)):
                left.remove(fold)
                run = directory / f"fold-{fold}"
                await_leaving(run, interruption.check)
                given = [*overrides[fold], override("run.dir", str(run))]
                launched = Launched(config, given, _log_of(directory, fold), place)
                jobs.append(_Job(fold, launched, place, newest_step(run)))
                say(f"fold {fold} begins, or goes on")
            time.sleep(POLL_S)
        return not left and not jobs
    finally:
        for job in jobs:
            job.launched.ask_to_leave()
        for job in jobs:
            job.launched.wait()


def _log_of(directory: Path, fold: int) -> Path:
    return directory / "logs" / f"fold-{fold}.txt"


def _has_ended(job: _Job, directory: Path, say: Callable[[str], None]) -> bool:
    """False for one that was cut off and goes on. Raises DataError."""
    run, code = directory / f"fold-{job.fold}", job.launched.exit_code()
    outcome = read_outcome(run)
    if outcome is not None and outcome.is_finished and code in (0, 3):
        say(f"fold {job.fold} ended ({outcome.reason}): {outcome.detail}")
        return True
    step, why = newest_step(run), ""
    if is_cut_off(code) and step > job.begin:
        say(f"fold {job.fold} was cut off at step {step:,}; it goes on")
        return False
    if is_cut_off(code):
        why = no_further(code, step, _log_of(directory, job.fold))
    raise DataError(f"fold {job.fold}: {why or job.launched.error() or f'exit code {code}'}")


@dataclass(frozen=True)
class Fold:
    """What a fold's run gave. `values`: of the validation metrics at its best checkpoint, or at its
    last evaluation where checkpoints are not ranked.
    """

    number: int
    outcome: Outcome
    values: Mapping[str, float]
    curve: Sequence[tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        best = self.outcome.best
        step = self.outcome.step if best is None else best["step"]
        return {"fold": self.number, "reason": self.outcome.reason, "step": step, **self.values}


@dataclass(frozen=True)
class Folds:
    """Those of `k` folds whose runs have ended. Spread: the sample standard deviation, by the
    number of folds less 1.
    """

    directory: Path
    metric: str
    k: int
    folds: Sequence[Fold]

    @classmethod
    def read(cls, directory: Path, k: int, metric: str) -> "Folds":
        """Raises HarnessError for runs that cannot be read."""
        folds = []
        for number in range(1, k + 1):
            outcome = read_outcome(directory / f"fold-{number}")
            if outcome is None or not outcome.is_finished:
                continue
            step = outcome.step if outcome.best is None else outcome.best["step"]
            values, curve = {}, []
            for record in read_records(directory / f"fold-{number}" / METRICS):
                if record["kind"] != "eval":
                    continue
                if record.get(metric) is not None:
                    curve.append((record["epoch"], record[metric]))
                if record["step"] == step:
                    values = {
                        name: math.nan if value is None else float(value)
                        for name, value in record.items()
                        if name.startswith("val/") and isinstance(value, int | float | None)
                    }
            folds.append(Fold(number, outcome, values, curve))
        return cls(directory, metric, k, folds)

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean, spread, lowest and highest value of each metric that all folds have."""
        found = {}
        for name in self._names():
            if name in self.undefined():
                continue
            values = [one.values[name] for one in self.folds]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            found[name] = {
                "mean": statistics.fmean(values),
                "spread": spread,
                "lowest": min(values),
                "highest": max(values),
            }
        return found

    def without_mean(self) -> Iterator[str]:
        """What the table does not have, and why."""
        for name, folds in self.undefined().items():
            where = ", ".join(map(str, folds))
            yield f"{printable(name)}: no finite value in fold {where}, and so no mean"

    def undefined(self) -> dict[str, list[int]]:
        """The metrics without a finite value in some folds, and those."""
        found = {
            name: [
                one.number
                for one in self.folds
                if not math.isfinite(one.values.get(name, math.nan))
            ]
            for name in self._names()
        }
        return {name: folds for name, folds in found.items() if folds}

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for one in self.folds for name in one.values))

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        folds = [one.to_json() for one in self.folds]
        return {"metric": self.metric, "k": self.k, "summary": self.summary(), "folds": folds}

    def missing(self) -> str:
        """How many folds are still to be trained, in words; "" if none is."""
        done = len(self.folds)
        return (
            "" if done == self.k else f"{done} of {self.k} folds have ended; run it again to go on"
        )

    def page(self) -> Iterator[str | Table]:
        """For people."""
        summary = self.summary()
        table = Table("", "mean", "spread", *(f"fold {one.number}" for one in self.folds))
        for name, found in summary.items():
            each = (f"{one.values[name]:.4g}" for one in self.folds)
            table.add_row(printable(name), f"{found['mean']:.4g}", f"{found['spread']:.2g}", *each)
        yield table
        yield from self.without_mean()
        if self.missing():
            yield self.missing()
        yield f"{self.directory}: folds.parquet, folds.html, and a run a fold"

    def write_parquet(self, path: Path) -> None:
        """One row a fold. Raises OSError."""
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist([one.to_json() for one in self.folds]), path)
