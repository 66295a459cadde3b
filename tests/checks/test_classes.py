"""Classes that are missing, that are of very different sizes, and accuracies that are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checks.planted import TASK, Rows, clean, looked_at, only


def counted(seed: int, *counts: int) -> dict[str, Any]:
    """So many samples of class 0, 1, 2 ..."""
    return {"x": clean(seed, sum(counts))["x"], "label": np.repeat(np.arange(len(counts)), counts)}


def test_a_class_that_training_lacks_is_an_error_and_one_that_another_split_lacks_a_warning(
    tmp_path: Path,
) -> None:
    report = looked_at(tmp_path, {"train": counted(1, 30, 0, 30), "val": counted(2, 10, 10, 0)})
    error, warning = report.findings
    assert (error.check, error.level, error.splits, error.count) == (
        "missing_classes",
        "error",
        ("train",),
        1,
    )
    assert (
        "data.train: no samples of 1 of 3 classes in 'label': 1. Present in data.val."
        in error.message
    )
    assert (warning.check, warning.level, warning.splits) == ("missing_classes", "warn", ("val",))
    assert not looked_at(
        tmp_path,
        {"train": counted(1, 30, 0, 30), "val": counted(2, 10, 10, 0)},
        missing_classes="off",
    ).findings


def test_imbalance_is_told_with_what_always_saying_the_largest_class_gives(tmp_path: Path) -> None:
    splits = {"train": counted(1, 5, 95), "val": counted(2, 1, 19)}
    finding = only(looked_at(tmp_path, splits))
    assert (finding.check, finding.level) == ("imbalance", "warn")
    assert (
        "class 1 of 'label' has 95 samples, class 0 5: always predicting the former gives an "
        "accuracy of 0.95" in finding.message
    )
    assert "Set data.train.balance: label or task.class_weights: balanced" in finding.message
    assert not looked_at(tmp_path, splits, max_imbalance=19).findings


def test_a_target_that_saying_the_largest_class_reaches_is_told_even_if_it_is_remedied(
    tmp_path: Path,
) -> None:
    splits = {"train": counted(1, 5, 95), "val": counted(2, 1, 19)}
    targets = {
        "train/accuracy": {"at_least": 0.96},
        "val/accuracy": {"at_least": 0.95},
        "val/balanced_accuracy": {"at_least": 0.9},
    }
    report = looked_at(tmp_path, splits, targets=targets, balance="label")
    assert (
        "target val/accuracy at least 0.95; always predicting class 1 gives 0.95. Set a higher "
        "target" in only(report).message
    )
    assert (
        report.notes[0]
        == "target train/accuracy at least 0.96; always predicting class 1 gives 0.95"
    )


@pytest.mark.parametrize(
    "remedy",
    [{"balance": "label"}, {"task": TASK | {"class_weights": "balanced"}}, {"imbalance": "off"}],
)
def test_a_remedy_ends_the_warning(tmp_path: Path, remedy: dict[str, Any]) -> None:
    assert not looked_at(
        tmp_path, {"train": counted(1, 5, 95), "val": counted(2, 1, 19)}, **remedy
    ).findings


def test_ignored_targets_are_no_class(tmp_path: Path) -> None:
    splits = {"train": counted(1, 30, 30, 1), "val": counted(2, 10, 10)}
    # A class that validation lacks, of one sample
    assert len(looked_at(tmp_path, splits).findings) == 2
    assert not looked_at(tmp_path, splits, task=TASK | {"ignore_index": 2}).findings


def test_each_head_has_its_classes(tmp_path: Path) -> None:
    kind, size = (
        {"_target_": "harness.tasks.Classification", "input": "x", "target": target}
        for target in ("label", "size")
    )
    task = {"_target_": "harness.tasks.Joint", "heads": {"kind": kind, "size": size}}
    splits = {
        "train": {**clean(1, 60), "size": np.arange(60) // 54},
        "val": {**clean(2, 60), "size": np.arange(60) // 30},
    }
    report = looked_at(
        tmp_path, splits, task=task, targets={"val/size_accuracy": {"at_least": 0.5}}
    )
    assert [finding.message.partition(". ")[0] for finding in report.findings] == [
        "target val/size_accuracy at least 0.5; always predicting class 0 gives 0.5",
        "data.train: class 0 of 'size' has 54 samples, class 1 6: always predicting the former "
        "gives an accuracy of 0.9",
    ]


def test_classes_are_called_by_their_names_where_the_source_knows_them(tmp_path: Path) -> None:
    names = np.array(["cat", "dog"])
    splits = {
        name: counted(seed, *counts)
        for seed, (name, counts) in enumerate({"train": (20, 2), "val": (10, 0)}.items())
    }
    report = looked_at(
        tmp_path,
        {
            name: Rows(columns, {"label": names[columns["label"]]})
            for name, columns in splits.items()
        },
    )
    assert [list(one.classes.items()) for one in report.summaries] == [
        [("0 (cat)", 20), ("1 (dog)", 2)],
        [("0 (cat)", 10)],
    ]
    assert "no samples of 1 of 2 classes in 'label': 1 (dog)" in report.findings[0].message


def test_classes_that_a_treatment_is_to_make_are_not_looked_at_and_the_report_says_so(
    tmp_path: Path,
) -> None:
    columns = {"x": clean(1)["x"], "letter": np.arange(60) % 3}
    report = looked_at(tmp_path, {"train": columns})
    assert (report.findings, report.notes) == (
        [],
        [
            "classes in 'label' were not checked: samples have none before the treatments, or "
            "several"
        ],
    )


def test_a_regression_has_no_classes(tmp_path: Path) -> None:
    task = {"_target_": "harness.tasks.Regression", "input": "x", "target": "y"}
    columns = {"x": clean(1)["x"], "y": np.linspace(0, 1, 60).astype(np.float32)}
    assert not looked_at(tmp_path, {"train": columns}, task=task).findings
    columns["y"][4] = np.nan
    assert only(looked_at(tmp_path, {"train": columns}, task=task)).check == "not_finite"
