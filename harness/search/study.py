"""The trials of a sweep, kept by Optuna: what was proposed, measured and decided, in a journal in
the sweep's directory that survives any kill.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.durable import replace_file, write_json
from harness.errors import ConfigError
from harness.randomness import seed_for
from harness.search.asha import Rungs
from harness.search.space import Parameter, grid
from harness.stopping.verdict import SIGNS, MetricInfo

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "hyperband", "asha", "forecast")
# Evaluations in the budget from which on a pruner can end a trial before its end: a forecast needs
# six, and three of them in a row
FEWEST_EVALUATIONS = {"median": 2, "hyperband": 2, "asha": 2, "forecast": 9}
# Complete trials that a median is one of. Trials end by themselves, so few may reach a late
# evaluation: a median of one trial would prune promising ones
MEDIAN_OF = 5
_UNTIL = "until"  # of a trial that pauses: the number of evaluations


@dataclass(frozen=True)
class Design:
    """What makes a sweep the same when its command is given again. `config`: the config without
    what is varied; `intervals`: evaluations in the budget, None if unknown.
    """

    space: Sequence[Parameter]
    metric: str
    info: MetricInfo
    sampler: str
    prune: str
    eta: int
    seed: int
    config: str
    intervals: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]  # of a dict


class Study:
    """Ask and tell, one sweep at a time in a directory (the caller holds its lease)."""

    def __init__(self, directory: Path, design: Design) -> None:
        """Raises ConfigError if another design lies there, or Optuna is not installed."""
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "fermarsi sweep needs Optuna, which is not installed: pip install "
                "'fermarsi[search]'."
            ) from error
        self._optuna, self.design = optuna, design
        _keep(directory / "sweep.json", design)
        logging.getLogger("optuna").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                storage=_storage(directory / "study.journal"),
                study_name="sweep",
                direction="maximize" if design.info.mode == "max" else "minimize",
                load_if_exists=True,
                pruner=self._pruner(),
            )
        if design.sampler == "grid":
            known = len(self.trials())
            for values in list(grid(design.space))[known:]:
                self._study.enqueue_trial(values)

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All so far, by number."""
        return self._study.get_trials(deepcopy=False)

    def unfinished(self) -> list[optuna.Trial]:
        """Those that were begun and not told."""
        return [
            self._optuna.Trial(self._study, one._trial_id)
            for one in self.trials()
            if one.state.name == "RUNNING"
        ]

    def ask(self) -> optuna.Trial:
        """A new trial: a function of the seed, its number and what the others were told, so that a
        sweep that was killed proposes what one that was not would have.
        """
        self._study.sampler = self._sampler(self.num_begun())
        return self._study.ask()

    def num_begun(self) -> int:
        """How many trials were begun."""
        return sum(one.state.name != "WAITING" for one in self.trials())

    def best_value(self) -> float | None:
        """The best of the complete trials, None without one."""
        sign = SIGNS[self.design.info.mode]
        values = [one.values[0] for one in self.trials() if one.state.name == "COMPLETE"]
        return max(values, key=lambda value: sign * value, default=None)

    def values(self, trial: optuna.Trial) -> dict[str, str]:
        """What a trial sets, as overrides have it; what was not proposed before a kill is now."""
        self._study.sampler = self._sampler(trial.number)
        return {one.key: one.suggest(trial) for one in self.design.space}

    def reported(self, trial: optuna.Trial) -> Mapping[int, float]:
        """The values of a trial, by its number of evaluations."""
        return self.trials()[trial.number].intermediate_values

    def should_prune(self, trial: optuna.Trial) -> bool:
        """What Optuna's pruner says of a trial; one without any number is the worst."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
            return trial.should_prune()

    def until(self, trial: optuna.Trial) -> int | None:
        """The number of evaluations at which it pauses; None if it never does."""
        if self.design.prune != "asha":
            return None
        return int(trial.user_attrs.get(_UNTIL, Rungs(eta=self.design.eta).after(0)))

    def promoted(self, trials: Sequence[optuna.Trial], *, last: bool) -> optuna.Trial | None:
        """The paused one of these trials that goes on, if one may; `last`: no more will come."""
        if self.design.prune != "asha":
            return None
        sign, rungs = SIGNS[self.design.info.mode], Rungs(eta=self.design.eta)
        scores = {
            one.number: {step: sign * value for step, value in one.intermediate_values.items()}
            for one in self.trials()
            if one.state.name != "FAIL"  # takes nobody's place
        }
        until = {one.number: self.until(one) or 0 for one in trials}
        chosen = rungs.promoted(scores, until, last=last)
        found = next((one for one in trials if one.number == chosen), None)
        if found is not None:
            found.set_user_attr(_UNTIL, rungs.after(until[found.number]))
        return found

    def tell(self, trial: optuna.Trial, state: str, value: float | None = None) -> None:
        """End a trial: complete, with its value, pruned or fail."""
        self._study.sampler = self._sampler(trial.number)
        ended = self._optuna.trial.TrialState[state.upper()]
        self._study.tell(trial.number, value, state=ended)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = seed_for(self.design.seed, "sweep", number) % 2**32
        if self.design.sampler == "tpe":
            return self._optuna.samplers.TPESampler(seed=seed)
        return self._optuna.samplers.RandomSampler(seed=seed)

    def _pruner(self) -> optuna.pruners.BasePruner:
        pruners: Any = self._optuna.pruners
        pruner: optuna.pruners.BasePruner = pruners.NopPruner()
        if self.design.prune == "median":
            pruner = pruners.MedianPruner(n_startup_trials=MEDIAN_OF, n_min_trials=MEDIAN_OF)
        if self.design.prune == "hyperband":
            pruner = pruners.HyperbandPruner(
                min_resource=1,
                max_resource=self.design.intervals,
                reduction_factor=self.design.eta,
            )
        return pruner


def _storage(path: Path) -> optuna.storages.BaseStorage:
    """Optuna's journal, without its lock, which a kill leaves behind, and without the half line
    that a kill leaves at its end.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if path.exists():
        whole = path.read_bytes()
        if not whole.endswith(b"\n"):
            replace_file(path, whole[: whole.rfind(b"\n") + 1].decode(), sync=True)
    lock: Any = _LeaseHeld()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


class _LeaseHeld:
    """In place of a lock: the sweep holds the lease of its directory."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _keep(path: Path, design: Design) -> None:
    given = design.to_json()
    if not path.exists():
        write_json(path, given, sync=True, indent=2, end="\n")
        return
    stored = json.loads(path.read_text())
    names = {"space": "--over", "eta": "--eta", "seed": "--seed"}
    changed = [
        names.get(name, f"--{name}" if name in ("sampler", "prune") else name)
        for name in given
        if stored.get(name) != given[name]
    ]
    if changed:
        raise ConfigError(
            f"{path.parent}: holds a sweep with another {', another '.join(changed)}. Give what it "
            "had to go on, or another --dir to begin anew."
        )
