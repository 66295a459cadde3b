"""`fermarsi predict` writes a table that one can use: names of files and classes, what is true."""

import csv
import json
import math
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.commands import predict, report
from harness.commands.prediction_rows import ROWS, PredictionTables
from harness.commands.trained import load_trained, open_split
from harness.data.store import EntrySource
from tests.pool import command, train_on_ranks

CONFIG = """
run: {{name: shades, seed: 1}}
data:
  checks: {{duplicates: warn}}
  train:
    source: {{_target_: harness.sources.images.Images, files: "{root}/{{label}}/*.png"}}
    treatments: [{{_target_: harness.treatments.ToFloat, key: image}}]
  val:
    source: {{_target_: harness.sources.images.Images, files: "{root}/{{label}}/*.png"}}
    treatments: [{{_target_: harness.treatments.ToFloat, key: image}}]
network: {{_target_: harness.networks.Mlp, dims: [16, 8, 2]}}
task: {{_target_: harness.tasks.Classification, input: image, target: label}}
batch: {{size: 8, micro_size: 4}}
optimizer: {{_target_: torch.optim.AdamW, lr: 0.02}}
stop: {{every: {{steps: 10}}, budget: {{steps: 40}}}}
checkpoint: {{every: {{steps: 20}}}}
"""


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells shoes, which are dark, from boots; resumed once. Its pictures beside it."""
    root = tmp_path_factory.mktemp("shades")
    draw = np.random.default_rng(0)
    for label, level in (("shoe", 40), ("boot", 200)):
        (root / "pictures" / label).mkdir(parents=True)
        for number in range(12):
            values = draw.integers(level - 40, level + 40, (4, 4)).astype(np.uint8)
            Image.fromarray(values).save(root / "pictures" / label / f"{number:02}.png")
    (root / "shades.yaml").write_text(CONFIG.format(root=root / "pictures"))
    for steps in (20, 40):
        asked = [f"run.dir={root / 'run'}", f"stop.budget.steps={steps}"]
        (end,) = train_on_ranks(1, root / "shades.yaml", asked)
        assert end.exit_code == 0, end.stderr
    return root


def read(path: Path) -> pd.DataFrame:
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    if path.suffix == ".jsonl":
        return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
    table: pd.DataFrame = readers[path.suffix](path)
    return table


@pytest.mark.parametrize("suffix", predict.SUFFIXES)
def test_files_classes_and_the_truth_by_their_names(
    shades: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"found{suffix}"
    done = command("predict", shades / "run", "--out", out, "--allow", f"{shades}/")
    assert done.exit_code == 0, done.stderr
    assert "24 predictions" in done.stdout
    table = read(out)
    assert list(table.columns) == [
        "sample",
        "path",
        "label",
        "predicted",
        "probability_boot",
        "probability_shoe",
    ]
    assert [Path(one).parent.name for one in table["path"]] == table["label"].tolist()
    assert (table["predicted"] == table["label"]).mean() > 0.9
    likelier = table[["probability_boot", "probability_shoe"]].idxmax(axis=1)
    assert likelier.str.removeprefix("probability_").tolist() == table["predicted"].tolist()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_field_that_has_the_name_of_a_column_is_kept(shades: Path, tmp_path: Path) -> None:
    (tmp_path / "odd").symlink_to(shades / "pictures" / "shoe")
    source = f"{{_target_: harness.sources.images.Images, files: '{tmp_path}/odd/{{sample}}.png'}}"
    out = tmp_path / "found.csv"
    done = command("predict", shades / "run", "--out", out, "--source", source)
    assert done.exit_code == 0, done.stderr
    table = read(out)
    assert table["sample"].tolist() == table["known_sample"].tolist() == list(range(12))


def test_pictures_without_labels(shades: Path, tmp_path: Path) -> None:
    """The run knows the names; the new files need none."""
    source = f"{{_target_: harness.sources.images.Images, files: '{shades}/pictures/boot/*.png'}}"
    out = tmp_path / "found.csv"
    done = command("predict", shades / "run", "--out", out, "--source", source)
    assert done.exit_code == 0, done.stderr
    table = read(out)
    assert "label" not in table
    assert (table["predicted"] == "boot").mean() > 0.9
    asked = ["--out", tmp_path / "same.csv", "--files", f"{shades}/pictures/boot/*.png"]
    done = command("predict", shades / "run", *asked)
    assert done.exit_code == 0, done.stderr
    pd.testing.assert_frame_equal(read(tmp_path / "same.csv"), table)
    done = command("predict", shades / "run", *asked, "--source", source)
    assert "two kinds of new samples. Give one of them." in done.stderr


@pytest.mark.parametrize("name", ["found.xlsx", "found", "nowhere/found.csv"])
def test_what_cannot_be_written_is_refused_before_anything(tmp_path: Path, name: str) -> None:
    done = command("predict", tmp_path / "no such run", "--out", tmp_path / name)
    assert done.exit_code == 2
    assert "--out: " in done.stderr


@pytest.mark.parametrize("suffix", predict.SUFFIXES)
def test_tables_are_joined_in_order(tmp_path: Path, suffix: str) -> None:
    whole = pd.DataFrame(
        {
            "sample": np.arange(10),
            "predicted": ["boot", "", "shoe,\n"] * 3 + ["é"],
            "probability": np.linspace(0, 1, 10).astype(np.float32),
            "values": [[number, 2.5] for number in range(10)],
            "note": [None] * 4 + ["seen"] * 6,  # of no type in the first table
        }
    )
    parts = [tmp_path / f"{number}{suffix}" for number in range(3)]
    for number, (part, rows) in enumerate(zip(parts, ([0, 4], [4, 9], [9, 10]), strict=True)):
        predict._WRITERS[suffix](whole[slice(*rows)], part, number)
    out = tmp_path / f"found{suffix}"
    predict.join_tables(parts, out)
    found = read(out)
    assert found["sample"].tolist() == list(range(10))
    assert found["predicted"].fillna("").tolist() == whole["predicted"].tolist()
    assert found["probability"].astype(np.float32).tolist() == whole["probability"].tolist()
    assert found["note"].isna().tolist() == [True] * 4 + [False] * 6


def numbers(path: Path, name: str) -> list[float]:
    """A column, read strictly; NaN where there is no number."""
    if path.suffix == ".parquet":
        return [float(one) for one in pd.read_parquet(path)[name]]
    with path.open(newline="") as file:
        if path.suffix == ".csv":
            return [float(row[name] or "nan") for row in csv.DictReader(file)]
        rows = [json.loads(line, parse_constant=pytest.fail) for line in file]
    return [math.nan if row[name] is None else row[name] for row in rows]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(), min_size=2, max_size=8))
@example([1e-20, 5e-324, -0.0, 0.1, math.nan, math.inf, 1.7976931348623157e308])
@example([1.234567890123456789e-15, 0.2617993877991494, 0.9884619112598676, 1e-11])
def test_every_bit_of_a_number_comes_back(values: list[float]) -> None:
    """Known: with 15 decimals, as pandas writes JSON at most, 1e-20 is 0; NaN is no JSON."""
    for kind, whole in ((np.float64, np.uint64), (np.float32, np.uint32)):
        with np.errstate(over="ignore"):
            wanted = np.array(values).astype(kind)
        table = pd.DataFrame({"one": wanted, "several": [[one, 1] for one in wanted.tolist()]})
        for suffix in predict.SUFFIXES:
            with tempfile.TemporaryDirectory() as folder:
                parts = [Path(folder, f"{number}{suffix}") for number in range(2)]
                for number, rows in enumerate((table[:1], table[1:])):
                    predict._WRITERS[suffix](rows, parts[number], number)
                out = Path(folder, f"found{suffix}")
                predict.join_tables(parts, out)
                found = np.array(numbers(out, "one")).astype(kind)
            if suffix == ".jsonl":
                wanted = np.where(np.isfinite(wanted), wanted, kind(math.nan))
            is_nan = np.isnan(wanted)
            np.testing.assert_array_equal(np.isnan(found), is_nan)
            np.testing.assert_array_equal(
                found[~is_nan].view(whole), wanted[~is_nan].view(whole), str(suffix)
            )


def test_what_json_does_not_know_is_written_as_text_or_numbers(tmp_path: Path) -> None:
    """A user's source may know more of its samples than texts."""
    day = pd.Timestamp("2024-05-01")
    known = [np.int64(3), np.array([1.5, np.nan]), (0.5, math.inf), day.date(), tmp_path]
    table = pd.DataFrame({"day": [day] * 5, "known": pd.Series(known, dtype=object)})
    predict._WRITERS[".jsonl"](table, tmp_path / "found.jsonl", 0)
    lines = (tmp_path / "found.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [row["known"] for row in rows] == [
        3,
        [1.5, None],
        [0.5, None],
        "2024-05-01",
        str(tmp_path),
    ]
    assert {row["day"] for row in rows} == {str(day)}


PRICES = """
run: {{name: prices, seed: 1}}
data:
  checks: {{duplicates: warn}}
  store: {{dir: "{root}/store"}}
  train: &split
    source:
      _target_: harness.sources.tables.Table
      files: "{root}/flats.csv"
      features: [rooms, area]
      columns: {{price: number}}
    treatments:
      - {{_target_: harness.treatments.Standardise, key: features}}
      - {{_target_: harness.treatments.Standardise, key: price}}
  val: *split
network: {{_target_: harness.networks.Mlp, dims: [2, 1]}}
task: {{_target_: harness.tasks.Regression, input: features, target: price}}
batch: {{size: 4096, micro_size: 512}}
optimizer: {{_target_: torch.optim.AdamW, lr: 0.3}}
stop: {{every: {{steps: 20}}, budget: {{steps: 20}}}}
"""
FLATS = 2 * ROWS + 1000  # three tables, the last one shorter


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns prices in euros, standardised; its table and its store beside it."""
    root = tmp_path_factory.mktemp("prices")
    draw = np.random.default_rng(0)
    rooms, area = draw.integers(1, 6, FLATS), draw.uniform(20, 200, FLATS)
    table = {"rooms": rooms, "area": area.round(1), "price": (rooms * 1e4 + area * 3e3).round()}
    pd.DataFrame(table).to_csv(root / "flats.csv", index=False)
    (root / "prices.yaml").write_text(PRICES.format(root=root))
    (end,) = train_on_ranks(1, root / "prices.yaml", [f"run.dir={root / 'run'}"])
    assert end.exit_code == 0, end.stderr
    return root


def test_several_processes_give_each_sample_once_in_order_and_in_its_own_unit(prices: Path) -> None:
    """Known: predictions under DDP come in another order and with the padded samples twice
    (pytorch-lightning 10618), and standardised targets stay so (skorch, darts).
    """
    for processes in (1, 2):
        out = prices / f"{processes}.parquet"
        said = predict.write_predictions(prices / "run", "val", "", out, [f"{prices}/"], processes)
        assert f"{FLATS:,} predictions" in said
    found = read(prices / "1.parquet")
    pd.testing.assert_frame_equal(found, read(prices / "2.parquet"))
    flats = pd.read_csv(prices / "flats.csv")
    assert found["sample"].tolist() == list(range(FLATS))
    columns = ["rooms", "area", "price"]
    pd.testing.assert_frame_equal(found[columns], flats[columns], check_dtype=False)
    # The line that the network is, in euros, by the rules of standardisation
    weights = load_trained(prices / "run", [f"{prices}/"]).network.state_dict()
    weight, bias = (weights[name].double().numpy() for name in sorted(weights, reverse=True))
    inputs, target = flats[["rooms", "area"]], flats["price"]
    standardised = ((inputs - inputs.mean()) / inputs.std(ddof=0)).to_numpy() @ weight.T + bias
    euros = standardised[:, 0] * target.std(ddof=0) + target.mean()
    np.testing.assert_allclose(found["predicted"], euros, rtol=1e-4)


def test_new_flats_have_no_price_yet(prices: Path, tmp_path: Path) -> None:
    flats = pd.read_csv(prices / "flats.csv")[:100].drop(columns="price")
    flats.to_csv(tmp_path / "new.csv", index=False)
    source = (
        f"{{_target_: harness.sources.tables.Table, files: {tmp_path}/new.csv, "
        "features: [rooms, area]}"
    )
    asked = ["--source", source, "--out", tmp_path / "new.csv.parquet", "--allow", f"{prices}/"]
    done = command("predict", prices / "run", *asked)
    assert done.exit_code == 0, done.stderr
    found = read(tmp_path / "new.csv.parquet")
    trained = load_trained(prices / "run", [f"{prices}/"])
    known = PredictionTables(trained, open_split(trained, "val")).table(0)[:100]
    np.testing.assert_allclose(found["predicted"], known["predicted"], rtol=1e-5)


def test_a_command_that_was_killed_is_resumed(
    prices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    table = PredictionTables.table

    def die_at_the_third(self: PredictionTables, number: int) -> pd.DataFrame:
        if number == 2 and not made.count(2):
            made.append(2)
            raise KeyboardInterrupt
        made.append(number)
        return table(self, number)

    monkeypatch.setattr(PredictionTables, "table", die_at_the_third)
    out = tmp_path / "found.csv"
    out.write_text("old")
    asked = (prices / "run", "val", "", out, [f"{prices}/"])
    with pytest.raises(KeyboardInterrupt):
        predict.write_predictions(*asked)
    assert out.read_text() == "old"
    said = predict.write_predictions(*asked)
    assert "2 of 3 tables were there" in said
    assert made == [0, 1, 2, 2]
    assert read(out)["sample"].tolist() == list(range(FLATS))
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


KILLED = """
import os, signal, sys, time
from multiprocessing import get_context
from harness.commands.predict import _leave_with_parent

def share(sender):
    _leave_with_parent()
    sender.send(True)
    time.sleep(60)

if __name__ == "__main__":
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=share, args=(sender,))
    process.start()
    receiver.recv()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_process_of_a_killed_command_writes_on(tmp_path: Path) -> None:
    """The workers of a ProcessPoolExecutor outlive it, and finish what they were given."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    # Its output ends when the last process has ended that holds it
    done = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=50)
    assert done.returncode == -signal.SIGKILL


def test_two_commands_predict_into_one_file_at_once(
    shades: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables of one command are never those of another; the last one's file stays."""
    out, allow = tmp_path / "found.csv", [f"{shades}/"]
    source = "{_target_: harness.sources.images.Images, files: '%s/*.png'}"
    boots, shoes = (source % (shades / "pictures" / name) for name in ("boot", "shoe"))
    predict.write_predictions(shades / "run", "val", boots, tmp_path / "alone.csv", allow)
    table, inner = PredictionTables.table, []

    def meanwhile(self: PredictionTables, number: int) -> pd.DataFrame:
        if not inner:
            inner.append("begun")
            inner.append(predict.write_predictions(shades / "run", "val", shoes, out, allow))
            (tmp_path / ".found.csv.0.parts").mkdir()
        return table(self, number)

    monkeypatch.setattr(PredictionTables, "table", meanwhile)
    said = predict.write_predictions(shades / "run", "val", boots, out, allow)
    assert "earlier" not in said
    assert "found.csv.0.parts: another command's, which is running, or was killed" in said
    assert ".parts: another command's" in inner[1]
    assert out.read_text() == (tmp_path / "alone.csv").read_text()


def test_the_store_is_used_where_it_is_there(prices: Path) -> None:
    trained = load_trained(prices / "run", [f"{prices}/"])
    assert isinstance(open_split(trained, "val").source, EntrySource)
    elsewhere = load_trained(prices / "run", [f"{prices}/flats.csv/"])
    assert not isinstance(open_split(elsewhere, "val").source, EntrySource)


@pytest.mark.parametrize(("allowed", "readings"), [("", 1), ("flats.csv", 2)])
def test_several_processes_read_from_the_store(
    prices: Path, tmp_path: Path, allowed: str, readings: int
) -> None:
    """Where they may, they read nothing again but the numbers as the file has them."""
    path, out = prices / "run", tmp_path / "found.csv"
    (tmp_path / "shelf").mkdir()
    request = predict.PredictionRequest(
        path, "val", "", out, (f"{prices}/{allowed}",), tmp_path / "shelf", several=True
    )
    request.open()
    assert len(list((tmp_path / "shelf").iterdir())) == readings


def test_the_report_names_the_classes(shades: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    original = report.figure_svg
    monkeypatch.setattr(
        report, "figure_svg", lambda figure: drawn.append(figure) or original(figure)
    )
    report.write_report(shades / "run")
    [matrix] = [
        axes for figure in drawn for axes in figure.axes if axes.get_title() == "val/confusion"
    ]
    for labels in (matrix.get_xticklabels(), matrix.get_yticklabels()):
        assert [one.get_text() for one in labels] == ["boot", "shoe"]


def test_numbers_are_those_of_the_file(prices: Path, tmp_path: Path) -> None:
    """By pandas, for all columns that the run reads, whole and broken, large and missing."""
    draw = np.random.default_rng(1)
    flats = pd.DataFrame(
        {
            "name": [f"flat {number}" for number in range(300)],
            "rooms": draw.integers(1, 6, 300),
            "area": draw.uniform(20, 200, 300),  # 17 digits, of which float32 has 7
        }
    )
    flats.to_csv(tmp_path / "new.csv", index=False)
    for suffix in predict.SUFFIXES:
        out = tmp_path / f"found{suffix}"
        asked = ["--files", tmp_path / "new.csv", "--out", out, "--allow", f"{prices}/"]
        done = command("predict", prices / "run", *asked)
        assert done.exit_code == 0, done.stderr
        found = read(out)
        assert list(found.columns) == ["sample", "path", "row", "rooms", "area", "predicted"]
        assert found["row"].tolist() == list(range(2, 302))
        pd.testing.assert_frame_equal(found[["rooms", "area"]], flats[["rooms", "area"]])
