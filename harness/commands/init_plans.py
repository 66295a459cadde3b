"""What a starter project says for a folder or table of each kind."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError
from harness.sources.cells import MISSING
from harness.wording import first_line, some

if TYPE_CHECKING:
    import pandas as pd

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".heic")
_SOUND = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aiff")
_TABLES = (".csv", ".tsv", ".parquet", ".xlsx", ".jsonl")
_FEW = 20  # different values of a target that is a class, or of a text that is a category
_TREATMENT = "harness.treatments."


@dataclass(frozen=True)
class Plan:
    """What a starter project says: the source (without its split), how it is split, treatments,
    network and task, and what was left out and why.
    """

    source: Mapping[str, Any]
    split: Mapping[str, Any]
    treatments: Sequence[Mapping[str, Any]]
    network: Mapping[str, Any]
    task: Mapping[str, Any]
    num_samples: int
    notes: Sequence[str] = field(default_factory=list)

    @property
    def classifies(self) -> bool:
        return "Classification" in str(self.task["_target_"])


def _classes(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """{class: its files}: a folder for each."""
    if not folder.is_dir():
        raise ConfigError(f"--data {folder}: give a folder, with a folder for each class in it.")
    found = {
        one.name: sorted(path for path in one.iterdir() if path.suffix.lower() in suffixes)
        for one in sorted(folder.iterdir())
        if one.is_dir() and not one.name.startswith(".")
    }
    empty = [name for name, files in found.items() if not files]
    if len(found) < 2 or empty:
        what = f"no files in {some(empty)}" if empty else "fewer than two folders"
        raise ConfigError(
            f"--data {folder}: {what}. Give a folder with a folder for each class in it: "
            f"{folder}/cat/1{suffixes[0]}, {folder}/dog/1{suffixes[0]}."
        )
    return found


def _pattern(folder: Path, classes: Mapping[str, Sequence[Path]]) -> str:
    suffixes = sorted({path.suffix[1:] for files in classes.values() for path in files})
    ends = suffixes[0] if len(suffixes) == 1 else "{" + ",".join(suffixes) + "}"
    return f"{folder.resolve()}/{{label}}/{{file}}.{ends}"


def _stratified(column: str, key: str | Sequence[str]) -> dict[str, Any]:
    rule = "harness.sources.split.Stratified"
    return {"_target_": rule, "column": column, "key": key, "val": 0.2, "test": 0.1}


def _classification(source: str) -> dict[str, Any]:
    task = "harness.tasks.Classification"
    return {"_target_": task, "input": source, "target": "label"}


def plan_images(folder: Path) -> Plan:
    """Photos of any sizes in a folder for each class. Raises ConfigError."""
    classes = _classes(folder, _IMAGES)
    return Plan(
        {
            "_target_": "harness.sources.images.Images",
            "files": _pattern(folder, classes),
            "size": [64, 64],
            "mode": "RGB",
        },
        _stratified("label", ["label", "file"]),
        [
            {"_target_": f"{_TREATMENT}RandomFlip"},
            {"_target_": f"{_TREATMENT}ToFloat"},
            {"_target_": f"{_TREATMENT}Normalise", "mean": 0.5, "std": 0.25},
        ],
        {
            "_target_": "harness.networks.ConvNet",
            "in_channels": 3,
            "widths": [16, 32, 64],
            "out_features": len(classes),
        },
        _classification("image"),
        sum(map(len, classes.values())),
        ["images are cut to 64 x 64 (size); a pretrained network wants 224 x 224"],
    )


def plan_audio(folder: Path) -> Plan:
    """Recordings in a folder for each class. Raises ConfigError."""
    try:
        import soundfile  # type: ignore[import-untyped]  # it has no stubs
    except ImportError as error:
        raise ConfigError("--kind audio needs soundfile: pip install 'fermarsi[audio]'.") from error
    classes = _classes(folder, _SOUND)
    infos = []
    for path in [path for files in classes.values() for path in files]:
        try:
            infos.append(soundfile.info(path))
        except RuntimeError as error:
            raise ConfigError(f"{path}: {error}. Remove it, or make it a WAV file.") from error
    rates = [info.samplerate for info in infos]
    rate = min(16_000, *rates)
    longest = sorted(info.duration for info in infos)[int(0.9 * (len(infos) - 1))]
    seconds = max(0.1, math.ceil(10 * min(longest, 10.0)) / 10)
    window = 2 ** round(math.log2(0.03 * rate))
    return Plan(
        {
            "_target_": "harness.sources.audio.Recordings",
            "files": _pattern(folder, classes),
            "rate_hz": rate,
            "seconds": seconds,
            "channels": "mono",
            **({"resample": True} if {*rates} != {rate} else {}),
        },
        _stratified("label", ["label", "file"]),
        [
            {"_target_": f"{_TREATMENT}Gain", "decibels": 6},
            {
                "_target_": f"{_TREATMENT}LogMel",
                "rate_hz": rate,
                "num_mels": 32,
                "window": window,
                "hop": window // 2,
            },
            {"_target_": f"{_TREATMENT}Normalise", "mean": -10, "std": 5, "key": "wave"},
        ],
        {
            "_target_": "harness.networks.ConvNet",
            "in_channels": 1,
            "widths": [16, 32, 64],
            "out_features": len(classes),
        },
        _classification("wave"),
        len(infos),
        [f"recordings are cut or padded to {seconds} s, nine in ten whole, and read at {rate} Hz"],
    )


def plan_series(folder: Path) -> Plan:
    """Tables of rows in time, in a folder for each class. Raises ConfigError."""
    classes = _classes(folder, _TABLES)
    files = [path for of in classes.values() for path in of]
    tables = [_read(path) for path in files]
    first = tables[0]
    channels = [str(name) for name in first.columns if _is_number(first[name])]
    time = next((one for one in channels if one.lower() in ("t", "time", "timestamp")), None)
    channels = [one for one in channels if one != time]
    if not channels:
        raise ConfigError(f"{files[0]}: no column of numbers. Give a header and numbers below it.")
    for path, table in zip(files, tables, strict=True):
        if lacks := [one for one in channels if one not in table]:
            raise ConfigError(
                f"{path}: has no {some(lacks)}, which {files[0]} has. Give all tables the same "
                "columns."
            )
    holes = any(table[channels].isna().any().any() for table in tables)
    length = max(1, min(100, *(len(table) for table in tables)))
    stride = max(1, length // 2)
    windows = sum((len(table) - length) // stride + 1 for table in tables)
    return Plan(
        {
            "_target_": "harness.sources.series.Series",
            "files": _pattern(folder, classes),
            "channels": channels,
            "length": length,
            "stride": stride,
            **({"gaps": "split"} if holes else {}),
        },
        _stratified("label", ["label", "file"]),
        [{"_target_": f"{_TREATMENT}Standardise", "key": "series"}],
        {
            "_target_": "harness.networks.Tcn",
            "in_channels": len(channels),
            "widths": [32, 32],
            "out_features": len(classes),
        },
        _classification("series"),
        windows,
        [f"windows of {length} rows, {stride} apart; no recording is in two splits"],
    )


def _read(path: Path) -> "pd.DataFrame":
    import pandas as pd

    readers: Mapping[str, Callable[[Path], Any]] = {
        ".csv": lambda one: pd.read_csv(one, **_read_like(_dialect(one))),
        ".tsv": lambda one: pd.read_csv(one, **{"sep": "\t", **_read_like(_dialect(one))}),
        ".parquet": pd.read_parquet,
        ".xlsx": lambda one: pd.read_excel(one, engine="calamine"),
        ".jsonl": lambda one: pd.read_json(one, lines=True),
    }
    if path.suffix.lower() not in readers:
        raise ConfigError(f"--data {path}: give a file that ends in {', '.join(_TABLES)}.")
    try:
        table: pd.DataFrame = readers[path.suffix.lower()](path)
    except (ImportError, OSError, ValueError) as error:
        raise ConfigError(
            f"--data {path}: cannot be read: {first_line(error)}. Give a whole table."
        ) from error
    table.columns = table.columns.map(str)  # a cell of a header may be a number
    return table


def _is_number(column: "pd.Series[Any]") -> bool:
    return column.dtype.kind in "iuf" and not bool(column.isna().all())


def _dialect(path: Path) -> dict[str, str]:
    """The settings for a CSV that a spreadsheet wrote in its country's way: what separates cells,
    the point of decimals, the encoding. Raises ValueError.
    """
    import pandas as pd

    if path.suffix.lower() not in (".csv", ".tsv"):
        return {}
    with path.open("rb") as file:
        head = file.read(2**20)
    first = head.rpartition(b"\n")[0] or head
    try:
        header, found = first.decode("utf-8-sig"), {}
    except UnicodeDecodeError:
        header, found = first.decode("cp1252", "replace"), {"encoding": "cp1252"}
    mark = max(",;\t|", key=header.partition("\n")[0].count)
    if mark != "," and path.suffix.lower() == ".csv":
        found["separator"] = mark
    if mark != ",":
        like = _read_like({**found, "separator": mark})
        by_point, by_comma = (pd.read_csv(path, **like, decimal=one, nrows=1000) for one in ".,")
        if _count_numbers(by_comma) > _count_numbers(by_point):
            found["decimal"] = ","
    return found


def _read_like(dialect: Mapping[str, str]) -> dict[str, Any]:
    """The same for pandas."""
    return {{"separator": "sep"}.get(name, name): value for name, value in dialect.items()}


def _marks(path: Path, numbers: Sequence[str]) -> dict[str, Any]:
    """The setting for words in columns of numbers that pandas takes for missing cells, as n/a."""
    import pandas as pd

    if path.suffix.lower() not in (".csv", ".tsv"):
        return {}
    sep = "," if path.suffix.lower() == ".csv" else "\t"
    like = {"sep": sep, **_read_like(_dialect(path))}
    as_text = pd.read_csv(path, **like, dtype=str, keep_default_na=False, usecols=list(numbers))
    missing = pd.read_csv(path, **like, usecols=list(numbers)).isna()
    words = {str(one).strip() for name in numbers for one in as_text[name][missing[name]]}
    others = sorted(words - {"", *MISSING})
    return {"missing_marks": [*MISSING, *others]} if others else {}


def _count_numbers(table: "pd.DataFrame") -> int:
    return sum(_is_number(table[name]) for name in table.columns)


def _target(table: "pd.DataFrame", target: str | None, path: Path) -> str:
    names = list(map(str, table.columns))
    if target is not None and target not in names:
        raise ConfigError(f"--target {target}: no such column. {path} has {some(names)}.")
    chosen = target or names[-1]
    missing = int(table[chosen].isna().sum())
    if missing:
        raise ConfigError(
            f"{path}: {missing:,} rows have no {chosen}, which is to be predicted. Remove them, or "
            "give another --target."
        )
    return chosen


def _to_features(
    numbers: Sequence[str], categories: Sequence[str], sizes: Mapping[Any, Any], *, holes: bool
) -> list[dict[str, Any]]:
    """The treatments by which columns become one array; `sizes`: of one-hot codes, by category."""
    treatments: list[dict[str, Any]] = []
    if numbers and holes:
        treatments.append({"_target_": f"{_TREATMENT}Impute", "value": "median", "mark": True})
    if numbers:
        treatments.append({"_target_": f"{_TREATMENT}Standardise"})
    for name in categories:
        treatments += [
            {"_target_": f"{_TREATMENT}Encode", "key": name, "others": True},
            {"_target_": f"{_TREATMENT}OneHot", "key": name, "size": int(sizes[name])},
        ]
    if categories:
        keys = [*(["features"] if numbers else []), *categories]
        treatments.append({"_target_": f"{_TREATMENT}Join", "keys": keys})
    return treatments


def _flat(table: "pd.DataFrame") -> "tuple[pd.DataFrame, list[str]]":
    """The table without columns of lists or objects, and a note on each of these."""
    nested = [
        name
        for name in table.columns
        if table[name].map(lambda cell: isinstance(cell, list | dict)).any()
    ]
    notes = [f"{name} is left out: lists or objects, not single values" for name in nested]
    return table.drop(columns=nested), notes


def _left_out(name: str, values: int) -> str:
    return (
        f"{name} is left out: {values:,} different values, as of an id or a text; with {name}: "
        "text in columns it stands beside the predictions"
    )


def plan_table(path: Path, target: str | None) -> Plan:
    """Rows with a target, some cells missing. Raises ConfigError."""
    table, notes = _flat(_read(path))
    target = _target(table, target, path)
    numbers, categories = [], []
    for name in [str(name) for name in table.columns if str(name) != target]:
        column = table[name]
        values = column.nunique()
        if _is_number(column) and not (column.dtype.kind in "iu" and values == len(table) > _FEW):
            numbers.append(name)
        elif not _is_number(column) and 1 < values <= _FEW:
            categories.append(name)
        else:
            notes.append(_left_out(name, values))
    if not numbers and not categories:
        raise ConfigError(
            f"--data {path}: no column to predict {target} from ({some(notes)}). Add one."
        )
    goal = table[target]
    is_class = not _is_number(goal) or (goal.dtype.kind in "iu" and goal.nunique() <= _FEW)
    holes = bool(table[[*numbers, *categories]].isna().any().any())
    wide = table[categories].nunique() + table[categories].isna().any() + 1
    inputs = len(numbers) * (2 if holes else 1) + int(wide.sum())
    treatments = _to_features(numbers, categories, wide.to_dict(), holes=holes)
    if is_class:
        own = {"_target_": f"{_TREATMENT}Encode", "key": target, "optional": True}
        split = _stratified(target, [*numbers, *categories])
    else:
        own = {"_target_": f"{_TREATMENT}Standardise", "key": target}
        split = {
            "_target_": "harness.sources.split.ByGroup",
            "column": [*numbers, *categories],
            "val": 0.2,
            "test": 0.1,
        }
        notes.append(f"{target} is learned standardised; predictions are in its own unit")
    task = "Classification" if is_class else "Regression"
    return Plan(
        {
            "_target_": "harness.sources.tables.Table",
            "files": str(path.resolve()),
            **_dialect(path),
            "features": numbers,
            "columns": {
                **dict.fromkeys(categories, "text"),
                target: "text" if is_class else "number",
            },
            **({"missing": "keep", **_marks(path, numbers)} if holes else {}),
        },
        split,
        [*treatments, own],
        {
            "_target_": "harness.networks.Mlp",
            "dims": [inputs, 128, 128, goal.nunique() if is_class else 1],
            "dropout": 0.1,
        },
        {"_target_": f"harness.tasks.{task}", "input": "features", "target": target},
        len(table),
        notes,
    )


def plan_text(path: Path, target: str | None) -> Plan:
    """Texts with a class each. Raises ConfigError."""
    table = _read(path)
    target = _target(table, target, path)
    texts = [str(name) for name in table.columns if name != target and not _is_number(table[name])]
    if not texts:
        raise ConfigError(f"--data {path}: no column of text beside {target}.")
    key = max(texts, key=lambda name: table[name].astype(str).str.len().mean())
    classes, size = table[target].nunique(), 2000
    left = [str(name) for name in table.columns if name not in (key, target)]
    return Plan(
        {
            "_target_": "harness.sources.tables.Table",
            "files": str(path.resolve()),
            **_dialect(path),
            "features": [],
            "columns": {key: "text", target: "text"},
        },
        _stratified(target, key),
        [
            {"_target_": f"{_TREATMENT}Encode", "key": target, "optional": True},
            {"_target_": f"{_TREATMENT}Tokenise", "key": key, "size": size, "length": 128},
            {"_target_": f"{_TREATMENT}Pad"},
        ],
        {
            "_target_": "harness.networks.Chain",
            "words": {
                "_target_": "torch.nn.EmbeddingBag",
                "num_embeddings": size,
                "embedding_dim": 64,
                "padding_idx": 0,
            },
            "head": {"_target_": "harness.networks.Mlp", "dims": [64, 64, classes], "dropout": 0.2},
        },
        {"_target_": "harness.tasks.Classification", "input": "tokens", "target": target},
        len(table),
        [f"{key} is the text; left out: {some(left, none='nothing')}"],
    )
