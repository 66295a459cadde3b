"""`fermarsi config`: the resolved config, or what is wrong with it."""

from collections.abc import Sequence
from pathlib import Path

from harness import components
from harness.config.read import read_config, resolved_yaml
from harness.config.schema import Config
from harness.tasks.task import Task, metrics_of
from harness.training.build import controller_of, shown_of


def describe_config(path: Path, overrides: Sequence[str]) -> str:
    """The resolved config as YAML, once what it says of metrics fits those of the task. Raises
    ConfigError.
    """
    return resolved_yaml(read_whole(path, overrides))


def read_whole(path: Path, overrides: Sequence[str]) -> Config:
    """A config of which all is checked that can be without its data. Raises ConfigError."""
    config = read_config(path, overrides, metrics_of=metrics_of)
    task: Task = components.build(config.task, "task")
    controller_of(config, task)
    shown_of(config, task)
    return config
