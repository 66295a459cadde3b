"""A schedule as the engine steps it: ours, one of torch's or a user's own, or a chain of them."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from harness import components
from harness.checkpoint import exact_json
from harness.components import target_of
from harness.errors import CheckpointError, ConfigError
from harness.schedules import ByStep
from harness.wording import first_line


def build_schedule(spec: Mapping[str, Any], optimizer: Optimizer) -> Any:
    """The schedule of a config; those inside of a chain get the optimizer as well.

    Raises ConfigError.
    """
    schedule = components.build(spec, "schedule", inherit=("optimizer",), optimizer=optimizer)
    lacks = [
        name
        for name in ("step", "state_dict", "load_state_dict")
        if not callable(getattr(schedule, name, None))
    ]
    if lacks:
        raise ConfigError(
            f"schedule: {target_of(spec)} has no {', '.join(lacks)}. A schedule has the methods of "
            "torch's."
        )
    needed = [
        name
        for name, one in inspect.signature(schedule.step).parameters.items()
        if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    if needed:
        raise ConfigError(
            f"schedule: {target_of(spec)} needs {', '.join(needed)} at each step, but a schedule "
            "is stepped once per optimizer step, without arguments. To follow a metric use "
            "harness.schedules.Plateau, or give your own a method observe(metrics)."
        )
    try:
        exact_json.dumps(schedule.state_dict(), "its state")
    except CheckpointError as error:
        raise ConfigError(
            f"schedule: {target_of(spec)} cannot be saved: {error} Give rates as numbers, and "
            "functions as objects with plain attributes."
        ) from error
    return schedule


def step_schedule(schedule: Any) -> None:
    """One optimizer step was done. Raises ConfigError for a schedule that is at its end."""
    try:
        schedule.step()
    except ValueError as error:
        raise ConfigError(
            f"schedule: {type(schedule).__name__} cannot go on: {first_line(error)}. Give it as "
            "many steps as the budget has."
        ) from error


def restore_schedule(schedule: Any, state: Mapping[str, Any] | None, steps: int) -> None:
    """Put the state of a schedule back.

    state: None if the checkpoint's schedule was another, or there was none: one of ours is a
    function of the steps and resumes from their number.
    """
    if state is not None:
        schedule.load_state_dict(dict(state))
    elif isinstance(schedule, ByStep):
        schedule.begin_at(steps)


def cycled_options(schedule: Any) -> tuple[str, ...]:
    """Settings of the optimizer that the schedule sets at each step, apart from the rate."""
    inner = [schedule, *getattr(schedule, "_schedulers", ())]
    cycles = any(getattr(one, "cycle_momentum", False) for one in inner)
    return ("momentum", "betas") if cycles else ()
