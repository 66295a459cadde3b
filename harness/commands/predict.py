"""`fermarsi predict`: the predictions of a trained network for each sample."""

import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness import components
from harness.commands.show import write_errors
from harness.commands.trained import TrainedNetwork, fit_task, load_trained, open_split
from harness.components import TARGET
from harness.config.reading import parse_value
from harness.data.feed import evaluation_batches
from harness.data.source import known_of
from harness.data.split import Split
from harness.durable import replace
from harness.errors import ConfigError
from harness.training.evaluation import evaluation_mode

if TYPE_CHECKING:
    import pandas as pd


SUFFIXES = (".parquet", ".csv", ".jsonl")
_CHUNK = 16_384  # rows that are held before they are written


def write_predictions(
    path: Path, split: str, source: str, out: Path, allow: Sequence[str] = ()
) -> str:
    """Write the predictions of a run's best checkpoint, or of a checkpoint, on a split of its
    config, or on another source, given as YAML; returns what was done. Raises HarnessError.

    out: a Parquet, CSV or JSON lines file, by its suffix; it is there when it is whole.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out: {out}: give a name that ends in {', '.join(SUFFIXES)}.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out: {out}: there is no directory {out.parent}. Create it.")
    trained = load_trained(path, allow)
    opened = open_split(trained, split, _read_source(source) if source else None)
    fit_task(trained, opened)
    with write_errors("--out", out):
        count = write_tables(predictions(trained, opened), out)
    return f"{out}: {count:,} predictions of {trained.path}"


def predictions(trained: TrainedNetwork, split: Split) -> "Iterator[pd.DataFrame]":
    """Tables of at most about _CHUNK rows, one row per sample, in the source's order: its index,
    what the source knows of it (such as its path), its target, if it has one, and the task's
    predictions; classes by their names where the run has names. Raises DataError.
    """
    import pandas as pd

    known = {name: np.array(texts, dtype=object) for name, texts in known_of(split.source).items()}
    target = getattr(trained.task, "target", None)
    held: list[pd.DataFrame] = []
    rows = 0
    for columns in _columns(trained, split):
        held.append(pd.DataFrame(_with_known(columns, known, target)))
        rows += len(held[-1])
        if rows >= _CHUNK:
            yield pd.concat(held, ignore_index=True)
            held, rows = [], 0
    if held:
        yield pd.concat(held, ignore_index=True)


def _with_known(
    columns: Mapping[str, Any], known: Mapping[str, NDArray[Any]], target: object
) -> dict[str, Any]:
    """The columns, with what is known of these samples behind their index, as known_NAME where a
    column has that name; the column of the target says itself what is known of it.
    """
    rows = columns["sample"]
    others = {
        f"known_{name}" if name in columns else name: texts[rows]
        for name, texts in known.items()
        if name != target or name not in columns
    }
    return {"sample": rows, **others, **columns}


def write_tables(tables: "Iterator[pd.DataFrame]", out: Path) -> int:
    """Write tables of the same columns one after the other; returns the number of rows. Raises
    OSError, and what the tables raise; nothing is left then.
    """
    temporary = out.with_name(f".{out.name}-{secrets.token_hex(4)}")
    count = 0
    try:
        with ExitStack() as stack:
            write = _WRITERS[out.suffix](temporary, stack)
            for table in tables:
                write(table)
                count += len(table)
        replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _parquet(path: Path, stack: ExitStack) -> "Callable[[pd.DataFrame], None]":
    import pyarrow as pa
    from pyarrow import parquet

    writers: list[Any] = []

    def write(table: "pd.DataFrame") -> None:
        schema = writers[0].schema if writers else None
        rows = pa.Table.from_pandas(table, schema=schema, preserve_index=False)
        if not writers:
            writers.append(stack.enter_context(parquet.ParquetWriter(path, rows.schema)))
        writers[0].write_table(rows)

    return write


def _csv(path: Path, stack: ExitStack) -> "Callable[[pd.DataFrame], None]":
    file = stack.enter_context(path.open("x", newline=""))
    return lambda table: table.to_csv(file, index=False, header=file.tell() == 0)


def _jsonl(path: Path, stack: ExitStack) -> "Callable[[pd.DataFrame], None]":
    file = stack.enter_context(path.open("x"))
    return lambda table: table.to_json(file, orient="records", lines=True, double_precision=15)


_WRITERS = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}


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


def _columns(trained: TrainedNetwork, split: Split) -> Iterator[Mapping[str, Any]]:
    """The columns of each micro-batch, by name."""
    size = trained.micro_size
    with evaluation_mode(trained.network), torch.no_grad():
        for block, batch in evaluation_batches(
            split, size, 0, 1, trained.device, trained.num_workers
        ):
            columns = trained.task.predictions(trained.task.forward(trained.network, batch), batch)
            target = str(getattr(trained.task, "target", None))
            of_classes = ("predicted", target)
            if target in batch and target not in columns and isinstance(batch[target], Tensor):
                columns = {target: batch[target], **columns}
            count = len(next(iter(columns.values())))
            rows = np.arange(block * size, block * size + count)
            yield {"sample": rows, **dict(_flat(columns, trained.class_names, of_classes))}


def _flat(
    columns: Mapping[str, Tensor], names: Sequence[str], of_classes: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """Columns (B,) as they are, but for those `of_classes` where classes have names; (B, C) as C
    columns, more axes as lists. A number that is none of a class, such as -100, has an empty name.
    """
    named = np.array([*names, ""], dtype=object)
    for name, values in columns.items():
        array = values.float().cpu().numpy() if values.is_floating_point() else values.cpu().numpy()
        if array.ndim == 2:
            ends = names if len(names) == array.shape[1] else range(array.shape[1])
            yield from ((f"{name}_{end}", array[:, at]) for at, end in enumerate(ends))
        elif array.ndim == 1 and array.dtype.kind in "iu" and names and name in of_classes:
            yield name, named[np.where((array >= 0) & (array < len(names)), array, len(names))]
        else:
            yield name, array if array.ndim == 1 else list(array.tolist())
