"""`fermarsi init` makes a project of a user's own data, which trains at once and predicts names."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.commands.evaluate import evaluate_split
from harness.commands.init import start_project
from harness.commands.predict import write_predictions
from harness.config.read import read_config
from harness.errors import ConfigError
from harness.sources.tables import Table
from tests.pool import command, train_on_ranks


def photos(root: Path) -> Path:
    """Of mixed sizes, modes and endings, as a phone and the web leave them."""
    draw = np.random.default_rng(0)
    for label, level in (("cat", 60), ("dog", 190)):
        (root / label).mkdir(parents=True)
        for number in range(16):
            height, width = draw.integers(40, 140, 2)
            values = draw.integers(level - 50, level + 50, (height, width, 3)).astype(np.uint8)
            picture = Image.fromarray(values)
            ending = ("jpg", "JPG", "png", "jpeg")[number % 4]
            picture = picture.convert("L") if number % 5 == 0 else picture
            picture.save(root / label / f"IMG {number}.{ending}")
    return root


def sounds(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for label, pitch in (("low", 200), ("high", 1500)):
        (root / label).mkdir(parents=True)
        for number in range(12):
            count = int(draw.integers(4000, 9000))
            tone = 9000 * np.sin(np.arange(count) * 2 * np.pi * pitch / 8000)
            values = (tone + draw.normal(0, 500, count)).astype("<i2")
            with wave.open(str(root / label / f"{number}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes(values.tobytes())
    return root


def walks(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for label, speed in (("walk", 0.2), ("run", 0.6)):
        (root / label).mkdir(parents=True)
        for number in range(16):
            steps = np.arange(60)
            rows = {
                "time": steps,
                "x": np.sin(speed * steps) + draw.normal(0, 0.1, 60),
                "y": draw.normal(0, 1, 60),
            }
            pd.DataFrame(rows).to_csv(root / label / f"{number}.csv", index=False)
    return root


def flats(path: Path) -> Path:
    """A table with missing cells, an id, a category, a note, semicolons, and the price last."""
    draw = np.random.default_rng(0)
    count = 160
    area = draw.uniform(20, 120, count).round(1)
    town = draw.choice(["Ivrea", "Asti"], count)
    rows = pd.DataFrame(
        {
            "id": np.arange(1000, 1000 + count),
            "area": np.where(draw.random(count) < 0.1, np.nan, area),
            "rooms": draw.integers(1, 6, count),
            "town": np.where(draw.random(count) < 0.1, None, town),
            "note": [f"seen on day {number}" for number in range(count)],
            "price": (area * 1500 + (town == "Asti") * 20_000).round(),
        }
    )
    rows.to_csv(path, index=False, sep=";")
    return path


def reviews(path: Path) -> Path:
    draw = np.random.default_rng(0)
    words = {"glad": ["good", "fine", "great"], "sad": ["bad", "poor", "awful"]}
    rows = [
        {"review": f"the {draw.choice(words[mood])} film number {number}", "mood": mood}
        for number, mood in enumerate(["glad", "sad"] * 20)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


MAKERS: dict[str, Any] = {
    "images": (photos, "photos"),
    "audio": (sounds, "sounds"),
    "series": (walks, "walks"),
    "table": (flats, "flats.csv"),
    "text": (reviews, "reviews.csv"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_each_kind_trains_and_predicts(tmp_path: Path, kind: str) -> None:
    make, name = MAKERS[kind]
    data = make(tmp_path / name)
    said = start_project(tmp_path / "project", kind, data)
    assert "next: fermarsi train" in said
    assert (tmp_path / "project" / "README.md").exists()
    config = tmp_path / "project" / "train.yaml"
    (end,) = train_on_ranks(1, config, ["stop.budget.epochs=12", "optimizer.lr=0.01"])
    assert end.exit_code == 0, end.stderr
    run = tmp_path / "project" / "run"
    outcome = json.loads((run / "outcome.json").read_text())
    assert outcome["reason"] in ("budget", "no_improvement")
    allow = [f"{tmp_path}/"]
    values = evaluate_split(run, "test", allow).values
    out = tmp_path / "found.csv"
    write_predictions(run, "test", "", out, allow)
    found = pd.read_csv(out)
    if kind == "table":
        assert values["r2"] > 0.3
        assert found["predicted"].mean() > 10_000  # in euros
    else:
        assert values["accuracy"] > 0.8
        names = {"images": {"cat", "dog"}, "audio": {"low", "high"}, "series": {"walk", "run"}}
        assert {*found["predicted"]} <= names.get(kind, {"glad", "sad"})
    # New data, without what is to be predicted
    if data.is_dir():
        new = min(one for one in data.iterdir() if one.is_dir())
        files, count = f"{new}/*", len([*new.iterdir()])
    else:
        rows = data.read_text().splitlines()[:9]
        separator = ";" if kind == "table" else ","
        without = [row.rpartition(separator)[0] for row in rows]
        files, count = str(tmp_path / "new.csv"), 8
        Path(files).write_text("\n".join(without) + "\n")
    write_predictions(run, "val", "", out, files=[files])
    found = pd.read_csv(out)
    assert len(found) == count
    if kind == "table":
        truth = [float(row.rpartition(";")[2]) for row in rows[1:]]
        assert np.corrcoef(found["predicted"], truth)[0, 1] > 0.5
    elif kind != "text":
        assert (found["predicted"] == new.name).mean() > 0.8


def test_nothing_is_changed_in_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    """Known: cookiecutter's --overwrite-if-exists and `npm init` write over what is there."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "notes.txt").write_text("mine")
    data = flats(tmp_path / "flats.csv")
    done = command("init", tmp_path / "project", "--kind", "table", "--data", data)
    assert done.exit_code == 2
    assert "is not empty" in done.stderr
    assert [one.name for one in (tmp_path / "project").iterdir()] == ["notes.txt"]


def test_mistakes_end_in_words_and_leave_nothing(tmp_path: Path) -> None:
    data = flats(tmp_path / "flats.csv")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "1.png").write_bytes(b"")
    (tmp_path / "half" / "cat").mkdir(parents=True)
    (tmp_path / "half" / "dog").mkdir()
    (tmp_path / "half" / "dog" / "1.png").write_bytes(b"")
    for kind, origin, target, words in (
        ("images", tmp_path / "flat", None, "with a folder for each class in it"),
        ("images", tmp_path / "half", None, "no files in cat"),
        ("images", tmp_path / "nowhere", None, "no such file or folder"),
        ("images", tmp_path / "half", "label", "has no effect on images"),
        ("pictures", data, None, "'pictures' is not one of"),
        ("table", data, "prise", "no such column"),
        ("table", data, "area", "rows have no area"),
        ("table", tmp_path / "half" / "dog" / "1.png", None, "give a file that ends in"),
    ):
        with pytest.raises(ConfigError, match=words):
            start_project(tmp_path / "project", kind, origin, target)
        assert not (tmp_path / "project").exists(), words


def test_a_table_of_a_spreadsheet_in_another_country(tmp_path: Path) -> None:
    """Semicolons, decimal commas and umlauts in the encoding of Windows: what Excel saves as CSV in
    Germany, with a word for a missing number. Its sizes were left out as texts.
    """
    sizes = np.random.default_rng(0).uniform(20, 150, 60).round(1)
    rows = [f"{size};{'Köln' if at % 2 else 'Bonn'};{at}" for at, size in enumerate(sizes)]
    lines = ["Fläche;Stadt;Preis", "n/a;Bonn;60", *rows]
    (tmp_path / "Preise.csv").write_text("\n".join(lines).replace(".", ","), encoding="cp1252")
    start_project(tmp_path / "flats", "table", tmp_path / "Preise.csv")
    source = read_config(tmp_path / "flats" / "train.yaml").data.train.source
    dialect = {"separator": ";", "decimal": ",", "encoding": "cp1252", "features": ["Fläche"]}
    assert {key: source[key] for key in dialect} == dialect
    assert source["missing_marks"][-1] == "n/a"
    assert "features: [Fläche]" in (tmp_path / "flats" / "train.yaml").read_text("utf-8")
    kept = {key: value for key, value in source.items() if key not in ("part", "split", "_target_")}
    assert Table(**kept)[8]["features"][0] == np.float32(sizes[7])
    assert np.isnan(Table(**kept)[0]["features"]).all()


def test_odd_files_and_names_of_a_newcomer(tmp_path: Path) -> None:
    count = 30
    years = pd.DataFrame({2023: np.arange(count) * 1.5, 2024: np.arange(count) % 3})
    years.to_excel(tmp_path / "my years.xlsx", index=False)
    start_project(tmp_path / "my project", "table", tmp_path / "my years.xlsx")
    readme = (tmp_path / "my project" / "README.md").read_text()
    assert f"fermarsi train '{tmp_path}/my project/train.yaml' " in readme
    assert f"--out '{tmp_path}/my project/found.csv' " in readme
    lines = [{"x": n * 1.5, "tags": ["a", "b"][: n % 3], "price": n * 2.5} for n in range(count)]
    (tmp_path / "flats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    start_project(tmp_path / "flats", "table", tmp_path / "flats.jsonl")
    assert "tags is left out" in (tmp_path / "flats" / "README.md").read_text()
    (tmp_path / "one.csv").write_text("text\n" + "hello\nyou\n" * count)
    series = walks(tmp_path / "walks")
    pd.DataFrame({"x": np.arange(9.0)}).to_csv(series / "walk" / "9.csv", index=False)
    for directory, kind, origin, words in (
        (tmp_path / "a", "text", tmp_path / "one.csv", "no column of text beside text"),
        (tmp_path / "a", "series", series, "9.csv: has no y, which .*0.csv has. Give all tables"),
        (
            tmp_path / "one.csv" / "b",
            "table",
            tmp_path / "my years.xlsx",
            "directory. Give another directory",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            start_project(directory, kind, origin)
        assert not (tmp_path / "a").exists()
