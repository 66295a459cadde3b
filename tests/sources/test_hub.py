"""Data sets through the library `datasets`: read from files here, as they would be from the Hub."""

import csv
import gc
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import soundfile  # type: ignore[import-untyped]  # soundfile has no stubs
from PIL import Image

from harness.errors import ConfigError, DataError
from harness.sources.audio import WaveReader
from harness.sources.hub import Hub
from harness.sources.images import Images
from harness.sources.split import ByGroup, ByValue
from harness.sources.tables import Table
from harness.treatments.tables import Encode

ROOT = Path(__file__).parents[2]
ROWS: list[dict[str, Any]] = [
    {
        "id": number,
        "size": number / 3,
        "count": number * 7 % 5,
        "kind": "abc"[number % 3],
        "who": f"s{number // 4}",
    }
    for number in range(20)
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no test reaches out


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pd.DataFrame(rows).to_parquet(path)
    return str(path)


@pytest.mark.parametrize(
    ("form", "ending"), [("csv", ".csv"), ("json", ".jsonl"), ("parquet", ".parquet")]
)
def test_csv_json_lines_and_parquet_give_what_tables_give(
    tmp_path: Path, form: str, ending: str
) -> None:
    path = write_rows(tmp_path / f"a{ending}", ROWS)
    source = Hub(form, data_files=path)
    table = Table(
        path,
        features=["size"],
        columns={"id": "integer", "count": "integer", "kind": "text", "who": "text"},
    )
    chosen = [7, 0, 19]
    batch, other = source.__getitems__(chosen), table.__getitems__(chosen)
    assert batch["size"].dtype == np.float32
    assert batch["size"].tolist() == other["features"][:, 0].tolist()
    for name in ("id", "count"):
        assert batch[name].dtype == np.int64
        assert batch[name].tolist() == other[name].tolist()
    assert (batch["kind"], batch["who"]) == (other["kind"], other["who"])
    assert source[7] == {name: values[0] for name, values in batch.items()}
    assert source.paths() == [Path(path)]
    assert pickle.loads(pickle.dumps(source))[7] == source[7]


def test_texts_stay_as_they_are_and_what_is_known_of_them_is_one_text(tmp_path: Path) -> None:
    texts = ["1.0", "true", "2024-01-01 00:00:00", "Gro\u0308\u00dfe"]
    path = write_rows(tmp_path / "a.parquet", [{"text": text} for text in texts])
    source = Hub("parquet", data_files=path)
    assert source.__getitems__([0, 1, 2, 3])["text"] == texts
    assert source.known()["text"] == ["1", "True", "2024-01-01", "Gr\u00f6\u00dfe"]
    encode = Encode("text", ["1.0", "true", "2024-01-01", "Gr\u00f6\u00dfe"])
    assert encode({"text": texts})["text"].tolist() == [0, 1, 2, 3]


def test_columns_are_chosen_and_renamed_and_rows_divided_by_groups(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", ROWS)
    parts = [
        Hub(
            "csv",
            data_files=path,
            columns={"size": "features", "kind": "label"},
            part=part,
            rule=ByGroup("who", val=0, test=0.4),
        )  # type: ignore[arg-type]
        for part in ("train", "test")
    ]
    assert [len(part) for part in parts] == [12, 8]
    assert set(parts[0][0]) == {"features", "label"}
    groups = [set(part.known()["who"]) for part in parts]
    assert not groups[0] & groups[1]
    assert {*parts[0].known()["id"], *parts[1].known()["id"]} == {str(row["id"]) for row in ROWS}
    sliced = Hub("csv", data_files=path, split="train[5:8]")
    assert sliced.__getitems__([0, 2])["id"].tolist() == [5, 7]
    with pytest.raises(
        ConfigError, match=r"^columns: csv has no column 'sice', only .* Did you mean 'size'\?"
    ):
        Hub("csv", data_files=path, columns={"sice": "features"})
    two = {"train": path, "test": write_rows(tmp_path / "b.csv", ROWS[:3])}
    assert len(Hub("csv", data_files=two, split="test")) == 3
    with pytest.raises(
        ConfigError, match=r"^split: csv has train, test\. Set split to one of them"
    ):
        Hub("csv", data_files=two)


def test_a_file_that_changed_behind_its_times_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2\n")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    assert Hub("csv", data_files=str(path))[0] == {"x": 1, "y": 2}
    path.write_text("x,y\n8,9\n")
    os.utime(path, ns=times)
    assert Hub("csv", data_files=str(path))[0] == {"x": 8, "y": 9}
    path.write_text("x,y\n1,2\n")
    os.utime(path, ns=times)
    assert Hub("csv", data_files=str(path))[0] == {"x": 1, "y": 2}


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_missing_values_are_named_or_kept(tmp_path: Path, ending: str) -> None:
    rows = [dict(row) for row in ROWS[:4]]
    for name, row in (("size", 1), ("count", 2), ("kind", 3)):
        rows[row][name] = None
    path = write_rows(tmp_path / f"a{ending}", rows)
    form = {".csv": "csv", ".jsonl": "json"}[ending]
    with pytest.raises(
        DataError,
        match=rf"^{form}: row 2, column 'size': empty\. Fill it in, or set missing: keep",
    ):
        Hub(form, data_files=path)
    source = Hub(form, data_files=path, missing="keep")
    batch = source.__getitems__([0, 1, 2, 3])
    assert np.isnan(batch["size"]).tolist() == [False, True, False, False]
    assert np.isnan(batch["count"]).tolist() == [False, False, True, False]
    assert source.__getitems__([0])["count"].dtype == np.float32  # as where one is missing
    assert batch["kind"] == ["a", "b", "c", ""]


def pictures(folder: Path) -> np.ndarray[Any, Any]:
    counts = np.random.default_rng(0).integers(0, 65536, (6, 4, 5)).astype(np.uint16)
    for number, frame in enumerate(counts):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(path)
    return counts


def test_a_folder_of_thermal_images_keeps_every_count_and_gives_classes(tmp_path: Path) -> None:
    counts = pictures(tmp_path / "frames")
    source = Hub(str(tmp_path / "frames"))
    batch = source.__getitems__(list(range(6)))
    assert batch["image"].dtype == np.int32
    assert batch["image"][:, 0].tolist() == counts[[0, 2, 4, 1, 3, 5]].tolist()
    assert (batch["label"].tolist(), source.classes) == ([0, 0, 0, 1, 1, 1], ["a", "b"])
    assert source.known()["label"] == ["a", "a", "a", "b", "b", "b"]
    own = Images(str(tmp_path / "frames/{label}/*.png"))
    assert (
        own.__getitems__([3, 1])["image"].tolist() == source.__getitems__([3, 1])["image"].tolist()
    )
    assert len(source.paths()) == 6


# Datasets leaves the metadata file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_of_images_with_a_metadata_file_gives_its_columns(
    tmp_path: Path, name: str
) -> None:
    counts = pictures(tmp_path / "frames")
    write_rows(
        tmp_path / "frames" / name,
        [
            {"file_name": f"{'ab'[n % 2]}/{n}.png", "degrees": n / 2, "camera": "xy"[n // 3]}
            for n in range(6)
        ],
    )
    by_camera: Any = ByValue("camera", test=["y"])
    source = Hub("imagefolder", data_dir=str(tmp_path / "frames"), part="test", rule=by_camera)
    found = source.__getitems__([0, 1, 2])
    order = [int(2 * degrees) for degrees in found["degrees"]]
    assert sorted(order) == [3, 4, 5]
    assert found["image"][:, 0].tolist() == counts[order].tolist()
    assert tmp_path / "frames" / name in source.paths()
    again = Images(
        str(tmp_path / "frames" / name), columns={"degrees": "number"}, part="test", split=by_camera
    )
    assert sorted(again.__getitems__([0, 1, 2])["degrees"].tolist()) == sorted(
        found["degrees"].tolist()
    )
    gc.collect()  # here, where it is ignored, and not in another test


def test_images_that_cannot_be_read_are_named_or_left_out(tmp_path: Path) -> None:
    pictures(tmp_path / "frames")
    bad = tmp_path / "frames/a/2.png"
    bad.write_bytes(b"not an image")
    with pytest.raises(
        DataError, match=rf"^{bad}: not an image: .* Or skip such samples with on_error: skip"
    ):
        Hub(str(tmp_path / "frames"))
    with pytest.warns(UserWarning, match=rf"^1 of 6 samples skipped: {bad}: not an image"):
        source = Hub(str(tmp_path / "frames"), on_error="skip")
    assert len(source) == 5
    assert len(source.skipped) == 1
    assert source.__getitems__([0, 1, 2])["label"].tolist() == [0, 0, 1]


def test_a_saved_data_set_with_arrays_classes_and_bytes(tmp_path: Path) -> None:
    counts = pictures(tmp_path / "frames")
    files = [
        {"bytes": (tmp_path / "frames/a/0.png").read_bytes(), "path": None},
        {"bytes": (tmp_path / "frames/b/1.png").read_bytes(), "path": None},
    ]
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "grid": datasets.Array2D((2, 3), "uint8"),
            "vector": datasets.List(datasets.Value("float64"), length=2),
            "picture": datasets.Image(),
        }
    )
    columns: dict[str, Any] = {
        "label": [1, 0],
        "grid": [[[1, 2, 3], [4, 5, 6]], [[0] * 3] * 2],
        "vector": [[0.5, 1.0], [2.0, 3.0]],
        "picture": files,
    }
    saved = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(
        str(tmp_path / "saved")
    )
    source = Hub(
        str(tmp_path / "saved"),
        split="train",
        columns={"label": "label", "grid": "grid", "vector": "features", "picture": "image"},
    )
    batch = source.__getitems__([1, 0])
    assert (batch["label"].tolist(), source.classes) == ([0, 1], ["no", "yes"])
    assert (batch["grid"].dtype, batch["grid"].tolist()) == (
        np.uint8,
        [columns["grid"][1], columns["grid"][0]],
    )
    assert (batch["features"].dtype, batch["features"].tolist()) == (
        np.float32,
        [[2.0, 3.0], [0.5, 1.0]],
    )
    assert batch["image"][:, 0].tolist() == counts[[1, 0]].tolist()
    assert len(Hub(str(tmp_path / "saved"), split="test")) == 1
    with pytest.raises(ConfigError, match=r"has train, test\. Set split to one of them, not val"):
        Hub(str(tmp_path / "saved"), split="val")
    ragged = datasets.Dataset.from_dict({"x": [[1, 2], [3]]})
    ragged.save_to_disk(str(tmp_path / "ragged"))
    with pytest.raises(DataError, match=r"column 'x': lists of different lengths, e\.g\. \[2, 1\]"):
        Hub(str(tmp_path / "ragged")).__getitems__([0, 1])


def test_a_folder_of_sound_is_read_by_soundfile(tmp_path: Path) -> None:
    waves = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 100))
    for number, wave in enumerate(waves):
        path = tmp_path / "sound" / "ab"[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave[: 100 - number], 8000, subtype="FLOAT")
    with pytest.raises(
        ConfigError,
        match=(
            r"^audio: column 'audio' is sound\. Set audio: \{_target_: "
            r"harness\.sources\.audio\.WaveReader"
        ),
    ):
        Hub("audiofolder", data_dir=str(tmp_path / "sound"))
    source = Hub(
        "audiofolder",
        data_dir=str(tmp_path / "sound"),
        audio=WaveReader(8000, 0.0125),
        columns={"audio": "wave", "label": "label"},
    )
    batch = source.__getitems__([0, 1, 2, 3])
    assert batch["wave"].shape == (4, 1, 100)
    assert batch["wave"][1, 0, :98] == pytest.approx(waves[2, :98], abs=1e-6)
    assert batch["wave"][1, 0, 98:].tolist() == [0, 0]
    assert batch["label"].tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match=r"8000 Hz, expected 16000 Hz"):
        Hub("audiofolder", data_dir=str(tmp_path / "sound"), audio=WaveReader(16000, 1.0))


def test_without_a_network_one_message_says_what_to_do(tmp_path: Path) -> None:
    code = "from harness.sources.hub import Hub\nHub('fermarsi/no_such', split='train')"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100
    )
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("harness.errors.DataError: fermarsi/no_such: datasets cannot load it: ")
    assert "Without a network, give the path of local files, or load the dataset once on" in last


def test_what_is_no_data_is_refused_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(
        DataError,
        match=(
            r"^parquet: datasets cannot load it: .*Check path, name, split, data_files and "
            r"data_dir"
        ),
    ):
        Hub("parquet", data_files=str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match=r"^csv: datasets cannot load it: .*nowhere\.csv"):
        Hub("csv", data_files=str(tmp_path / "nowhere.csv"))
    with pytest.raises(DataError, match=r'^csv: datasets cannot load it: .*Unknown split "val"'):
        Hub("csv", data_files=write_rows(tmp_path / "a.csv", ROWS), split="val")
