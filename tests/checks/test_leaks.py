"""A leak of each kind, planted, is found; a clean set passes in silence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.checks.survey import hashes_of
from harness.errors import ConfigError, DataError
from tests.checks.planted import Rows, clean, looked_at, only, three


@pytest.mark.parametrize("shape", [(5,), (2, 40), (1, 8, 8), (3, 4, 8, 8)])
def test_a_clean_set_passes_in_silence(tmp_path: Path, shape: tuple[int, ...]) -> None:
    said: list[str] = []
    report = looked_at(tmp_path, three(shape), targets={"accuracy": {"at_least": 0.9}})
    report.enforce(said.append)
    assert (said, report.findings) == ([], [])
    assert report.notes == [
        f"target {split}/accuracy at least 0.9; always predicting class 0 gives 0.3333"
        for split in ("train", "val")
    ]


# -- content


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_a_sample_of_another_split_is_found(tmp_path: Path, kind: type) -> None:
    splits = three((2, 40))
    for columns in splits.values():
        columns["x"] = (columns["x"] * 40 + 100).astype(kind)
    splits["test"]["x"][[4, 9]] = splits["train"]["x"][[7, 12]]
    finding = only(looked_at(tmp_path, splits, clipped="off"))
    assert (finding.check, finding.level, finding.splits, finding.count) == (
        "duplicates",
        "error",
        ("train", "test"),
        2,
    )
    assert (
        "data.test: 2 of 30 samples (6.7%) have the same content as samples in data.train"
        in finding.message
    )
    assert finding.examples == ("data.test 4 = data.train 7", "data.test 9 = data.train 12")


def test_content_is_what_the_network_sees(tmp_path: Path) -> None:
    splits = {
        name: {**columns, "id": np.arange(len(columns["x"])) + 100 * index}
        for index, (name, columns) in enumerate(three().items())
    }
    splits["val"]["x"][0] = splits["train"]["x"][6]
    assert only(looked_at(tmp_path, splits)).check == "duplicates"
    renamed = {
        name: {"y": columns["x"], "label": columns["label"], "id": columns["id"]}
        for name, columns in splits.items()
    }
    # A treatment is to make x of y and id: all numbers count
    assert not looked_at(tmp_path, renamed).findings
    assert (
        only(
            looked_at(
                tmp_path,
                {name: {"y": one["y"], "label": one["label"]} for name, one in renamed.items()},
            )
        ).check
        == "duplicates"
    )


def test_text_and_samples_of_unequal_lengths_have_content_too(tmp_path: Path) -> None:
    texts = {"train": [f"a {number}" for number in range(9)], "val": ["a 3", "b", "c"]}
    report = looked_at(
        tmp_path,
        {name: Rows({"x": of, "label": np.arange(len(of)) % 3}) for name, of in texts.items()},
        missing_classes="off",
    )
    assert only(report).examples == ("data.val 0 = data.train 3",)
    numbers = np.random.default_rng(0)
    waves = [numbers.normal(size=(1, 20 + length)).astype(np.float32) for length in range(12)]
    splits = {
        "train": Rows({"x": waves[:9], "label": np.arange(9) % 3}),
        "val": Rows({"x": [*waves[9:], waves[2]], "label": np.array([0, 1, 0, 2])}),
    }
    assert only(looked_at(tmp_path, splits)).examples == ("data.val 3 = data.train 2",)


def test_repeats_within_a_split_and_blank_samples_are_no_leak(tmp_path: Path) -> None:
    splits = three((2, 40))
    splits["train"]["x"][3] = splits["train"]["x"][9]
    for columns in splits.values():
        columns["x"][0] = 0
    report = looked_at(tmp_path, splits)
    assert (report.findings, report.notes) == (
        [],
        ["data.train: 1 samples repeat the content of another one"],
    )


def test_the_same_content_with_another_class_is_found(tmp_path: Path) -> None:
    splits = three()
    splits["train"]["x"][3] = splits["train"]["x"][1]  # classes 0 and 1
    finding = only(looked_at(tmp_path, splits))
    assert (finding.check, finding.level, finding.count) == ("conflicts", "warn", 1)
    assert finding.examples == ("data.train 1 is '1' but data.train 3 is '0'",)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1))),
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_duplicates_and_conflicts_are_those_of_sets(
    tmp_path: Path, train: list[tuple[int, int]], val: list[tuple[int, int]]
) -> None:
    drawn = {"train": train, "val": val or [(9, 0)]}
    splits = {
        name: {
            "x": np.array([[value, 1] for value, _ in of]),
            "label": np.array([label for _, label in of]),
        }
        for name, of in drawn.items()
    }
    found = {
        one.check: one.count
        for one in looked_at(
            tmp_path, splits, constant="off", imbalance="off", missing_classes="off"
        ).findings
    }
    contents = {value for value, _ in train}
    both = {
        value
        for value, label in [*train, *drawn["val"]]
        if (value, 1 - label) in [*train, *drawn["val"]]
    }
    expected = {
        "duplicates": sum(value in contents for value, _ in drawn["val"]),
        "conflicts": len(both),
    }
    assert found == {check: count for check, count in expected.items() if count}


# -- groups


def with_known(**known: dict[str, list[Any]]) -> dict[str, Rows]:
    """Clean splits; known: by column, by split."""
    return {
        name: Rows(columns, {column: of[name] for column, of in known.items()})
        for name, columns in three().items()
    }


def people(val: str = "e") -> dict[str, list[Any]]:
    return {"train": list("abc") * 20, "val": ["d", val] * 15, "test": list("fg") * 15}


def test_a_group_in_two_splits_is_found(tmp_path: Path) -> None:
    finding = only(looked_at(tmp_path, with_known(subject=people("b")), groups=["subject"]))
    assert (finding.check, finding.level, finding.splits, finding.count) == (
        "shared_groups",
        "error",
        ("train", "val"),
        1,
    )
    assert "data.val: 1 of 2 values of 'subject' also occur in data.train" in finding.message
    assert finding.examples == ("'b': 20 and 15 samples",)
    assert not looked_at(tmp_path, with_known(subject=people()), groups=["subject"]).findings
    # Nobody said that it is a group
    assert not looked_at(tmp_path, with_known(subject=people("b"))).findings


def test_groups_are_what_a_rule_splits_by_and_recordings(tmp_path: Path) -> None:
    rule = {"_target_": "harness.sources.split.ByGroup", "column": "subject"}
    assert (
        only(looked_at(tmp_path, with_known(subject=people("b")), split=rule)).check
        == "shared_groups"
    )
    assert only(looked_at(tmp_path, with_known(recording=people("b")))).check == "shared_groups"


@pytest.mark.parametrize(("val_day", "found"), [("2", []), ("1", ["shared_groups"])])
def test_groups_of_several_columns_are_shared_if_all_of_them_are(
    tmp_path: Path, val_day: str, found: list[str]
) -> None:
    rule = {"_target_": "harness.sources.split.ByGroup", "column": ["subject", "day"]}
    days = {"train": ["1"] * 60, "val": [val_day] * 30, "test": ["1"] * 30}
    assert [
        one.check
        for one in looked_at(
            tmp_path, with_known(subject=people("b"), day=days), split=rule
        ).findings
    ] == found


def test_a_group_may_be_a_column_of_the_samples(tmp_path: Path) -> None:
    splits = {
        name: {**columns, "device": np.arange(len(columns["x"])) % 2 + (10 if name == "val" else 0)}
        for name, columns in three().items()
    }
    assert only(looked_at(tmp_path, splits, groups=["device"])).splits == ("train", "test")


def test_a_group_that_nothing_is_known_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"^data\.checks: data\.train: no column 'subjekt' is known; the known columns are "
            r"subject, x, label\. Did you mean"
        ),
    ):
        looked_at(tmp_path, with_known(subject=people()), groups=["subjekt"])
    with pytest.raises(ConfigError, match=r"'x' has 5 values per sample, where one is needed"):
        looked_at(tmp_path, three(), groups=["x"])


# -- windows and time


def windows(*spans: tuple[str, int, int]) -> Rows:
    columns = {name: values[: len(spans)] for name, values in clean(len(spans)).items()}
    return Rows(
        columns,
        {
            "recording": [one[0] for one in spans],
            "start": [one[1] for one in spans],
            "stop": [one[2] for one in spans],
        },
    )


QUIET = {
    "missing_classes": "off",
    "imbalance": "off",
    "duplicates": "off",
    "conflicts": "off",
    "constant": "off",
    "shared_groups": "off",
}


def test_windows_that_share_rows_are_found(tmp_path: Path) -> None:
    splits = {
        "train": windows(("a", 0, 10), ("a", 5, 15), ("b", 0, 10)),
        "val": windows(("a", 14, 24), ("a", 15, 25), ("c", 0, 10)),
    }
    finding = only(looked_at(tmp_path, splits, **QUIET))
    assert (finding.check, finding.level, finding.splits, finding.count) == (
        "overlaps",
        "error",
        ("train", "val"),
        1,
    )
    assert finding.examples == ("data.val 0 (a [14, 24)) and data.train 1 (a [5, 15))",)


SPAN = st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(1, 12)).map(
    lambda one: (one[0], one[1], one[1] + one[2])
)
SPANS = st.lists(SPAN, min_size=1)


@given(SPANS, SPANS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_overlaps_are_those_of_every_pair(
    tmp_path: Path, train: list[tuple[str, int, int]], val: list[tuple[str, int, int]]
) -> None:
    train, val = train[:60], val[:60]
    report = looked_at(tmp_path, {"train": windows(*train), "val": windows(*val)}, **QUIET)
    count = sum(
        any(one[0] == other[0] and one[1] < other[2] and other[1] < one[2] for other in train)
        for one in val
    )
    assert sum(finding.count for finding in report.findings) == count


@pytest.mark.parametrize(
    ("late", "early"), [(100, 30), ("2026-03-02T10:00", "2026-02-01"), (1e9, -5.5)]
)
def test_a_time_that_is_not_later_is_found(tmp_path: Path, late: Any, early: Any) -> None:
    first = "2026-02-01" if isinstance(late, str) else 30
    times = {
        "train": [first] * 60,
        "val": [late] * 29 + [early],
        "test": ["2026-04-01" if isinstance(late, str) else 2e9] * 30,
    }
    finding = only(looked_at(tmp_path, with_known(taken=times), time="taken"))
    assert (finding.check, finding.level, finding.splits, finding.count) == (
        "time_order",
        "error",
        ("train", "val"),
        1,
    )
    assert finding.examples == (f"data.val 29: {early}",)
    times["val"][29] = late
    assert not looked_at(tmp_path, with_known(taken=times), time="taken").findings


def test_parts_of_a_recording_that_time_tells_apart_are_no_leak(tmp_path: Path) -> None:
    recordings = {"train": ["a"] * 60, "val": ["a"] * 30, "test": ["a"] * 30}
    times = {"train": list(range(60)), "val": list(range(60, 90)), "test": list(range(90, 120))}
    stops = {name: [start + 1 for start in of] for name, of in times.items()}
    rule = {"_target_": "harness.sources.split.ByTime", "column": "time"}
    for way in ({}, {"time": "time"}, {"split": rule}):
        report = looked_at(
            tmp_path, with_known(recording=recordings, start=times, stop=stops, time=times), **way
        )
        assert (report.findings, report.notes[0]) == (
            [],
            "data.val: 1 recordings also occur in data.train, at other times",
        )
    # Then it counts
    assert looked_at(
        tmp_path, with_known(recording=recordings, start=times, stop=stops), groups=["recording"]
    ).findings
    times["test"][0] = 89
    assert only(looked_at(tmp_path, with_known(time=times), split=rule)).check == "time_order"


def test_a_text_that_is_no_time_is_refused(tmp_path: Path) -> None:
    times = {"train": ["yesterday"] * 60, "val": [1] * 30, "test": [2] * 30}
    with pytest.raises(
        ConfigError,
        match=(
            r"data\.checks\.time: data\.train 0: 'yesterday' in 'taken' is neither a number nor a "
            r"date"
        ),
    ):
        looked_at(tmp_path, with_known(taken=times), time="taken")


# -- reading


def test_a_sample_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    class Broken(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 41:
                raise ValueError("cut short")
            return super().__getitem__(index)

    with pytest.raises(
        DataError, match=r"^data\.val: ValueError while reading samples 0 to 59: cut short$"
    ):
        looked_at(tmp_path, {"train": clean(1), "val": Broken(clean(2))})


def test_a_sample_of_many_is_looked_at_evenly_and_the_report_says_so(tmp_path: Path) -> None:
    report = looked_at(tmp_path, {"train": clean(1, 100), "val": clean(2, 10)}, samples=10)
    assert list(map(str, report.summaries)) == [
        "data.train: 100 samples, 10 (10.0%) checked",
        "data.val: 10 samples, all checked",
    ]
    assert sorted(row for rows in report.summaries[0].some.values() for row in rows) == list(
        range(0, 100, 11)
    )


@given(st.data(), st.sampled_from(["?", "i1", "u2", "i8", "f2", "f4", "f8", ">f4"]))
def test_samples_that_come_together_compare_as_those_that_come_one_by_one(
    data: Any, dtype: str
) -> None:
    shape = data.draw(st.sampled_from([(), (0,), (1,), (8,), (2, 5), (3, 1, 4)]))
    count = data.draw(st.integers(0, 4))
    numbers = st.lists(st.sampled_from([0, 1, 2]), min_size=60, max_size=60)
    values = np.resize(np.array(data.draw(numbers)), (count, *shape)).astype(dtype)
    if data.draw(st.booleans()):
        values = values[..., ::-1] if shape else values[::-1]
    one_by_one = [np.asarray(value) for value in values]
    for together, each in zip(
        hashes_of({"x": values}, ["x"]), hashes_of({"x": one_by_one}, ["x"]), strict=True
    ):
        assert together.tolist() == each.tolist()
