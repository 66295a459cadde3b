"""Labels that are probably wrong: found where they were planted."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from harness.commands.suspects import suspect_rows
from harness.errors import ConfigError, DataError
from harness.sources.digits import Digits
from harness.sources.folds import Fold
from tests.commands.suspect_parts import WrongDigits
from tests.pool import command, train_on_ranks

pytest.importorskip("cleanlab")
CONFIG = Path(__file__).parent / "suspects.yaml"
ALLOW = ("--allow", "tests.commands.suspect_parts")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("suspects") / "run"
    (end,) = train_on_ranks(1, CONFIG, [f"run.dir={directory}"])
    assert end.exit_code == 0, end.stderr
    return directory


def shares(rows: NDArray[np.int64], is_wrong: NDArray[np.bool_]) -> tuple[float, float]:
    """Precision and recall."""
    right = is_wrong[rows].sum()
    return right / len(rows), right / is_wrong.sum()


def test_wrong_labels_are_found_by_a_network_that_learned_from_wrong_ones(run: Path) -> None:
    ended = command("data", "suspects", str(run), *ALLOW)
    assert ended.exit_code == 0, ended.stderr
    table = pd.read_csv(run / "suspects_val.csv")
    source = WrongDigits(["val", "test"], 2)
    precision, recall = shares(table["sample"].to_numpy(), source.is_wrong)
    assert min(precision, recall) >= 0.9
    assert f"{len(table)} of 712 labels of val" in ended.stdout
    assert table["label"].tolist() == [source[row]["label"] for row in table["sample"]]
    assert (table["label"] != table["suggested"]).all()
    assert table["probability"].is_monotonic_increasing
    digits = [one for split in ("val", "test") for one in Digits(split).known()["label"]]  # type: ignore[arg-type] # one of its words
    suggested = [
        str(one) == digits[row]
        for row, one in zip(table["sample"], table["suggested"], strict=True)
    ]
    assert np.mean(suggested) > 0.9
    page = (run / "suspects_val.html").read_text()
    assert page.count("data:image/png") == 1
    assert f"<td>{table['sample'][0]}<td>" in page


@pytest.mark.torture
def test_wrong_labels_of_the_training_split_are_found_by_networks_that_did_not_see_them(
    run: Path, tmp_path: Path
) -> None:
    found = []
    for folds in ((), ("--folds", "3")):
        out = tmp_path / "found.csv"
        asked = ("--split", "train", *folds, "--out", str(out))
        ended = command("data", "suspects", str(run), *asked, *ALLOW)
        assert ended.exit_code == 0, ended.stderr
        rows = pd.read_csv(out)["sample"].to_numpy()
        found.append(shares(rows, WrongDigits(["train"], 1).is_wrong))
        assert ("--folds 5 avoids that" in ended.stdout) == (not folds)
    assert found[0][1] < 0.5  # they were learned by heart
    assert min(found[1]) >= 0.9


def test_folds_part_a_source() -> None:
    source = Digits("val")
    parts = [Fold(source, fold, 4, held_out=True).rows for fold in range(4)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(357))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    others = Fold(source, 2, 4)
    assert sorted([*others.rows, *parts[2]]) == list(range(357))
    assert others[5]["label"] == source[int(others.rows[5])]["label"]
    for fold, folds in ((4, 4), (-1, 3), (0, 1), (0, 400)):
        with pytest.raises(ConfigError, match="give at least two folds"):
            Fold(source, fold, folds)


def test_mistakes_are_one_message(run: Path, tmp_path: Path) -> None:
    checkpoint = next((run / "checkpoints").glob("step-*"))
    for asked, message in (
        ((run, "--folds", "3"), "--folds: data.val is not trained on"),
        ((run, "--out", tmp_path / "x.txt"), "give a name that ends in .csv"),
        ((run, "--out", tmp_path / "no" / "x.csv"), "there is no directory"),
        ((checkpoint,), "is a checkpoint, which is not changed. Give a file"),
        ((run, "--split", "test"), "has no data.test"),
    ):
        ended = command("data", "suspects", *map(str, asked), *ALLOW)
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert message in ended.stderr


def test_probabilities_of_classes_that_no_label_has_do_no_harm() -> None:
    """cleanlab/cleanlab, issues 288 and 613: a class without samples; numbers without labels."""
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 2, 3], 100)
    probabilities = draw.dirichlet(np.full(6, 0.2), 300)
    probabilities[np.arange(300), labels] += 4
    probabilities /= probabilities.sum(1, keepdims=True)
    labels[[5, 150, 290]] = [3, 0, 2]
    labels[[7, 8]] = -1
    assert sorted(suspect_rows(labels, probabilities)) == [5, 150, 290]
    with pytest.raises(DataError, match="all labels are the same"):
        suspect_rows(np.zeros(300, np.int64), probabilities)
    probabilities[9] = np.nan
    with pytest.raises(DataError, match="probabilities that are NaN"):
        suspect_rows(labels, probabilities)
    clean = np.eye(3)[np.arange(60) % 3] * 0.9 + 0.03
    assert len(suspect_rows(np.arange(60) % 3, clean)) == 0
