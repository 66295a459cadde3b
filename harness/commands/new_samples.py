"""The source of a split as it reads what the run has not seen."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from harness import components
from harness.commands.trained import TrainedNetwork
from harness.components import TARGET
from harness.config import trust
from harness.data.preparing import split_config
from harness.errors import ConfigError
from harness.tasks.task import targets_of

PLACE = {"part": "all", "split": None}
_OTHERS = "--source, or a mapping of arrays in Python"


def source_of_files(trained: TrainedNetwork, split: str, files: Sequence[str]) -> dict[str, Any]:
    """The component of the split's source with these files, all of them, whose targets need not be
    known.

    files: paths or patterns. Raises ConfigError for a source that reads no files.
    """
    spec = split_config(trained.config.data, split).source
    takes = inspect.signature(components.find(spec[TARGET])).parameters
    if "files" not in takes:
        raise ConfigError(
            f"predict: {spec[TARGET]}, the source of data.{split}, reads no files. Give {_OTHERS}."
        )
    found = without_targets(trained, {key: one for key, one in spec.items() if key != "files"}, ())
    trust.check_files(found, f"data.{split}.source", trained.allow)
    return {**found, **{key: one for key, one in PLACE.items() if key in takes}, "files": [*files]}


def without_targets(
    trained: TrainedNetwork, spec: Mapping[str, Any], there: Sequence[str]
) -> dict[str, Any]:
    """A source's settings for new samples: none of the columns that say what is to be predicted,
    but for those that are there.
    """
    targets = {*targets_of(trained.task).values()} - {*there}
    found = dict(spec)
    if isinstance(columns_of := spec.get("columns"), Mapping):
        found["columns"] = {name: kind for name, kind in columns_of.items() if name not in targets}
    found.pop("classes", None)
    return found
