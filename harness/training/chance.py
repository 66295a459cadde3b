"""What the most frequent class alone would give, where milestones ask for multiples of it."""

from collections.abc import Mapping

from torch import Tensor

from harness.stopping.milestones import chance_of
from harness.stopping.settings import StopSettings
from harness.tasks.task import Task


def chance_values(
    stop: StopSettings, task: Task, computed: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, float]:
    """By `split/name` of the metrics that milestones compare with chance; {} without such.

    `computed`: by split, what the task's metrics gave.
    """
    asked = {one.metric for one in stop.milestones if one.times_chance is not None}
    found: dict[str, float] = {}
    for split in {metric.partition("/")[0] for metric in asked} & computed.keys():
        for name, value in task.chance(computed[split]).items():
            if f"{split}/{name}" in asked:
                found[chance_of(f"{split}/{name}")] = value
    return found
