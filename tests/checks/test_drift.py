"""Features that are distributed differently in two splits, and differences that mean nothing."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from harness.checks.check import check_data
from harness.checks.drift import Features, compare_numbers, compare_words
from harness.checks.report import Finding
from harness.data.split import Split
from tests.checks.planted import Rows, config_of

DRAW = np.random.default_rng(0)


def drift(directory: Path, splits: dict[str, Any], **settings: Any) -> list[Finding]:
    quiet = ("constant", "clipped", "missing_classes", "imbalance", "near_duplicates", "not_finite")
    config = config_of(directory, list(splits), **dict.fromkeys(quiet, "off") | settings)
    sources = {
        name: Split(Rows(given) if isinstance(given, dict) else given, (), "", lambda batch: None)
        for name, given in splits.items()
    }
    report = check_data(config.data, config.task, {}, sources, thorough=True)
    return [one for one in report.findings if one.check == "drift"]


def made(count: int, width: int = 5, **columns: Any) -> dict[str, Any]:
    return {
        "x": DRAW.normal(size=(count, width)).astype(np.float32),
        "label": DRAW.integers(0, 3, count),
        **columns,
    }


def test_the_figures_are_those_of_scipy() -> None:
    one, other = DRAW.normal(size=400), DRAW.normal(0.3, 1.2, size=300)
    effective = 400 * 300 / 700
    effect, p = compare_numbers(one, other, effective)
    expected = stats.ks_2samp(one, other, method="asymp")
    assert effect == expected.statistic
    assert np.isclose(np.log(p), np.log(expected.pvalue), rtol=0.1)
    counts = {"a": 50, "b": 60, "c": 90}, {"a": 80, "b": 30, "c": 40}
    effect, p = compare_words(*counts, 200 * 150 / 350)
    whole = stats.chi2_contingency([[50, 60, 90], [80, 30, 40]], correction=False).pvalue
    assert np.isclose(p, whole, rtol=1e-9)
    assert np.isclose(effect, 80 / 150 - 50 / 200)
    # With a tenth of the samples that are independent
    _, tenth = compare_words(*counts, 20 * 15 / 35)
    small = stats.chi2_contingency([[5, 6, 9], [8, 3, 4]], correction=False).pvalue
    assert np.isclose(tenth, small)


def test_features_of_half_precision_images_are_finite() -> None:
    features = Features(4, [])
    features.add({"x": np.full((4, 1, 100, 100), 300, np.float16)})
    assert {name: of.tolist() for name, of in features.numbers().items()} == {
        "mean of x": [300] * 4,
        "deviation of x": [0] * 4,
    }


def test_a_feature_that_moved_a_class_that_grew_and_a_new_word_are_found(tmp_path: Path) -> None:
    colours = np.array(["red", "green", "blue"])
    train = made(900, colour=colours[DRAW.integers(0, 2, 900)].tolist())
    val = made(600, colour=colours[DRAW.integers(0, 3, 600)].tolist())
    val["x"][:, 3] += 1.0
    val["label"] = np.where(DRAW.random(600) < 0.5, 2, val["label"])
    (finding,) = drift(tmp_path, {"train": train, "val": val})
    assert (finding.level, finding.count, finding.splits) == ("warn", 3, ("train", "val"))
    names = {example.partition(":")[0]: example for example in finding.examples}
    assert set(names) == {"x[3]", "label", "colour"}
    assert "x[3]: shares differ by up to 0.4" in names["x[3]"]
    assert not drift(tmp_path, {"train": train, "val": val}, drift="off")


def test_splits_without_drift_are_hardly_ever_called_different(tmp_path: Path) -> None:
    found = [drift(tmp_path, {"train": made(60, 60), "val": made(40, 60)}) for _ in range(12)]
    assert sum(map(bool, found)) <= 1


def test_a_difference_without_size_is_none_however_many_samples_there_are(tmp_path: Path) -> None:
    """evidentlyai/evidently, issue 50."""
    train, val = made(20_000), made(20_000)
    val["x"] += 0.1
    assert compare_numbers(train["x"][:, 0], val["x"][:, 0], 10_000)[1] < 1e-9
    assert not drift(tmp_path, {"train": train, "val": val})
    (finding,) = drift(tmp_path, {"train": train, "val": val}, max_drift=0.02)
    assert finding.count == 5


def test_a_handful_of_samples_of_one_value_says_nothing_of_others(tmp_path: Path) -> None:
    """evidentlyai/evidently, issue 509: eight rows against all of iris; sizes decide."""
    train, val = made(150, 1), made(8, 1)
    assert not drift(tmp_path, {"train": train, "val": val})
    val["x"] = np.tile(np.float32([9.4, 9.6]), 4)[:, None]
    (finding,) = drift(tmp_path, {"train": train, "val": val})
    assert finding.count == 1


def test_words_that_are_all_rare_such_as_identifiers_are_no_drift(tmp_path: Path) -> None:
    """deepchecks/deepchecks, issue 1816."""
    splits = {name: made(400, id=[f"{name}{at}" for at in range(400)]) for name in ("train", "val")}
    assert not drift(tmp_path, splits)


def test_missing_numbers_are_a_feature_of_their_own(tmp_path: Path) -> None:
    """deepchecks/deepchecks, issues 1842 and 2251."""
    train, val = made(500), made(500)
    val["x"][:200, 2] = np.nan
    (finding,) = drift(tmp_path, {"train": train, "val": val})
    assert [example.partition(":")[0] for example in finding.examples] == ["missing x[2]"]


def test_brighter_images_are_found(tmp_path: Path) -> None:
    train, val = (DRAW.integers(0, 200, (300, 3, 8, 8)).astype(np.uint8) for _ in range(2))
    val[:, 1] += 40
    labels = {"label": np.arange(300) % 3}
    (finding,) = drift(tmp_path, {"train": {"x": train, **labels}, "val": {"x": val, **labels}})
    assert [example.partition(":")[0] for example in finding.examples] == ["mean of x[1]"]


def test_samples_of_few_groups_count_as_few(tmp_path: Path) -> None:
    """Windows of a subject are alike, and two sets of three subjects always differ."""
    splits = {}
    for name, subjects in (("train", 4), ("val", 3)):
        subject = np.repeat(np.arange(subjects), 200)
        columns = made(len(subject))
        columns["x"] += DRAW.normal(0, 3, (subjects, 5))[subject].astype(np.float32)
        splits[name] = Rows(columns, {"subject": [f"{name}{one}" for one in subject]})
    assert drift(tmp_path, splits)
    assert not drift(tmp_path, splits, groups=["subject"])
