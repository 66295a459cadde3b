"""What a trained network says: metrics and predictions from a checkpoint, without the training
around it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from harness import components
from harness.checkpoint.read import find_checkpoint, load, load_trainer
from harness.checkpoint.state import restore_network
from harness.config.read import read_config
from harness.config.reading import parse_value
from harness.config.schema import Config
from harness.data.feed import evaluation_batches
from harness.data.preparing import Learned, build_treatments
from harness.data.split import Split
from harness.errors import ConfigError, DataError
from harness.ranks.ranks import Ranks
from harness.tasks.learning import restore_learners
from harness.tasks.task import Task
from harness.training.evaluation import EvaluationPlan, Result, evaluate, evaluating


@dataclass(frozen=True)
class Trained:
    """A network as a checkpoint left it, with the config and the task it was trained by."""

    path: Path
    config: Config
    network: nn.Module
    task: Task
    device: torch.device
    learned: Sequence[Learned]


def load_trained(path: Path, allow: Sequence[str] = ()) -> Trained:
    """Build the network of a run or checkpoint and put its weights in. Raises HarnessError.

    A checkpoint is data: the components that its config may name are limited to known packages;
    `allow` adds prefixes.
    """
    found = find_checkpoint(path)
    config = read_config(found / "config.yaml", allow=allow)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network: nn.Module = components.build(config.network, "network")
    restore_network(network, load(found, rank=0, num_ranks=0, device=torch.device("cpu")))
    trainer = load_trainer(found)
    task: Task = components.build(config.task, "task")
    restore_learners(task, trainer.get("task", {}))
    learned = [Learned(**one) for one in trainer.get("learned", ())]
    return Trained(found, config, network.to(device).eval(), task, device, learned)


def evaluate_split(trained: Trained, name: str) -> Result:
    """Metrics of a split of the config that the network was trained by, e.g. "test".

    Raises ConfigError and DataError.
    """
    split = open_split(trained, name)
    fit_task(trained, split)
    plan = EvaluationPlan(split, micro_size(trained), trained.config.data.num_workers)
    return evaluate(trained.network, trained.task, plan, Ranks(), trained.device)


def open_split(trained: Trained, name: str, source: Mapping[str, Any] | None = None) -> Split:
    """A split of the trained config, with another source if one is given; treatments are those of
    the split.
    """
    if name not in ("train", "val", "test"):
        raise ConfigError(f"split: no such split: {name}. There are train, val and test.")
    spec = getattr(trained.config.data, name)
    if spec is None:
        given = [
            one for one in ("train", "val", "test") if getattr(trained.config.data, one) is not None
        ]
        raise ConfigError(
            f"split: {trained.path}/config.yaml has no data.{name}. It has {', '.join(given)}."
        )
    where = f"data.{name}" if source is None else "--source"
    treatments = build_treatments(trained.config.data, name, trained.learned)
    check = trained.task.check if source is None else trained.task.check_input
    return Split(
        components.build(spec.source if source is None else source, f"{where}.source"),
        treatments,
        where,
        check,
    )


def micro_size(trained: Trained) -> int:
    """Samples a forward pass, as in the training's evaluations."""
    return trained.config.evaluation.micro_size or trained.config.batch.micro_size


def fit_task(trained: Trained, split: Split) -> None:
    """Let the task learn the shape of the outputs.

    Raises DataError if the network cannot take the split's samples.
    """
    for _, batch in evaluation_batches(
        split, 1, 0, 1, trained.device, 0, np.zeros(1, dtype=np.int64)
    ):
        with torch.no_grad():
            try:
                trained.task.fit_to(trained.task.forward(trained.network, batch))
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                raise DataError(
                    f"{split.where}: the network cannot take its samples: {type(error).__name__}: "
                    f"{error}"
                ) from error


def read_source(text: str) -> Mapping[str, Any]:
    """A source spec from the command line: YAML such as `{_target_: harness.sources.digits.Digits,
    split: test}`. Raises ConfigError.
    """
    spec = parse_value(text, "--source")
    if not isinstance(spec, dict) or "_target_" not in spec:
        raise ConfigError(
            "--source: give a component, e.g. '{_target_: harness.sources.digits.Digits, split: "
            "test}', or a --split of the config."
        )
    problems = components.check(spec, "--source")
    if problems:
        raise ConfigError("\n".join(problems))
    return spec


def predict(trained: Trained, split: Split) -> pd.DataFrame:
    """One row a sample, in the source's order: its index and the task's predictions.

    Raises DataError.
    """
    fit_task(trained, split)
    tables = list(_tables(trained, split))
    return pd.concat(tables, ignore_index=True)


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """A Parquet or CSV file, by its ending. Raises ConfigError."""
    try:
        if path.suffix == ".parquet":
            table.to_parquet(path, index=False)
        elif path.suffix == ".csv":
            table.to_csv(path, index=False)
        else:
            raise ConfigError(f"--out: {path}: give a name that ends in .parquet or .csv.")
    except OSError as error:
        raise ConfigError(
            f"--out: {path}: {error.strerror or error}. Give a file in a directory that exists and "
            "may be written to."
        ) from error


def _tables(trained: Trained, split: Split) -> Iterator[pd.DataFrame]:
    size = micro_size(trained)
    with evaluating(trained.network), torch.no_grad():
        for block, batch in evaluation_batches(
            split, size, 0, 1, trained.device, trained.config.data.num_workers
        ):
            columns = trained.task.predictions(trained.task.forward(trained.network, batch), batch)
            count = len(next(iter(columns.values())))
            yield pd.DataFrame(
                {"sample": np.arange(block * size, block * size + count), **dict(_flat(columns))}
            )


def _flat(columns: Mapping[str, Tensor]) -> Iterator[tuple[str, Any]]:
    """Columns (B,) as they are, (B, C) as C columns, more axes as lists."""
    for name, values in columns.items():
        array = values.float().cpu().numpy() if values.is_floating_point() else values.cpu().numpy()
        if array.ndim == 2:
            yield from ((f"{name}_{index}", array[:, index]) for index in range(array.shape[1]))
        else:
            yield name, array if array.ndim == 1 else list(array.tolist())
