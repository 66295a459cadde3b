"""`fermarsi predict` writes a table that one can use: names of files and classes, what is true."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.commands import predict
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


@pytest.mark.parametrize("name", ["found.xlsx", "found", "nowhere/found.csv"])
def test_what_cannot_be_written_is_refused_before_anything(tmp_path: Path, name: str) -> None:
    done = command("predict", tmp_path / "no such run", "--out", tmp_path / name)
    assert done.exit_code == 2
    assert "--out: " in done.stderr


@pytest.mark.parametrize("suffix", predict.SUFFIXES)
def test_tables_are_joined_as_they_come(tmp_path: Path, suffix: str) -> None:
    whole = pd.DataFrame(
        {
            "sample": np.arange(10),
            "predicted": ["boot", "", "shoe,\n"] * 3 + ["é"],
            "probability": np.linspace(0, 1, 10).astype(np.float32),
            "values": [[number, 2.5] for number in range(10)],
        }
    )
    out = tmp_path / f"found{suffix}"
    assert predict.write_tables(iter([whole[:4], whole[4:9], whole[9:]]), out) == 10
    found = read(out)
    assert found["sample"].tolist() == list(range(10))
    assert found["predicted"].fillna("").tolist() == whole["predicted"].tolist()
    assert found["probability"].astype(np.float32).tolist() == whole["probability"].tolist()


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "found.csv"
    out.write_text("old")

    def tables() -> Iterator[pd.DataFrame]:
        yield pd.DataFrame({"sample": [0]})
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        predict.write_tables(tables(), out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "old"
