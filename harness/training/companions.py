"""Values that are recorded beside metrics because a criterion of stopping asks for them: what the
most frequent class alone would give, and standard errors.
"""

from collections.abc import Mapping

from torch import Tensor

from harness.errors import ConfigError
from harness.stopping.milestones import chance_of
from harness.stopping.rate import error_of
from harness.stopping.settings import StopSettings
from harness.tasks.task import Task
from harness.wording import some


def asked_errors(stop: StopSettings) -> set[str]:
    """The metrics, by `split/name`, whose gains are compared with their standard errors."""
    found = {one.metric for one in stop.improvement if one.errors}
    return found | ({stop.best.metric} if stop.best is not None and stop.best.errors else set())


def companions(
    stop: StopSettings, task: Task, computed: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, float]:
    """By name, what the criteria need besides the metrics of an evaluation; {} if nothing.

    `computed`: by split, what the task's metrics gave. Raises ConfigError for a task that does not
    give a chance that its infos promise: the milestone would never be judged.
    """
    chances = {one.metric for one in stop.milestones if one.times_chance is not None}
    errors = asked_errors(stop)
    found: dict[str, float] = {}
    for split, tables in computed.items():
        for asked, name_of, method in (
            (chances, chance_of, "chance"),
            (errors, error_of, "standard_errors"),
        ):
            wanted = {metric for metric in asked if metric.startswith(f"{split}/")}
            given = getattr(task, method)(tables) if wanted and hasattr(task, method) else {}
            found |= {
                name_of(metric): value
                for name, value in given.items()
                if (metric := f"{split}/{name}") in wanted
            }
    lacking = [one for one in sorted(chances) if chance_of(one) not in found]
    if lacking:
        raise ConfigError(
            f"stop.milestones: {some(lacking)}: {type(task).__name__}.chance gives nothing for it, "
            "though the task's infos say has_chance. Return it there, or give a number."
        )
    return found
