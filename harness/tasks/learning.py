"""What a task learns from the training split before the first step; in a launch rank 0 learns,
and every rank takes over the result.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from harness.data.source import Batch, Learner
from harness.tasks.task import Task

States = Mapping[str, Any]


def learners_of(task: Task) -> Mapping[str, Learner]:
    """By name; a task of a user's own may have none and no method that says so."""
    learners: Mapping[str, Learner] = task.learners() if hasattr(task, "learners") else {}
    return learners


def learn(task: Task, batches: Iterable[Batch]) -> States:
    """Let the task's learners see the training split, each sample once; returns their states as
    JSON. Nothing is read if there are none.
    """
    learners = learners_of(task)
    if learners:
        for batch in batches:
            for learner in learners.values():
                learner.observe(batch)
    for learner in learners.values():
        learner.finish()
    return learner_states(task)


def learner_states(task: Task) -> States:
    """What the task's learners learned, for a checkpoint."""
    return {name: learner.state() for name, learner in learners_of(task).items()}


def restore_learners(task: Task, states: States) -> None:
    """Give the learners what `learn` returned, or a checkpoint kept."""
    for name, learner in learners_of(task).items():
        learner.restore(states[name])
