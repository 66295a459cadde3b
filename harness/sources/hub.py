"""Datasets read by the library `datasets`, from the Hugging Face Hub or from local files."""

import importlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.data.content import Hashes
from harness.data.written import text_of
from harness.errors import ConfigError, DataError, require_choice
from harness.sources.audio import WaveReader
from harness.sources.cells import Missing
from harness.sources.collection import FileReader
from harness.sources.files import OnError, read_all
from harness.sources.images import ImageReader
from harness.sources.narrowing import Narrowed, may_lose, tell_narrowed
from harness.sources.source import BatchSource
from harness.sources.split import Part, Rule, rows_of
from harness.wording import did_you_mean

_WIDER = {
    "float64": np.float32,
    "float16": np.float32,
    "uint16": np.int32,
    "uint32": np.int64,
    "uint64": np.int64,
}  # or narrower: types that torch supports


class Hub(BatchSource):
    """A dataset of the Hub, `path: ylecun/mnist`; a folder of data files, of images or sound by
    class or with a metadata file, or one written by `save_to_disk`; or a format, `path: csv | json
    | parquet | imagefolder | ...`, with `data_files` or `data_dir`. `name`, `split` (also as
    `train[:90%]`), `data_files`, `data_dir` and `revision` are those of `datasets.load_dataset`;
    code in a dataset is never run.

    A sample: each column under its name, or those of `columns: {in the dataset: in the sample}`.
    Integers become int64, other numbers float32, class names their numbers; lists of equal length
    keep their shape; text stays text, for `harness.treatments.Encode`. Images are (C, H, W) with
    their original values, as `harness.sources.images.Images` reads them (datasets' own decoder
    would saturate 16 bits at 255), or as `image`, a `harness.sources.images.ImageReader`,
    says, e.g. {size: [64, 64]}; sound is read by `audio`, a `harness.sources.audio.WaveReader`.
    `part` and `rule` divide a split further, by any column.
    Missing values are rejected, or with `missing: keep` NaN in numbers and "" in text. Headers of
    images and sound are checked at start-up; `on_error` applies to those that cannot be read.

    Local files are read again when their content has changed, whatever their timestamps. Raises
    ConfigError and DataError.
    """

    version = 2  # images upright

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str | None = None,
        columns: Mapping[str, str] | None = None,
        data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
        data_dir: str | None = None,
        revision: str | None = None,
        audio: WaveReader | None = None,
        image: ImageReader | None = None,
        part: Part = "all",
        rule: Rule | None = None,
        missing: Missing = "refuse",
        on_error: OnError = "stop",
    ) -> None:
        require_choice("missing", missing, get_args(Missing))
        self.path, self._missing = path, missing
        given = {"data_files": data_files, "data_dir": data_dir, "revision": revision, "name": name}
        settings = {key: value for key, value in given.items() if value is not None}
        self._data, self._paths = _load(path, split, settings)
        self.columns = _columns(self._data.features, columns, path)
        self._readers = self._keep_encoded(audio, image)
        known = {} if rule is None else self._known_columns(self._data, rule.columns)
        rows = rows_of(part, rule, known, len(self._data)).tolist()
        self._data = self._data.with_format("arrow")  # decodes nothing
        self._refuse_missing()
        self.skipped: list[str] = []
        if self._readers:
            kept, _, self.skipped = read_all(rows, self._check, on_error, "samples")
            rows = [rows[index] for index in kept]
        if len(rows) < len(self._data):
            self._data = self._data.select(rows)
        label = next((column for column, name in self.columns.items() if name == "label"), None)
        feature = None if label is None else self._data.features[label]
        self.classes: list[str] | None = getattr(feature, "names", None)

    def __len__(self) -> int:
        return len(self._data)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{column: (B, ...) array, or a list of B texts}"""
        table = self._data[[int(index) for index in indices]]
        batch: dict[str, Any] = {}
        for column, called in self.columns.items():
            if column in self._readers:
                read = self._readers[column].read
                cells = zip(table[column].to_pylist(), indices, strict=True)
                batch[called] = np.stack(
                    [read(*self._file(cell, column, index)) for cell, index in cells]
                )
            else:
                values = _array(table[column].combine_chunks(), f"{self.path}: column {column!r}")
                batch[called] = values.astype(np.float32) if column in self._gappy else values
        return batch

    def paths(self) -> list[Path]:
        """Every file that is read; for a dataset of the Hub, the local files in the cache."""
        return self._paths

    def class_names(self) -> dict[str, list[str]]:
        """{label: names in the order of their numbers}, if there are labels."""
        return {} if self.classes is None else {"label": list(self.classes)}

    def known(self) -> dict[str, list[str]]:
        """{column: (N,) texts} of the columns that hold one text or integer per sample."""
        return self._known_columns(self._data.with_format(None), self._data.features)

    def _known_columns(self, data: Any, columns: Iterable[str]) -> dict[str, list[str]]:
        known = {}
        for column in columns:
            # `rows_of` reports a missing column
            if column in data.features and _is_plain(data.features[column]):
                names = getattr(data.features[column], "names", None)
                cells = data.select_columns([column])[:][column]
                known[column] = [
                    "" if cell is None else names[cell] if names and cell >= 0 else text_of(cell)
                    for cell in cells
                ]
        return known

    def _keep_encoded(
        self, audio: WaveReader | None, image: ImageReader | None
    ) -> dict[str, FileReader]:
        """The readers of image and sound columns; `datasets` itself decodes none of them."""
        datasets = importlib.import_module("datasets")
        readers: dict[str, FileReader] = {}
        for column, feature in self._data.features.items():
            kind = type(feature).__name__
            if kind in ("Image", "Audio"):
                self._data = self._data.cast_column(column, getattr(datasets, kind)(decode=False))
            if column in self.columns and kind == "Image":
                readers[column] = ImageReader() if image is None else copy(image)
            elif column in self.columns and kind == "Audio":
                if audio is None:
                    raise ConfigError(
                        f"audio: column {column!r} is sound. Set audio: {{_target_: "
                        f"harness.sources.audio.WaveReader, rate_hz: …, seconds: …}}."
                    )
                readers[column] = audio
        if image is not None and not any(isinstance(one, ImageReader) for one in readers.values()):
            raise ConfigError(
                f"image: {self.path} has no image column among {', '.join(self.columns)}. "
                "Remove it."
            )
        if audio is not None and audio not in readers.values():
            raise ConfigError(
                f"audio: {self.path} has no sound column among {', '.join(self.columns)}. "
                "Remove it."
            )
        return readers

    def _check(self, row: int) -> None:
        cells = self._data[row]
        for column, reader in self._readers.items():
            reader.check(*self._file(cells[column][0].as_py(), column, row))

    def _file(
        self, cell: Mapping[str, Any] | None, column: str, row: int
    ) -> tuple[Path | bytes, str]:
        """The file or bytes of a cell, and its name for messages."""
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise DataError(
                f"{self.path}: row {row + 1}, column {column!r}: empty. Remove the row."
            )
        if cell["bytes"] is not None:
            return cell["bytes"], f"{self.path}: row {row + 1}, column {column!r}"
        if not Path(cell["path"]).is_file():
            raise DataError(
                f"{cell['path']}: no such file (named by row {row + 1} of {self.path}). Add the "
                "file, or remove the row."
            )
        return Path(cell["path"]), cell["path"]

    def _refuse_missing(self) -> None:
        # Integer columns with missing values: floats in every batch
        self._gappy = set()
        narrowed: dict[str, str] = {}
        for column in (name for name in self.columns if name not in self._readers):
            # Without a selection of rows, the file's own pages, not a copy
            table = self._data.data if self._data._indices is None else self._data[:]
            cells = table[column]
            empty = pc.is_null(cells, nan_is_null=True)
            if self._missing == "refuse" and pc.any(empty).as_py():
                raise DataError(
                    f"{self.path}: row {pc.index(empty, True).as_py() + 1}, column {column!r}: "
                    "empty. Fill it in, or set missing: keep."
                )
            if pa.types.is_float64(cells.type):
                ends = pc.min_max(cells).as_py()
                wide = ends["min"] is not None and may_lose(ends["min"], ends["max"])
                # Copied only if needed
                lost = Narrowed.of(cells.to_numpy()).lost() if wide else None
                if lost is not None:
                    narrowed[f"{self.path}, column {column!r}"] = lost
            if not pa.types.is_floating(cells.type):
                if _is_number(cells.type) and cells.null_count:
                    self._gappy.add(column)
            elif pc.any(infinite := pc.is_inf(cells)).as_py():
                raise DataError(
                    f"{self.path}: row {pc.index(infinite, True).as_py() + 1}, column {column!r}: "
                    "infinite. Correct it."
                )
        tell_narrowed(narrowed)


def _load(path: str, split: str | None, settings: dict[str, Any]) -> tuple[Any, list[Path]]:
    """The dataset and its files. Raises ConfigError and DataError."""
    datasets = importlib.import_module("datasets")
    folder = Path(path).expanduser()
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            found = datasets.load_from_disk(str(folder))
            paths = sorted(file for file in folder.rglob("*") if file.is_file())
        else:
            given = str(folder) if folder.exists() else path
            builder = datasets.load_dataset_builder(given, **settings)
            paths = [
                Path(file)
                for files in (builder.config.data_files or {}).values()
                for file in files
                if "://" not in str(file)
            ]
            # Local files: datasets would consider a file unchanged by its modification time alone
            if paths:
                cache = Path(datasets.config.HF_DATASETS_CACHE)
                cache.mkdir(parents=True, exist_ok=True)
                content = Hashes(cache / "fermarsi-hashes.json").of(paths)
                builder = datasets.load_dataset_builder(
                    given, **settings, cache_dir=str(cache / "fermarsi" / content)
                )
            builder.download_and_prepare()
            found = builder.as_dataset(split=split)
            written = found.values() if isinstance(found, dict) else [found]
            paths = paths or [Path(file["filename"]) for one in written for file in one.cache_files]
    except DataError:
        raise
    except Exception as error:  # datasets, huggingface_hub, pyarrow and pandas each raise their own
        raise DataError(f"{path}: datasets cannot load it: {_reason(error)}") from error
    if isinstance(found, dict):
        if split is None and len(found) == 1:
            (found,) = found.values()
        elif split not in found:
            raise ConfigError(
                f"split: {path} has {', '.join(found)}. Set split to one of them, not {split}."
            )
        else:
            found = found[split]
    elif saved and split is not None:
        raise ConfigError(
            f"split: {path} was saved without splits. Remove split; part and rule divide it."
        )
    return found, paths


def _reason(error: Exception) -> str:
    cause: BaseException = error
    if type(error).__name__ == "DatasetGenerationError":
        cause = error.__cause__ or error
    text = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(error, ConnectionError) or "offline" in text.lower():
        return (
            f"{text}. Without a network, give the path of local files, or load the dataset once on "
            "a machine that has one (datasets keeps it in its cache)."
        )
    return f"{text}. Check path, name, split, data_files and data_dir."


def _is_plain(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ in ("Value", "ClassLabel") and (
        "string" in kind or "int" in kind or kind == "bool"
    )


def _is_number(kind: pa.DataType) -> bool:
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(is_kind(kind) for is_kind in is_number)


def _array(cells: Any, where: str) -> Any:
    """An arrow array -> (B, ...) numbers, or a list of strings. Raises DataError."""
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if any(is_kind(cells.type) for is_kind in is_text):
        return [text or "" for text in cells.to_pylist()]
    shape = [len(cells)]
    lists = (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray, pa.ExtensionArray)
    while isinstance(cells, lists):
        if isinstance(cells, pa.ExtensionArray):  # datasets' Array2D to Array5D
            cells = cells.storage
            continue
        lengths = pc.unique(pc.list_value_length(cells)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise DataError(
                f"{where}: lists of different lengths, e.g. {lengths[:3]}. Cut or pad them to one "
                "length, or remove the column from columns."
            )
        shape.append(lengths[0])
        cells = cells.flatten()
    if not _is_number(cells.type):
        raise DataError(
            f"{where}: {cells.type} is neither numeric nor text. Remove it from columns."
        )
    values: NDArray[Any] = cells.to_numpy(zero_copy_only=False).reshape(shape)
    if values.dtype == object:  # true, false and null
        values = np.array(
            [np.nan if value is None else value for value in values.ravel().tolist()],
            dtype=np.float32,
        ).reshape(shape)
    if len(shape) == 1 and values.dtype.kind in "iu":
        return values.astype(np.int64)
    with np.errstate(over="ignore"):
        narrow: NDArray[Any] = values.astype(_WIDER.get(values.dtype.name, values.dtype))
    if narrow.dtype.kind == "f" and np.isinf(narrow).any():
        raise DataError(f"{where}: infinite, or too large for float32. Correct or rescale it.")
    return narrow


def _columns(there: Collection[str], wanted: Mapping[str, str] | None, path: str) -> dict[str, str]:
    """{column of the dataset: name in a sample}. Raises ConfigError."""
    columns = dict(zip(there, there, strict=True)) if wanted is None else dict(wanted)
    for column in columns:
        if column not in there:
            raise ConfigError(
                f"columns: {path} has no column {column!r}, only {', '.join(there)}."
                f"{did_you_mean(column, there, quoted=True)}"
            )
    if len(set(columns.values())) < len(columns):
        raise ConfigError(f"columns: {columns} uses a name twice. Rename one.")
    return columns
