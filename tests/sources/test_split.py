"""Rules that say which sample is in which part."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError, DataError
from harness.sources.split import (
    ByFold,
    ByGroup,
    ByTime,
    ByValue,
    Rule,
    Stratified,
    parts_by_share,
    rows_of,
)

SHARES = {"test": 0.2, "val": 0.1}


@given(st.lists(st.text(max_size=3), min_size=1, max_size=80), st.randoms())
def test_samples_of_a_key_stay_together_in_whatever_order_they_come(
    keys: list[str], random: Any
) -> None:
    parts = parts_by_share(keys, SHARES).array()
    assert set(parts) <= {"train", "val", "test"}
    assert len({(key, part) for key, part in zip(keys, parts, strict=True)}) == len(set(keys))
    order = list(range(len(keys)))
    random.shuffle(order)
    assert parts_by_share([keys[row] for row in order], SHARES) == parts[order].tolist()


@given(st.integers(10, 300))
def test_shares_are_kept_as_nearly_as_whole_samples_allow(count: int) -> None:
    parts = parts_by_share([str(number) for number in range(count)], SHARES).array()
    for part, share in SHARES.items():
        assert abs(int((parts == part).sum()) - share * count) <= 1


def test_the_parts_are_the_same_on_every_machine() -> None:
    assert np.flatnonzero(
        parts_by_share([str(number) for number in range(12)], SHARES).equal("test")
    ).tolist() == [0, 2]


def test_a_stratified_split_gives_each_class_its_share() -> None:
    known = {"label": ["a"] * 100 + ["b"] * 20, "name": [str(number) for number in range(120)]}
    parts = Stratified("label", key="name", val=0.1, test=0.2).parts(known)
    assert [(parts[:100] == part).sum() for part in ("train", "val", "test")] == [70, 10, 20]
    assert [(parts[100:] == part).sum() for part in ("train", "val", "test")] == [14, 2, 4]


def test_groups_of_several_columns_are_alike_in_all_of_them() -> None:
    known = {"subject": ["a", "a", "b", "b"] * 10, "session": ["1", "2"] * 20}
    parts = ByGroup(["subject", "session"], val=0.25, test=0.25).parts(known)
    of_groups = {
        (subject, session, part)
        for subject, session, part in zip(known["subject"], known["session"], parts, strict=True)
    }
    assert len(of_groups) == 4
    assert {part for *_, part in of_groups} == {"train", "val", "test"}


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.sampled_from([0.1, 0.4]),
)
def test_what_is_to_come_is_not_trained_on(times: list[int], val: float, test: float) -> None:
    parts = ByTime("t", val, test).parts({"t": [str(time) for time in times]})
    of = {
        part: [time for time, one in zip(times, parts.tolist(), strict=True) if one == part]
        for part in ("train", "val", "test")
    }
    assert sum(map(len, of.values())) == len(times)
    assert max(of["train"], default=-1) < min(of["val"], default=99)
    assert max(of["train"] + of["val"], default=-1) < min(of["test"], default=99)
    if len(set(times)) == len(times):
        assert abs(len(of["test"]) - test * len(times)) <= 1
        assert abs(len(of["val"]) - val * len(times)) <= 1


def test_windows_that_overlap_the_beginning_of_a_part_are_left_out() -> None:
    starts = {"t": [str(start) for start in range(0, 100, 5)]}
    assert (
        ByTime("t", 0.2, 0.2, gap=10).parts(starts).tolist()
        == ["train"] * 12 + ["none"] * 2 + ["val"] * 2 + ["none"] * 2 + ["test"] * 2
    )
    days = {"t": [f"2026-01-{day:02}" for day in range(1, 11)]}
    assert (
        ByTime("t", 0.0, 0.3, gap=86_400).parts(days).tolist()
        == ["train"] * 7 + ["none"] + ["test"] * 2
    )
    with pytest.raises(
        DataError, match=r"^split: 'soon' in 't' is neither a number nor a date such as 2026-01-31"
    ):
        ByTime("t").parts({"t": ["1", "soon"]})
    with pytest.raises(DataError, match=r"'nan' in 't' is neither a number nor a date"):
        ByTime("t").parts({"t": ["1", "nan"]})
    with pytest.raises(ConfigError, match=r"^gap: -1: must be at least 0"):
        ByTime("t", gap=-1)


def test_equal_samples_are_never_in_two_parts() -> None:
    known = {
        "label": ["a"] * 100,
        "x": [str(number // 4) for number in range(100)],
        "y": ["z"] * 100,
    }
    parts = Stratified("label", key=["x", "y"]).parts(known)
    assert all(len(set(parts[begin : begin + 4])) == 1 for begin in range(0, 100, 4))


def test_a_column_that_names_the_parts_is_taken_at_its_word() -> None:
    known = {"part": ["train", "test", "train", "val"]}
    assert [
        rows_of(part, ByValue("part"), known, 4).tolist()
        for part in ("train", "val", "test", "all")
    ] == [[0, 2], [3], [1], [0, 1, 2, 3]]  # type: ignore[arg-type]


def test_what_is_not_listed_is_for_the_part_that_has_no_list() -> None:
    known = {"take": ["0", "1", "2", "3", "0"]}
    assert ByValue("take", test=[0], val=[1]).parts(known).tolist() == [
        "test",
        "val",
        "train",
        "train",
        "test",
    ]
    assert ByValue("take", test=[0]).parts(known).tolist() == [
        "test",
        "train",
        "train",
        "train",
        "test",
    ]
    assert ByValue("take", train=[0], val=[1], test=[2]).parts(known).tolist() == [
        "train",
        "val",
        "test",
        "none",
        "train",
    ]


KNOWN = {"speaker": ["anna", "bert", "anna", "carl"], "take": ["0", "1", "2", "3"]}


@pytest.mark.parametrize(
    ("part", "rule", "error", "message"),
    [
        ("dev", None, ConfigError, r"^part: 'dev' is not one of all, train, val, test"),
        ("val", None, ConfigError, r"^part: 'val' needs a rule\. Set split"),
        (
            "val",
            ByValue("speaker"),
            DataError,
            r"^split: 'speaker' says 'anna', which is not one of train, val, test",
        ),
        (
            "val",
            ByValue("take", test=[9]),
            DataError,
            r"^split: no sample has '9' in 'take'. Its values are 0, 1, 2, 3",
        ),
        (
            "val",
            ByValue("take", test=[0]),
            DataError,
            r"^part: none of 4 samples is in 'val'; the parts are test, train",
        ),
        (
            "test",
            ByGroup("speaker", val=0.01, test=0.01),
            DataError,
            r"^split: 3 groups in 'speaker' are too few to give test its share",
        ),
        (
            "val",
            ByGroup("spaeker"),
            ConfigError,
            r"^split: no column 'spaeker' is known; the known columns are speaker, take\. Did "
            r"you mean 'speaker'\?",
        ),
    ],
)
def test_a_split_that_cannot_be_made_says_why(
    part: Any, rule: Rule | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rows_of(part, rule, KNOWN, 4)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (float("nan"), 0.1)])
def test_shares_have_to_leave_some_for_training(shares: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"^val, test: "):
        ByGroup("a", *shares)


def test_other_mistakes_in_a_rule_are_named() -> None:
    with pytest.raises(ConfigError, match=r"a value of 'take' is listed twice"):
        ByValue("take", val=[1], test=["1"])
    with pytest.raises(ConfigError, match=r"^key: give at least one column"):
        Stratified("label", key=[])
    with pytest.raises(ConfigError, match=r"^column: give at least one"):
        ByGroup([])


def test_an_unknown_stratum_is_told_with_the_columns_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"no column 'lable' is known; .* are label\. Did you"):
        rows_of("train", ByFold(k=2, fold=1, stratify="lable"), {"label": ["a", "b"] * 4}, 8)
