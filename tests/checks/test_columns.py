"""Checks of tables: what `Join` brings counts, text alone is enough, and words fit columns."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.errors import ConfigError
from harness.sources.tables import Table
from tests.pool import command

CASES = Path(__file__).parents[3] / "shared" / "cases" / "data"
CONFIG = """
run: {{name: columns, dir: {folder}/run, seed: 1}}
data:
  train:
    source: {{_target_: harness.sources.tables.Table, files: {folder}/train.csv, {table}}}
    treatments: &treatments {treatments}
  val:
    source: {{_target_: harness.sources.tables.Table, files: {folder}/val.csv, {table}}}
    treatments: *treatments
network: {{_target_: harness.networks.Mlp, dims: [{width}, 4, 2]}}
task: {{_target_: harness.tasks.Classification, input: {input}, target: y}}
batch: {{size: 4, micro_size: 4}}
optimizer: {{_target_: torch.optim.SGD, lr: 0.1}}
stop: {{budget: {{steps: 1}}}}
"""
JOIN = (
    "[{_target_: harness.treatments.Encode, key: colour, categories: [blue, red]}, "
    "{_target_: harness.treatments.Join, keys: [%scolour], into: %s}]"
)


def checked(path: Path) -> dict[str, Any]:
    ended = command("data", "check", str(path), "--json")
    assert ended.exit_code in (0, 2), ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def found_in(folder: Path, check: str) -> list[dict[str, Any]]:
    return [one for one in checked(folder / "c.yaml")["findings"] if one["check"] == check]


def write(folder: Path, table: str, treatments: str, name: str, width: int) -> None:
    settings = {"table": table, "treatments": treatments, "input": name, "width": width}
    (folder / "c.yaml").write_text(CONFIG.format(folder=folder, **settings))


@pytest.mark.parametrize(("into", "keys"), [("features", "features, "), ("x", "features, ")])
def test_rows_that_differ_in_a_column_that_join_brings_are_no_duplicates(
    tmp_path: Path, into: str, keys: str
) -> None:
    rows = {"train": [(1, "red", 0), (2, "blue", 1)], "val": [(1, "blue", 0), (2, "red", 1)]}
    for split, of in rows.items():
        lines = "".join(f"{a},{colour},{y}\n" for a, colour, y in of)
        (tmp_path / f"{split}.csv").write_text(f"a,colour,y\n{lines}")
    table = "features: [a], columns: {colour: text, y: integer}"
    write(tmp_path, table, JOIN % (keys, into), into, 2)
    assert found_in(tmp_path, "duplicates") == []
    (tmp_path / "val.csv").write_text("a,colour,y\n1,red,0\n2,red,1\n")
    (duplicates,) = found_in(tmp_path, "duplicates")
    assert duplicates["count"] == 1
    ended = command("train", str(tmp_path / "c.yaml"), "data.checks.duplicates=warn")
    assert ended.exit_code == 0, ended.stderr


def test_a_table_of_text_alone_is_checked_and_trains(tmp_path: Path) -> None:
    for split, first in (("train", "red"), ("val", "blue")):
        (tmp_path / f"{split}.csv").write_text(f"colour,y\n{first},a\nred,b\n" * 1)
    treatments = (JOIN % ("", "x")).removesuffix("]") + (
        ", {_target_: harness.treatments.Encode, key: y}]"
    )
    for features in ("", "features: [], "):
        write(tmp_path, f"{features}columns: {{colour: text, y: text}}", treatments, "x", 1)
        (duplicates,) = found_in(tmp_path, "duplicates")
        assert duplicates["count"] == 1
        run = tmp_path / ("named" if features else "unnamed")
        asked = ("data.checks.duplicates=warn", f"run.dir={run}")
        ended = command("train", str(tmp_path / "c.yaml"), *asked)
        assert ended.exit_code == 0, ended.stderr
    assert set(Table(str(tmp_path / "val.csv"), columns={"colour": "text", "y": "text"})[0]) == {
        "colour",
        "y",
    }
    with pytest.raises(ConfigError, match=r"^features, columns: no column is read\. Name at least"):
        Table(str(tmp_path / "val.csv"), features=[])


def test_capped_ages_are_no_matter_of_devices(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        ages = np.minimum(draw.uniform(0, 120, 400), 90)
        lines = "".join(
            f"{age},1.5,{draw.normal()},{index % 2}\n" for index, age in enumerate(ages)
        )
        (tmp_path / f"{split}.csv").write_text(f"age,unit,z,y\n{lines}")
    write(tmp_path, "columns: {y: integer}", "[]", "features", 3)
    found = checked(tmp_path / "c.yaml")["findings"]
    texts = " ".join(one["message"] + " ".join(one["examples"]) for one in found)
    assert {one["check"] for one in found} == {"clipped", "constant"}
    assert "Were they capped, or missing ones filled in with it?" in texts
    assert "column 0: " in texts
    assert "columns of 'features' are constant: 1." in texts
    assert not any(word in texts for word in ("device", "sensor", "overdriven", "channel"))


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
def test_conflicts_among_mushrooms_are_those_that_pandas_counts() -> None:
    folder = CASES / "all_text_mushrooms"
    inputs = ["cap.shape", "cap.surface", "cap.color", "bruises", "odor"]
    frame = pd.read_csv(folder / "mushrooms.csv", keep_default_na=False)
    conflicts = (frame.groupby(inputs)["class"].nunique() > 1).sum()
    repeated = len(frame) - len(frame.drop_duplicates(inputs))
    found = checked(folder / "config.yaml")
    (finding,) = [one for one in found["findings"] if one["check"] == "conflicts"]
    assert finding["count"] == conflicts > 0
    assert found["notes"] == [f"data.train: {repeated:,} samples repeat the content of another one"]


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
def test_a_table_of_messages_passes_its_checks() -> None:
    found = checked(CASES / "text_only_table" / "config.yaml")
    assert found["findings"] == []
