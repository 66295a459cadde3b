"""Numbers that cannot be, or that say nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.checks.channels import Channels
from harness.errors import ConfigError
from tests.checks.planted import clean, looked_at, only, three


@pytest.mark.parametrize(
    ("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinite numbers"), (-np.inf, "infinite numbers")]
)
def test_numbers_that_are_none_are_found(tmp_path: Path, bad: float, word: str) -> None:
    splits = three((2, 40))
    splits["val"]["x"][[3, 8], 1, 5] = bad
    finding = only(looked_at(tmp_path, splits))
    assert (finding.check, finding.level, finding.splits, finding.count) == (
        "not_finite",
        "error",
        ("val",),
        2,
    )
    assert f"data.val: 2 of 30 samples have {word} in 'x'" in finding.message
    assert finding.examples == ("data.val 3", "data.val 8")


def test_missing_numbers_that_a_treatment_fills_in_are_fine(tmp_path: Path) -> None:
    splits = three()
    splits["train"]["x"][3, 1] = np.nan
    treatments = [{"_target_": "harness.treatments.Impute", "value": 0, "key": "x"}]
    report = looked_at(tmp_path, splits, treatments=treatments)
    assert (report.findings, report.notes) == (
        [],
        ["data.train: 1 of 60 samples have missing numbers (NaN) in 'x'. Impute fills them in"],
    )
    splits["train"]["x"][4, 1] = np.inf
    assert only(looked_at(tmp_path, splits, treatments=treatments)).count == 1


def test_a_channel_that_never_changes_is_found(tmp_path: Path) -> None:
    splits = three((4, 30))
    for columns in splits.values():
        columns["x"][:, 2] = 7
    finding = only(looked_at(tmp_path, splits))
    assert (finding.check, finding.level, finding.count) == ("constant", "warn", 1)
    assert "1 of 4 channels of 'x' are constant: 2." in finding.message


def test_numbers_out_of_range_are_found(tmp_path: Path) -> None:
    splits = three((2, 40))
    splits["val"]["x"][7, 0, 3] = 451
    assert not looked_at(tmp_path, splits).findings
    finding = only(looked_at(tmp_path, splits, ranges={"x": [-20, 60]}))
    assert (finding.check, finding.level, finding.count, finding.examples) == (
        "out_of_range",
        "error",
        1,
        ("data.val 7",),
    )
    assert "1 of 30 samples have numbers outside -20 to 60 in 'x'" in finding.message


def test_ranges_that_cannot_take_effect_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"data\.checks\.ranges: samples of data\.train have no 'y', they have x, label",
    ):
        looked_at(tmp_path, three(), ranges={"y": [0, 1]})
    with pytest.raises(ConfigError, match=r"x: 2 to 1 is empty"):
        looked_at(tmp_path, three(), ranges={"x": [2, 1]})
    with pytest.raises(ConfigError, match=r"ranges has no effect with out_of_range: off"):
        looked_at(tmp_path, three(), ranges={"x": [0, 1]}, out_of_range="off")


@pytest.mark.parametrize(("shape", "channel", "share"), [((2, 500), 1, "15."), ((5,), 1, "1")])
def test_numbers_that_heap_at_the_end_of_their_range_are_found(
    tmp_path: Path, shape: tuple[int, ...], channel: int, share: str
) -> None:
    splits = {"train": clean(1, 300, shape), "val": clean(2, 60, shape)}
    splits["train"]["x"][:, channel] = np.minimum(splits["train"]["x"][:, channel], 1)
    finding = only(looked_at(tmp_path, splits))
    assert (finding.check, finding.level, finding.splits, finding.count) == (
        "clipped",
        "warn",
        ("train",),
        1,
    )
    place = "channel" if len(shape) > 1 else "column"
    assert finding.examples[0].startswith(f"{place} {channel}: {share}")
    assert finding.examples[0].endswith("are 1")
    assert not looked_at(tmp_path, splits, max_clipped=0.3).findings


def test_an_overexposed_picture_is_clipped_and_its_dark_background_is_not(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (60, 1, 12, 12))
    dark = np.where(images < 90, 0, np.minimum(images, 254)).astype(np.uint8)
    labels = np.arange(60) % 3
    assert not looked_at(tmp_path, {"train": {"x": dark, "label": labels}}).findings
    bright = np.where(images > 200, 255, images).astype(np.uint8)
    assert only(looked_at(tmp_path, {"train": {"x": bright, "label": labels}})).check == "clipped"


def test_silence_flags_grades_and_tokens_are_not_clipped(tmp_path: Path) -> None:
    columns = clean(1, 200, (2, 30))
    columns["x"] = np.abs(columns["x"]) * (columns["x"] > 0.5)  # half of it silence, the lower end
    assert not looked_at(tmp_path, {"train": columns}).findings
    columns["x"] = np.random.default_rng(1).integers(1, 6, (200, 4)).astype(np.float32)
    assert not looked_at(tmp_path, {"train": columns}, conflicts="off").findings
    tokens = {"tokens": np.random.default_rng(1).integers(10, 120, (200, 33))}
    task = {"_target_": "harness.tasks.LanguageModelling", "input": "tokens"}
    assert not looked_at(tmp_path, {"train": tokens}, task=task).findings


# -- block by block


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(1, 4)),
        elements=st.sampled_from([0, 1, 2, 5, np.nan, np.inf]),
    ),
    st.integers(1, 12),
)
def test_channels_are_the_same_in_blocks_as_in_whole(values: Any, size: int) -> None:
    channels = Channels("x", (0.5, 3))
    for begin in range(0, len(values), size):
        rows = list(range(begin, min(begin + size, len(values))))
        channels.add(rows, values[rows])
    for channel in range(values.shape[1]):
        mine = values[:, channel].ravel()
        finite = mine[np.isfinite(mine)]
        assert channels.count[channel] == len(finite)
        if len(finite):
            assert (channels.low[channel], channels.high[channel]) == (finite.min(), finite.max())
            assert (channels.at_low[channel], channels.at_high[channel]) == (
                (finite == finite.min()).sum(),
                (finite == finite.max()).sum(),
            )
    flat = values.reshape(len(values), -1)
    assert channels.is_nan == np.flatnonzero(np.isnan(flat).any(axis=1)).tolist()
    assert channels.is_infinite == np.flatnonzero(np.isinf(flat).any(axis=1)).tolist()
    assert channels.outside == np.flatnonzero(((flat < 0.5) | (flat > 3)).any(axis=1)).tolist()
