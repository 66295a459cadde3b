"""`fermarsi data check` on files as they lie on disks: pictures, tables, series."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.config.document import to_yaml
from tests.checks.planted import TASK
from tests.pool import command

ROOT = Path(__file__).parents[2]
Image = pytest.importorskip("PIL.Image")
NUMBERS = np.random.default_rng(5)


def config(directory: Path, splits: dict[str, dict[str, Any]], **data: Any) -> Path:
    key = {"Images": "image", "Table": "features", "Series": "series"}[
        str(splits["train"]["_target_"]).rpartition(".")[2]
    ]
    tree = {
        "data": {**{name: {"source": source} for name, source in splits.items()}, **data},
        "network": {"_target_": "harness.networks.Mlp", "dims": [64, 2]},
        "task": TASK | {"input": key},
        "batch": {"size": 4, "micro_size": 2},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
        "stop": {
            "every": {"epochs": 1},
            "budget": {"epochs": 1},
            "targets": {"val/accuracy": {"at_least": 0.9}},
        },
    }
    (directory / "planted.yaml").write_text(to_yaml(tree))
    return directory / "planted.yaml"


def pictures(directory: Path) -> dict[str, dict[str, Any]]:
    """Two classes, four people, six pictures of each; two of the people are for validation."""
    for person, label in ((person, label) for person in "abcd" for label in ("cat", "dog")):
        folder = directory / label / person
        folder.mkdir(parents=True)
        for number in range(6):
            Image.fromarray(NUMBERS.integers(0, 200, (8, 8)).astype(np.uint8)).save(
                folder / f"{number}.png"
            )
    source = {
        "_target_": "harness.sources.images.Images",
        "files": f"{directory}/{{label}}/{{person}}/*.png",
    }
    rule = {"_target_": "harness.sources.split.ByValue", "column": "person", "val": ["c", "d"]}
    return {part: {**source, "part": part, "split": rule} for part in ("train", "val")}


def test_clean_pictures_pass_and_planted_leaks_among_them_are_found_with_their_files(
    tmp_path: Path,
) -> None:
    path = config(tmp_path, pictures(tmp_path / "pets"), checks={"groups": ["person"]})
    clean = command("data", "check", path, "--json")
    assert (clean.exit_code, json.loads(clean.stdout)["findings"]) == (0, [])
    (tmp_path / "pets" / "dog" / "c" / "0.png").write_bytes(
        (tmp_path / "pets" / "dog" / "a" / "3.png").read_bytes()
    )
    found = command(
        "data",
        "check",
        path,
        "--html",
        tmp_path / "page.html",
        "data.val.source.split.val=[c]",
        "data.train.source.split.val=[c]",
    )
    assert found.exit_code == 2
    told = found.stdout
    assert (
        "error: duplicates: data.val: 1 of 12 samples (8.3%) have the same content as samples in "
        "data.train" in told
    )
    assert (
        f"    data.val 6 ({tmp_path}/pets/dog/c/0.png) = data.train 21 "
        f"({tmp_path}/pets/dog/a/3.png)\n" in told
    )
    assert "target val/accuracy at least 0.9; always predicting class 0 (cat) gives 0.5" in told
    assert (tmp_path / "page.html").read_text().count("data:image/png") == 2
    shared = command("data", "check", path, "data.val.source.split.val=[b, c]", "--json")
    assert shared.exit_code == 2
    assert [
        (one["check"], one["examples"])
        for one in json.loads(shared.stdout)["findings"]
        if one["check"] == "shared_groups"
    ] == [("shared_groups", ["'b': 12 and 12 samples"])]


def table(directory: Path, name: str, seed: int) -> dict[str, Any]:
    rows = np.random.default_rng(seed).normal(size=(30, 3)).round(6)
    lines = [f"{a},{b},{c},{index % 2}" for index, (a, b, c) in enumerate(rows.tolist())]
    (directory / f"{name}.csv").write_text("\n".join(["a,b,c,label", *lines]) + "\n")
    return {
        "_target_": "harness.sources.tables.Table",
        "files": f"{directory}/{name}.csv",
        "columns": {"label": "integer"},
    }


def test_clean_tables_pass_and_a_planted_row_is_found(tmp_path: Path) -> None:
    path = config(
        tmp_path, {"train": table(tmp_path, "train", 1), "val": table(tmp_path, "val", 2)}
    )
    clean = command("data", "check", path)
    assert (clean.exit_code, clean.stdout.splitlines()[-1]) == (0, "no problems found")
    lines = (tmp_path / "train.csv").read_text().splitlines()
    # Row 2 and all others of class 0 stay what they are
    lines[1::2] = [line[:-1] + "0" for line in lines[1::2]]
    with (tmp_path / "val.csv").open("a") as file:
        file.write(f"{lines[1]}\n")
    found = json.loads(command("data", "check", path, "--json").stdout)
    assert [(one["check"], one["level"], one["count"]) for one in found["findings"]] == [
        ("duplicates", "error", 1)
    ]
    warned = command("data", "check", path, "data.checks.duplicates=warn")
    assert warned.exit_code == 0
    assert "warn" in warned.stdout


def test_windows_of_one_recording_in_two_splits_are_found(tmp_path: Path) -> None:
    for label in ("rest", "walk"):
        for person in "abc":
            lines = [
                f"{value:.6f},{other:.6f}"
                for value, other in NUMBERS.normal(size=(100, 2)).tolist()
            ]
            (tmp_path / f"{label}_{person}.csv").write_text("\n".join(["x,y", *lines]) + "\n")
    source = {
        "_target_": "harness.sources.series.Series",
        "files": f"{tmp_path}/{{label}}_{{person}}.csv",
        "channels": ["x", "y"],
        "length": 20,
    }
    rule = {"_target_": "harness.sources.split.ByValue", "column": "person", "val": ["c"]}
    splits = {
        part: {**source, "stride": 20, "part": part, "split": rule} for part in ("train", "val")
    }
    clean = json.loads(command("data", "check", config(tmp_path, splits), "--json").stdout)
    assert clean["findings"] == []
    planted = {
        **splits,
        "val": {**source, "stride": 33, "part": "val", "split": rule | {"val": ["b", "c"]}},
    }
    end = command("data", "check", config(tmp_path, planted), "--json")
    found = {one["check"]: one for one in json.loads(end.stdout)["findings"]}
    assert end.exit_code == 2
    assert {check: one["count"] for check, one in found.items() if one["level"] == "error"} == {
        "shared_groups": 2,
        "overlaps": 6,
        "duplicates": 2,
    }
    assert f"{tmp_path}/rest_b.csv [33, 53)) and data.train" in found["overlaps"]["examples"][1]


def test_the_digits_pass_in_silence() -> None:
    end = command("data", "check", ROOT / "configs" / "digits.yaml", "--json")
    assert (end.exit_code, json.loads(end.stdout)["findings"]) == (0, [])


def test_a_group_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    end = command("data", "check", ROOT / "configs" / "digits.yaml", "data.checks.groups=[writer]")
    assert (end.exit_code, end.stdout) == (2, "")
    assert (
        "ConfigError: data.checks: data.train: no column 'writer' is known; the known columns "
        "are label, image." in end.stderr
    )
    assert "Traceback" not in end.stderr
