"""Patience: for how long a criterion may fall short."""

import math
from typing import Self

from pydantic import Field, model_validator

from harness.settings import Section
from harness.stopping.verdict import Evaluation


class Patience(Section):
    """For how long too little improvement is tolerated. In a config, a bare number counts
    intervals.
    """

    intervals: int | None = Field(
        None, ge=1, description="Consecutive intervals; the same as a bare number."
    )
    epochs: int | None = Field(
        None, ge=1, description="Epochs since the last interval that was not stale."
    )
    steps: int | None = Field(None, ge=1, description="Optimizer steps since then.")
    samples: int | None = Field(None, ge=1, description="Samples since then.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("intervals", "epochs", "steps", "samples")
        return self

    @property
    def unit(self) -> str:
        """The unit that is given."""
        return self.non_null("intervals", "epochs", "steps", "samples")[0]

    @property
    def count(self) -> int:
        """How many of them."""
        value = getattr(self, self.unit)
        assert isinstance(value, int)
        return value


class RunningPatience:
    """How much patience is spent. `stale`: consecutive intervals that fell short; `spent`: the same
    in the patience's unit; `out`: whether that is all of it.
    """

    def __init__(self, settings: Patience, cooldown: int, *, whole_epochs: bool) -> None:
        """`cooldown`: intervals after a drop of the learning rate that are not stale.
        `whole_epochs`: intervals are epochs, which end on the first step that completes them, so
        that completed epochs are counted.
        """
        self.count = settings.count
        self.unit = settings.unit
        self.stale = 0
        self.spent: float = 0
        self.out = False
        self._cooldown = cooldown
        # Intervals of cooldown left
        self._pause = 0
        self._whole_epochs = whole_epochs
        # The last evaluation that was not stale
        self._since = Evaluation(step=0, epoch=0.0, samples=0, hours=0.0, metrics={})

    def take(self, evaluation: Evaluation, *, fresh: bool, lr_dropped: bool) -> None:
        """Count an interval; `fresh`: it is not stale."""
        if self._cooldown and lr_dropped:
            self._pause = self._cooldown
            fresh = True
        elif self._pause:
            self._pause -= 1
            fresh = True
        if fresh:
            self.stale, self.spent, self.out, self._since = 0, 0, False, evaluation
            return
        self.stale += 1
        self.spent, self.out = self._use_up(evaluation)

    def _use_up(self, now: Evaluation) -> tuple[float, bool]:
        """(spent, out); compared in whole numbers."""
        then = self._since
        spent: float
        if self.unit == "intervals":
            spent = self.stale
        elif self.unit == "steps":
            spent = now.step - then.step
        elif self.unit == "samples":
            spent = now.samples - then.samples
        elif self._whole_epochs:
            spent = math.floor(now.epoch) - math.floor(then.epoch)
        elif now.samples > 0 and now.epoch > 0:
            # Exact: epoch is samples / per_epoch, rounded once
            per_epoch = round(now.samples / now.epoch)
            samples = now.samples - then.samples
            return samples / per_epoch, samples >= self.count * per_epoch
        else:
            spent = now.epoch - then.epoch
        return spent, spent >= self.count
