"""`fermarsi predict`: the predictions of a trained network for each sample, in a file.

Tables of some rows are written beside the file, by one process or several, and joined in order when
all are there: a command that was killed is resumed by the same command.
"""

import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import threading
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness import components
from harness.checkpoint.manifest import MANIFEST
from harness.commands.new_samples import source_of_files
from harness.commands.prediction_rows import PredictionTables
from harness.commands.show import write_errors
from harness.commands.trained import TrainedNetwork, fit_task, load_trained, open_split
from harness.components import TARGET
from harness.config.reading import parse_value
from harness.data.content import digest
from harness.data.shelf import shelved, temporary_readings, temporary_shelf
from harness.data.split import Split
from harness.durable import replace
from harness.errors import ConfigError, HarnessError, RankError, error_from_json
from harness.wording import some

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class PredictionRequest:
    """What is predicted, from what, and into which file."""

    path: Path
    split: str
    source: str
    out: Path
    allow: tuple[str, ...] = ()
    readings: Path | None = None  # of files, for all processes
    files: tuple[str, ...] = ()
    several: bool = False  # processes

    def open(self) -> tuple[TrainedNetwork, Split, PredictionTables]:
        """The network, the samples and their predictions. Raises HarnessError."""
        trained = load_trained(self.path, self.allow)
        spec = _read_source(self.source) if self.source else None
        if self.files:
            spec = source_of_files(trained, self.split, self.files)
        shelf = None if self.readings is None else temporary_shelf(self.readings)
        with shelved(shelf if self.several else None):
            split = open_split(trained, self.split, spec, "--files" if self.files else "--source")
        fit_task(trained, split)
        with shelved(shelf):
            return trained, split, PredictionTables(trained, split, self.split)

    def part(self, directory: Path, number: int) -> Path:
        """The file of one table."""
        return directory / f"{number:08}{self.out.suffix}"


def write_predictions(
    path: Path,
    split: str,
    source: str,
    out: Path,
    allow: Sequence[str] = (),
    processes: int = 1,
    files: Sequence[str] = (),
) -> str:
    """Write the predictions of a run's best checkpoint, or of a checkpoint, on a split of its
    config, on other files, or on another source, given as YAML; returns what was done. Raises
    HarnessError.

    files: read as the split's source reads its own; paths or patterns.
    out: a Parquet, CSV or JSON lines file, by its suffix; it is there when it is whole.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out: {out}: give a name that ends in {', '.join(SUFFIXES)}.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out: {out}: there is no directory {out.parent}. Create it.")
    if source and files:
        raise ConfigError("--files, --source: two kinds of new samples. Give one of them.")
    several = processes > 1
    with temporary_readings(wanted=True) as readings:
        request = PredictionRequest(
            path, split, source, out, tuple(allow), readings, (*files,), several
        )
        return _predict(request, processes)


def _predict(request: PredictionRequest, processes: int) -> str:
    out = request.out
    trained, opened, tables = request.open()
    count = tables.count
    with write_errors("--out", out):
        directory = _begin(request, trained, opened)
        parts = [request.part(directory, number) for number in range(count)]
        left = [number for number, part in enumerate(parts) if not part.exists()]
        kept = count - len(left)
        if processes == 1 or len(left) == 1:
            _write(request, tables, directory, left)
        else:
            _write_together(request, directory, left, min(processes, len(left)))
        join_tables(parts, out)
        shutil.rmtree(directory)
    text = f"{out}: {len(opened):,} predictions of {trained.path}"
    if kept:
        text += f"; {kept:,} of {count:,} tables were there from an earlier command"
    if odd := tables.not_invertible:
        text += f"; {some(odd)} is as the treatments give it: one of them has no invert()"
    return text + _of_others(out)


def _begin(request: PredictionRequest, trained: TrainedNetwork, split: Split) -> Path:
    """The directory of the tables: that of an earlier command with the same work, if there is
    one; commands with other work have theirs.
    """
    work = digest(directory_work(request, trained, split))
    directory = request.out.with_name(f".{request.out.name}.{work[:12]}.parts")
    directory.mkdir(exist_ok=True)
    return directory


def _of_others(out: Path) -> str:
    """A hint at the tables of other commands."""
    others = sorted(map(str, out.parent.glob(f".{glob.escape(out.name)}.*.parts")))
    hint = "another command's, which is running, or was killed: then it may be removed"
    return f"; {some(others)}: {hint}" if others else ""


def directory_work(
    request: PredictionRequest, trained: TrainedNetwork, split: Split
) -> Mapping[str, Any]:
    """What the tables of a directory follow from, as JSON values."""
    manifest = (trained.path / MANIFEST).read_bytes()
    return {
        "checkpoint": hashlib.sha256(manifest).hexdigest(),
        "split": request.split,
        "source": request.source,
        "files": request.files,
        "samples": len(split),
        "content": split.fingerprint(),
        "micro_size": trained.micro_size,
        "device": trained.device.type,
    }


def _write(
    request: PredictionRequest, tables: PredictionTables, directory: Path, numbers: Sequence[int]
) -> None:
    """Write some of the tables, each whole or not at all."""
    for number in numbers:
        table = tables.table(number)
        path = request.part(directory, number)
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        _WRITERS[path.suffix](table, temporary, number)
        replace(temporary, path)


def _write_together(
    request: PredictionRequest, directory: Path, numbers: Sequence[int], processes: int
) -> None:
    """The same by several processes, each with its own network. Raises HarnessError."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        shares = [
            pool.submit(
                _write_share, request, directory, numbers[index::processes], index, processes
            )
            for index in range(processes)
        ]
        try:
            for share in shares:
                if (error := share.result()) is not None:
                    raise error_from_json(error)
        except BrokenProcessPool as error:
            raise RankError(
                "predict: a process was killed, perhaps for want of memory. Run the same command "
                "again, with fewer --processes: the tables that are written are kept."
            ) from error


def _write_share(
    request: PredictionRequest,
    directory: Path,
    numbers: Sequence[int],
    index: int,
    processes: int,
) -> Mapping[str, Any] | None:
    """In a process of its own; returns the error, if there was one."""
    _leave_with_parent()
    if torch.cuda.is_available():
        torch.cuda.set_device(index % torch.cuda.device_count())
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    try:
        with warnings.catch_warnings(action="ignore"):  # the command has shown them
            _, _, tables = request.open()
        _write(request, tables, directory, numbers)
    except HarnessError as error:
        return error.to_json()
    return None


def _leave_with_parent() -> None:
    """End this process when the command is killed: what it wrote later would fall among the tables
    of the next command, perhaps of another checkpoint.
    """
    parent = parent_process()
    assert parent is not None

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, name="fermarsi-parent", daemon=True).start()


def join_tables(paths: Sequence[Path], out: Path) -> None:
    """Join tables of the same columns, each in a file of its own, in order; `out` is there when it
    is whole. Raises OSError.
    """
    temporary = out.with_name(f".{out.name}-{secrets.token_hex(4)}")
    try:
        if out.suffix == ".parquet":
            _join_parquet(paths, temporary)
        else:
            with temporary.open("xb") as whole:
                for path in paths:
                    with path.open("rb") as part:
                        shutil.copyfileobj(part, whole)
        replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _join_parquet(paths: Sequence[Path], out: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    # A column of which one table has no value has no type there
    schemas = [parquet.read_schema(path).remove_metadata() for path in paths]
    schema = pa.unify_schemas(schemas, promote_options="permissive")
    with parquet.ParquetWriter(out, schema) as writer:
        for path in paths:
            writer.write_table(parquet.read_table(path).cast(schema))


def _parquet(table: "pd.DataFrame", path: Path, number: int) -> None:
    table.to_parquet(path, index=False)


def _csv(table: "pd.DataFrame", path: Path, number: int) -> None:
    table.to_csv(path, index=False, header=number == 0)


def _jsonl(table: "pd.DataFrame", path: Path, number: int) -> None:
    columns = {name: column.tolist() for name, column in table.items()}
    with path.open("x", encoding="ascii") as file:
        for values in zip(*columns.values(), strict=True):
            file.write(_line(dict(zip(columns, values, strict=True))) + "\n")


def _line(row: Mapping[Hashable, Any]) -> str:
    """A row in JSON, each float64 by the digits that give it back; null where JSON has no number
    (NaN, infinite).
    """
    try:
        return json.dumps(row, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(row), default=_plain)


def _plain(value: Any) -> Any:
    """What a user's source knows of samples and JSON does not."""
    return _finite(value.tolist()) if hasattr(value, "tolist") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_WRITERS: Mapping[str, Callable[["pd.DataFrame", Path, int], None]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _jsonl,
}


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
