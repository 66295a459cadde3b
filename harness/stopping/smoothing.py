"""Smoothing of a metric over its last evaluations, for criteria that noise must not decide."""

import math
import statistics
from collections import deque
from typing import Literal, Self

from pydantic import Field, model_validator

from harness.settings import Section


class Smooth(Section):
    """How the values of a metric are smoothed: over a window, or exponentially."""

    window: int | None = Field(
        None, ge=2, description="Over the last so many evaluations, or as many as there are."
    )
    of: Literal["median", "mean"] | None = Field(
        None, description="What is taken of the window; null: the median."
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=(
            "Exponential moving average: 0.6 keeps 0.6 of the average before, which begins with "
            "the first value, and adds 0.4 of the new value."
        ),
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        self._require_one("window", "ema")
        if self.of is not None and self.window is None:
            raise ValueError("of has no effect without window")
        return self

    @property
    def words(self) -> str:
        """What a smoothed value is, for verdicts."""
        if self.window is not None:
            return f"the {self.of or 'median'} of the last {self.window}"
        return f"an average that keeps {self.ema:g}"


class RunningSmooth:
    """The smoothed values of one metric."""

    def __init__(self, settings: Smooth) -> None:
        self._settings = settings
        self._last: deque[float] = deque(maxlen=settings.window)
        self._average: float | None = None

    def take(self, value: float) -> float:
        """The smoothed value after one more; one that is not finite stays as it is, and out of
        those that follow.
        """
        if not math.isfinite(value):
            return value
        keep = self._settings.ema
        if keep is None:
            self._last.append(value)
            values = list(self._last)
            if self._settings.of == "mean":
                return statistics.mean(values)
            return statistics.median(values)
        before = value if self._average is None else self._average
        # A value that repeats leaves it as it is, to the bit
        self._average = before + (1 - keep) * (value - before)
        return self._average
