"""`fermarsi predict`: the predictions of a trained network for each sample."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from harness import components
from harness.commands.show import writing
from harness.commands.trained import TrainedNetwork, fit_task, load_trained, open_split
from harness.components import TARGET
from harness.config.reading import parse_value
from harness.data.feed import evaluation_batches
from harness.data.split import Split
from harness.errors import ConfigError
from harness.training.evaluation import evaluating

if TYPE_CHECKING:
    import pandas as pd


def write_predictions(
    path: Path, split: str, source: str, out: Path, allow: Sequence[str] = ()
) -> str:
    """Write the predictions of a run's best checkpoint, or of a checkpoint, on a split of its
    config, or on another source, given as YAML; returns what was done. Raises HarnessError.
    """
    trained = load_trained(path, allow)
    table = predict(trained, open_split(trained, split, _read_source(source) if source else None))
    _write(table, out)
    return f"{out}: {len(table):,} predictions of {trained.path}"


def predict(trained: TrainedNetwork, split: Split) -> "pd.DataFrame":
    """One row per sample, in the source's order: its index and the task's predictions.

    Raises DataError.
    """
    import pandas as pd

    fit_task(trained, split)
    tables = [pd.DataFrame(columns) for columns in _columns(trained, split)]
    return pd.concat(tables, ignore_index=True)


def _read_source(text: str) -> Mapping[str, Any]:
    """A source spec from the command line: YAML such as `{_target_: harness.sources.digits.Digits,
    split: test}`. Raises ConfigError.
    """
    spec = parse_value(text, "--source")
    if not isinstance(spec, dict) or TARGET not in spec:
        raise ConfigError(
            "--source: give a component, e.g. '{_target_: harness.sources.digits.Digits, split: "
            "test}', or a --split of the config."
        )
    problems = components.check(spec, "--source")
    if problems:
        raise ConfigError("\n".join(problems))
    return spec


def _write(table: "pd.DataFrame", path: Path) -> None:
    """Write a Parquet or CSV file, by its suffix. Raises ConfigError."""
    if path.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"--out: {path}: give a name that ends in .parquet or .csv.")
    with writing("--out", path):
        if path.suffix == ".parquet":
            table.to_parquet(path, index=False)
        else:
            table.to_csv(path, index=False)


def _columns(trained: TrainedNetwork, split: Split) -> Iterator[Mapping[str, Any]]:
    """The columns of each micro-batch, by name."""
    size = trained.micro_size
    with evaluating(trained.network), torch.no_grad():
        for block, batch in evaluation_batches(
            split, size, 0, 1, trained.device, trained.num_workers
        ):
            columns = trained.task.predictions(trained.task.forward(trained.network, batch), batch)
            count = len(next(iter(columns.values())))
            rows = np.arange(block * size, block * size + count)
            yield {"sample": rows, **dict(_flat(columns))}


def _flat(columns: Mapping[str, Tensor]) -> Iterator[tuple[str, Any]]:
    """Columns (B,) as they are, (B, C) as C columns, more axes as lists."""
    for name, values in columns.items():
        array = values.float().cpu().numpy() if values.is_floating_point() else values.cpu().numpy()
        if array.ndim == 2:
            yield from ((f"{name}_{index}", array[:, index]) for index in range(array.shape[1]))
        else:
            yield name, array if array.ndim == 1 else list(array.tolist())
