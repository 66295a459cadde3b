"""Asynchronous successive halving, by pauses (ASHA: Li et al., "A system for massively parallel
hyperparameter tuning", MLSys 2020): which trial goes on. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rungs:
    """Evaluations at which trials pause: the `first`, and each time `eta` times as many."""

    first: int = 1
    eta: int = 3

    def after(self, evaluations: int) -> int:
        """The next rung behind so many evaluations."""
        rung = self.first
        while rung <= evaluations:
            rung *= self.eta
        return rung

    def promoted(
        self,
        scores: Mapping[int, Mapping[int, float]],
        until: Mapping[int, int],
        *,
        last: bool = False,
    ) -> int | None:
        """The paused trial that goes on to its next rung, None if none may: of those that reached a
        rung the best 1/eta go on, the highest rung first.

        `scores`: by trial and number of evaluations, higher is better, NaN worst; `until`: the rung
        up to which each trial may go. `last`: no more trials will come, so one a rung may go on.
        """
        reached = {rung for trial, rung in until.items() if rung in scores[trial]}
        for rung in sorted(reached, reverse=True):
            there = [trial for trial in scores if rung in scores[trial]]
            ranked = sorted(there, key=lambda trial: (_low(scores[trial][rung]), trial))
            most = max(len(there) // self.eta, int(last))
            for trial in ranked[:most]:
                if until.get(trial) == rung:
                    return trial
        return None


def _low(score: float) -> tuple[bool, float]:
    return score != score, -score
