"""Splits in memory, clean ones and some with a flaw, and the checks of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.checks.check import check_data
from harness.checks.report import Finding, Report
from harness.config.document import to_yaml
from harness.config.read import read_config
from harness.config.schema import Config
from harness.data.split import Split

TASK = {"_target_": "harness.tasks.Classification", "input": "x", "target": "label"}


class Rows:
    """A source of columns that are given, and of what is known of them."""

    def __init__(
        self, columns: Mapping[str, Any], known: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        self.columns = dict(columns)
        self._known = {name: list(map(str, values)) for name, values in (known or {}).items()}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.columns.items()}

    def known(self) -> Mapping[str, Sequence[str]]:
        return self._known


def clean(seed: int, size: int = 60, shape: tuple[int, ...] = (5,)) -> dict[str, NDArray[Any]]:
    """Normal numbers and three classes in turn."""
    numbers = np.random.default_rng(seed)
    return {
        "x": numbers.normal(size=(size, *shape)).astype(np.float32),
        "label": np.arange(size) % 3,
    }


def three(shape: tuple[int, ...] = (5,)) -> dict[str, dict[str, NDArray[Any]]]:
    """Clean columns for each split."""
    return {"train": clean(1, 60, shape), "val": clean(2, 30, shape), "test": clean(3, 30, shape)}


def config_of(
    directory: Path,
    splits: Sequence[str] = ("train", "val", "test"),
    task: Mapping[str, Any] = TASK,
    **settings: Any,
) -> Config:
    """A config with these splits.

    settings: data.checks, but for `targets`, `balance`, `treatments` and `split`, a rule of the
    sources.
    """
    source = {
        "_target_": "harness.sources.tables.Table",
        "files": "x.csv",
        "split": settings.pop("split", None),
    }
    section = {"source": source, "treatments": settings.pop("treatments", [])}
    balance = {"balance": settings.pop("balance")} if "balance" in settings else {}
    tree = {
        "data": {name: section | (balance if name == "train" else {}) for name in splits},
        "network": {"_target_": "harness.networks.Mlp", "dims": [5, 3]},
        "task": dict(task),
        "batch": {"size": 6, "micro_size": 3},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
        "stop": {
            "every": {"epochs": 1},
            "budget": {"epochs": 1},
            "targets": settings.pop("targets", {}),
        },
    }
    tree["data"]["checks"] = settings
    path = directory / "planted.yaml"
    path.write_text(to_yaml(tree))
    return read_config(path)


def looked_at(directory: Path, splits: Mapping[str, Any], **settings: Any) -> Report:
    """The checks of splits given as columns or as sources."""
    sources = {
        name: Rows(given) if isinstance(given, dict) else given for name, given in splits.items()
    }
    config = config_of(directory, list(sources), **settings)
    return check_data(
        config.data,
        config.task,
        config.stop.targets,
        {
            name: Split(source, (), f"data.{name}", lambda batch: None)
            for name, source in sources.items()
        },
    )


def only(report: Report) -> Finding:
    """The one thing that was found."""
    assert len(report.findings) == 1, [str(finding) for finding in report.findings]
    return report.findings[0]
