"""What can be checked in a schedule's config alone: no torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.components import TARGET, target_of, targets_in
from harness.errors import ConfigError
from harness.wording import Mistake

_PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"
# Arguments that say after how many steps a schedule ends, by the end of its name
_ENDS = {
    "torch.optim.lr_scheduler.OneCycleLR": "total_steps",
    "torch.optim.lr_scheduler.PolynomialLR": "total_iters",
    "harness.schedules.WarmupCosine": "total_steps",
}


def find_schedule_mistakes(spec: Mapping[str, Any], last_step: int | None) -> Iterator[Mistake]:
    """What is wrong with a schedule for a budget that ends after `last_step` steps, None if that is
    not known.
    """
    if _PLATEAU in targets_in(spec):
        yield Mistake(
            (TARGET,),
            f"{_PLATEAU} needs a metric at each step, but schedules here are stepped once per "
            "optimizer step. Use harness.schedules.Plateau, which follows the run's own "
            "evaluations.",
        )
    end = _end(spec)
    if end is not None and last_step is not None and end[1] < last_step:
        name, steps = end
        yield Mistake(
            (name,),
            f"the schedule ends after {steps:,} steps, but the budget after {last_step:,}: the "
            f"remaining steps would learn nothing. Give {last_step} or more, or a smaller budget.",
        )


def check_schedule_length(spec: Mapping[str, Any] | None, last_step: int | None) -> None:
    """Raise ConfigError for a schedule that ends before the budget. Of a budget in epochs or
    samples, the steps are known only with the data.
    """
    if spec is not None:
        for mistake in find_schedule_mistakes(spec, last_step):
            raise ConfigError(mistake.within("schedule"))


def _end(spec: Mapping[str, Any]) -> tuple[str, int] | None:
    """(the argument with the length, the steps after which the rate is 0 or undefined)."""
    name = target_of(spec)
    if name.startswith("transformers."):
        argument = "num_training_steps"
    elif name not in _ENDS or (name.startswith("harness.") and spec.get("floor")):
        return None
    else:
        argument = _ENDS[name]
    value = spec.get(argument)
    if value is None and {"epochs", "steps_per_epoch"} <= spec.keys():
        argument, value = "epochs", spec["epochs"] * spec["steps_per_epoch"]
    if value is None and name.endswith("PolynomialLR"):
        value = 5  # torch's default
    return (argument, value) if isinstance(value, int) else None
