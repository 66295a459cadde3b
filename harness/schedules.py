"""Learning rates as closed forms of what has happened: the number of steps, and for a plateau the
number of drops. So nothing drifts, and a resumed run has exactly the rates of an uninterrupted one.

Each is stepped once an optimizer step and has `step()`, `state_dict()` and `load_state_dict()` like
torch's schedulers, which may be used too. What all rates are shares of is the rate that the
optimizer was built with, hence the present config's, also after a resume.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from harness.errors import ConfigError, require_choice
from harness.stopping.improvement import Improvement
from harness.stopping.verdict import Mode


class ByStep:
    """The rate of each parameter group is its first one times `share()`, from the first step on."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._bases = [float(group["lr"]) for group in optimizer.param_groups]
        self._steps = 0

    def share(self) -> float:
        """The current rate as a share of the first one."""
        raise NotImplementedError

    def step(self) -> None:
        """Advance by one optimizer step."""
        self._steps += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The current rates, one per parameter group."""
        return [base * self.share() for base in self._bases]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps = state["steps"]
        self._apply()

    def begin_at(self, steps: int) -> None:
        """Go on after so many steps that were made under another schedule, or none."""
        self._steps = steps
        self._apply()

    def _apply(self) -> None:
        for group, rate in zip(self._optimizer.param_groups, self.get_last_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


class WarmupCosine(ByStep):
    """A linear warm-up over `warmup_steps`, half a cosine down to `floor` (a share of the rate)
    until `total_steps`, constant from there.

    Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
    equation 5, without restarts. Raises ConfigError.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, floor: float = 0.0
    ) -> None:
        super().__init__(optimizer)
        if not 0 <= warmup_steps < total_steps:
            raise ConfigError(
                f"schedule: warmup_steps {warmup_steps} must be from 0 to below total_steps "
                f"{total_steps}. Fix one of them."
            )
        if not 0 <= floor <= 1:
            raise ConfigError(
                f"schedule.floor: {floor} is not a share of the learning rate. Give a number from "
                "0 to 1."
            )
        self._total = total_steps
        self._warmup = warmup_steps
        self._floor = floor
        self._apply()

    def share(self) -> float:
        if self._steps < self._warmup:
            return (self._steps + 1) / self._warmup
        way = min(1.0, (self._steps - self._warmup) / (self._total - self._warmup))
        return self._floor + (1 - self._floor) * (1 + math.cos(math.pi * way)) / 2


class Plateau(ByStep):
    """After `patience` evaluations in a row without enough improvement the rate drops by `factor`;
    improvement is what stopping means by it.

    Fed by the run's own evaluations (`observe`). `at_least`: a gain like 0.01 or a share like 1%,
    from the best so far; `cooldown`: evaluations after a drop that are not counted; `floor`: the
    least share of the first rate; `warmup_steps`: up in a line before. Torch's ReduceLROnPlateau
    waits for one evaluation more than its patience, and its threshold is a share of 0.01 %. Raises
    ConfigError.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        metric: str,
        mode: Mode,
        patience: int,
        factor: float = 0.1,
        at_least: float | str = 0.0,
        cooldown: int = 0,
        floor: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(optimizer)
        hint = f" State in which direction {metric} improves."
        require_choice("schedule.mode", mode, ("max", "min"), hint)
        if (
            not 0 < factor < 1
            or not 0 <= floor < 1
            or patience < 1
            or cooldown < 0
            or warmup_steps < 0
        ):
            raise ConfigError(
                f"schedule: factor {factor} must be between 0 and 1, floor {floor} at least 0 and "
                f"below 1, patience {patience} at least 1, "
                f"cooldown {cooldown} and warmup_steps {warmup_steps} at least 0. Correct those "
                "that are not."
            )
        try:
            improvement = Improvement.model_validate(
                {"metric": metric, "at_least": at_least, "patience": patience}
            )
        except ValueError as error:
            raise ConfigError(
                f"schedule.at_least: {at_least!r} is neither a gain like 0.01 nor a share like 1%. "
                "Give one of these."
            ) from error
        if improvement.errors:
            raise ConfigError(
                f"schedule.at_least: {at_least}: a schedule is not told standard errors. Give a "
                "gain like 0.01 or a share like 1%."
            )
        self._metric = metric
        self._mode: Mode = mode
        self._improvement = improvement
        self._patience = patience
        self._factor = factor
        self._cooldown = cooldown
        self._floor = floor
        self._warmup = warmup_steps
        self._drops = 0
        self._reference: float | None = None
        self._stale = 0
        self._pause = 0
        self._apply()

    def share(self) -> float:
        warm = min(1.0, (self._steps + 1) / self._warmup) if self._warmup else 1.0
        return warm * max(self._floor, self._factor**self._drops)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take an evaluation's metrics by `split/name`.

        Raises ConfigError if the schedule's is not among them.
        """
        if self._metric == "train/loss" and self._metric not in metrics:
            return  # not a step of the interval was taken: fp16's scaler skipped all
        if self._metric not in metrics:
            raise ConfigError(
                f"schedule.metric: there is no metric {self._metric}. There are "
                f"{', '.join(metrics)}."
            )
        if self._improves(metrics[self._metric]):
            self._reference, self._stale = metrics[self._metric], 0
        elif not self._pause:
            self._stale += 1
        self._pause = max(0, self._pause - 1)
        if self._stale >= self._patience:
            self._drops, self._stale, self._pause = self._drops + 1, 0, self._cooldown
            self._apply()

    def _improves(self, value: float) -> bool:
        if self._reference is None or math.isnan(value):
            return not math.isnan(value)
        return self._improvement.gain(value, self._reference, self._mode).enough

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self._steps,
            "drops": self._drops,
            "reference": self._reference,
            "stale": self._stale,
            "pause": self._pause,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._drops, self._reference, self._stale, self._pause = (
            state[name] for name in ("drops", "reference", "stale", "pause")
        )
        super().load_state_dict(state)
