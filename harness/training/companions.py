"""Values that are recorded beside metrics because a criterion of stopping asks for them: what the
most frequent class alone would give, and standard errors.
"""

from collections.abc import Mapping

from torch import Tensor

from harness.stopping.improvement import error_of
from harness.stopping.milestones import chance_of
from harness.stopping.settings import StopSettings
from harness.tasks.task import Task


def loss_errors_of(stop: StopSettings) -> set[str]:
    """The splits whose loss needs a standard error."""
    asked = {one.metric for one in stop.improvement if one.errors}
    return {metric.removesuffix("/loss") for metric in asked if metric.endswith("/loss")}


def companions(
    stop: StopSettings, task: Task, computed: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, float]:
    """By name, what the criteria need besides the metrics of an evaluation; {} if nothing.

    `computed`: by split, what the task's metrics gave.
    """
    chances = {one.metric for one in stop.milestones if one.times_chance is not None}
    errors = {one.metric for one in stop.improvement if one.errors}
    found: dict[str, float] = {}
    for split in {metric.partition("/")[0] for metric in chances | errors} & computed.keys():
        for asked, name_of, method in (
            (chances, chance_of, "chance"),
            (errors, error_of, "standard_errors"),
        ):
            if any(metric.startswith(f"{split}/") for metric in asked) and hasattr(task, method):
                found |= {
                    name_of(f"{split}/{name}"): value
                    for name, value in getattr(task, method)(computed[split]).items()
                    if f"{split}/{name}" in asked
                }
    return found
