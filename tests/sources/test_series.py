"""Recordings of measuring devices, cut into windows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError, DataError
from harness.sources.series import Series, judge
from harness.sources.split import ByGroup, Stratified
from harness.sources.tables import Table
from harness.sources.units import UNITS, Units

CHANNELS = ["x", "y"]


def recording(count: int, begin: int = 0, label: str = "walk") -> pd.DataFrame:
    """Row t of a recording that begins at b has x = b + t and y = -x, and is taken at t / 10 s."""
    x = begin + np.arange(count, dtype=float)
    return pd.DataFrame({"t": np.arange(count) / 10, "x": x, "y": -x, "activity": label})


def write(frame: pd.DataFrame, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, frame[CHANNELS].to_numpy())
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".xlsx":
        frame.to_excel(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False)
    return str(path)


def first_rows(source: Series) -> list[float]:
    return [float(x) for x in source.__getitems__(list(range(len(source))))["series"][:, 0, 0]]


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl", ".xlsx", ".npy"])
def test_every_format_gives_the_same_windows_and_none_across_recordings(
    tmp_path: Path, ending: str
) -> None:
    for name, count, begin in (("a", 10, 0), ("b", 3, 100), ("c", 7, 200)):
        write(recording(count, begin), tmp_path / f"{name}{ending}")
    source = Series(str(tmp_path / f"*{ending}"), CHANNELS, length=4, stride=3)
    assert first_rows(source) == [0, 3, 6, 200, 203]
    batch = source.__getitems__([2, 0])
    assert batch.keys() == {"series"}
    assert batch["series"].dtype == np.float32
    assert batch["series"].tolist() == [
        [[6, 7, 8, 9], [-6, -7, -8, -9]],
        [[0, 1, 2, 3], [0, -1, -2, -3]],
    ]
    assert (source[2]["series"] == batch["series"][0]).all()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 8), st.integers(1, 8))
def test_windows_are_all_that_fit(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], length: int, stride: int
) -> None:
    folder = tmp_path_factory.mktemp("series")
    for number, count in enumerate(counts):
        np.save(folder / f"{number}.npy", 100.0 * number + np.arange(count))
    expected = [
        100.0 * number + begin
        for number, count in enumerate(counts)
        for begin in range(0, count - length + 1, stride)
    ]
    if not expected:
        with pytest.raises(
            DataError, match=rf"no window of {length} rows in {len(counts)} recordings"
        ):
            Series(str(folder / "*.npy"), ["x"], length, stride)
        return
    source = Series(str(folder / "*.npy"), ["x"], length, stride)
    assert first_rows(source) == expected
    assert all((np.diff(source[row]["series"][0]) == 1).all() for row in range(len(source)))


def test_labels_come_from_the_path_and_splits_divide_whole_recordings(tmp_path: Path) -> None:
    for label, begin in (("walk", 0), ("run", 1000)):
        for number in range(5):
            write(recording(8, begin + 100 * number), tmp_path / label / f"subject{number}.csv")
    files = str(tmp_path / "{label}/{subject}.csv")
    rule = ByGroup("subject", val=0.2, test=0.2)
    parts = {
        part: Series(files, CHANNELS, 4, 2, part=part, split=rule)
        for part in ("train", "val", "test")
    }  # type: ignore[arg-type]
    assert [len(one) for one in parts.values()] == [18, 6, 6]
    subjects = [set(one.known()["subject"]) for one in parts.values()]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == 5
    for one in parts.values():
        assert one.classes == ["run", "walk"]
        batch = one.__getitems__(list(range(len(one))))
        assert (batch["label"] == (batch["series"][:, 0, 0] < 1000)).all()


def test_fields_are_those_of_each_pattern_though_files_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.sources.shared._SETTLED_S", -60)  # files just written are shared
    for name in ("a_b", "b_a"):
        write(recording(4), tmp_path / name / "x.csv")
    of_subject = Series(str(tmp_path / "{subject}_b/*.csv"), CHANNELS, 4, 4)
    again = Series(str(tmp_path / "{subject}_b/*.csv"), CHANNELS, 4, 4)
    of_label = Series(str(tmp_path / "{label}_b/*.csv"), CHANNELS, 4, 4)
    assert again._reading is of_subject._reading
    assert of_subject.known()["subject"] == ["a"]
    assert "label" not in of_subject[0]
    assert of_label.known()["label"] == ["a"]
    assert "subject" not in of_label.known()
    kinds: dict[str, Any] = {"p": "text", "q": "text"}
    first = Table(str(tmp_path / "{p}_{q}/x.csv"), ["x"], kinds)
    other = Table(str(tmp_path / "{q}_{p}/x.csv"), ["x"], kinds)
    assert first[0]["p"] == other[0]["q"] == "a"
    assert first[4]["p"] == other[4]["q"] == "b"


def test_a_window_has_the_label_of_its_rows(tmp_path: Path) -> None:
    frame = recording(12)
    frame["activity"] = ["walk"] * 5 + ["run"] * 4 + [None] * 3
    path = write(frame, tmp_path / "a.csv")
    pure = Series(path, CHANNELS, 4, 1, label="activity")
    assert first_rows(pure) == [0, 1, 5]
    assert pure.classes == ["run", "walk"]
    assert pure.__getitems__([0, 1, 2])["label"].tolist() == [1, 1, 0]
    majority = Series(
        path, CHANNELS, 4, 1, label="activity", labels="majority", classes=["walk", "run"]
    )
    assert first_rows(majority) == [0, 1, 2, 3, 4, 5, 6]  # of the one at 7 half has no label
    assert majority.__getitems__(list(range(7)))["label"].tolist() == [0, 0, 0, 0, 1, 1, 1]


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=20), st.integers(1, 6))
def test_windows_are_judged_as_by_counting(labels: list[int], length: int) -> None:
    begins = np.arange(max(0, len(labels) - length + 1))
    is_class = np.array([[label == number for label in labels] for number in range(3)])
    for rule in ("pure", "majority"):
        expected = []
        for begin in begins.tolist():
            counts = [labels[begin : begin + length].count(number) for number in (-1, 0, 1, 2)]
            best = max(range(3), key=lambda number: counts[number + 1])
            enough = counts[best + 1] == length if rule == "pure" else counts[best + 1] > counts[0]
            expected.append(best if enough else -1)
        assert judge(is_class, begins, length, rule).tolist() == expected  # type: ignore[arg-type]


def test_gaps_are_refused_or_split_at(tmp_path: Path) -> None:
    frame = recording(12)
    frame.loc[frame.index >= 6, "t"] += 1.0
    path = write(frame, tmp_path / "a.csv")
    with pytest.raises(
        DataError,
        match=(
            rf"^{path}: row 8: more than 0\.15 s after the previous row\. Fill the gap, or set "
            r"gaps: split"
        ),
    ):
        Series(path, CHANNELS, 4, 1, time="t", gap_s=0.15)
    assert first_rows(Series(path, CHANNELS, 4, 1, time="t", gap_s=0.15, gaps="split")) == [
        0,
        1,
        2,
        6,
        7,
        8,
    ]
    assert len(Series(path, CHANNELS, 4, 1, time="t", gap_s=2)) == 9

    frame = recording(12)
    frame.loc[[0, 5], "y"] = None
    path = write(frame, tmp_path / "b.csv")
    with pytest.raises(
        DataError, match=rf"^{path}: row 2: an empty cell\. Fill the gap, or set gaps: split"
    ):
        Series(path, CHANNELS, 4, 1)
    assert first_rows(Series(path, CHANNELS, 4, 1, gaps="split")) == [1, 6, 7, 8]


def test_time_that_does_not_go_on_is_refused(tmp_path: Path) -> None:
    late = r"not later than the previous row\. Set sort: true, or duplicates: drop .* or correct"
    empty = r"empty, expected a time\. Fill it in"
    for number, (time, why) in enumerate(((0.1, late), (0.0, late), (None, empty))):
        frame = recording(6)
        frame.loc[2, "t"] = time
        path = write(frame, tmp_path / f"{number}.csv")
        with pytest.raises(DataError, match=rf"^{path}: row 4, column 't': {why}"):
            Series(path, CHANNELS, 2, 1, time="t", gap_s=9, gaps="split")


def test_a_corrupt_recording_among_many_is_named_or_left_out_and_counted(tmp_path: Path) -> None:
    for number in range(4):
        write(recording(5), tmp_path / f"{number}.npy")
        write(recording(5), tmp_path / f"{number}.csv")
    (tmp_path / "2.npy").write_bytes((tmp_path / "2.npy").read_bytes()[:-8])
    (tmp_path / "2.csv").write_text("x,y\n1,2\n1,high\n")
    for ending, what in (
        (".npy", "cannot be read"),
        (".csv", "row 3, column 'y': 'high' is not a number"),
    ):
        with pytest.raises(
            DataError,
            match=rf"^{tmp_path}/2{ending}: {what}.* Or skip such files with on_error: skip",
        ):
            Series(str(tmp_path / f"*{ending}"), CHANNELS, 2, 1)
        with pytest.warns(
            UserWarning, match=rf"^1 of 4 files skipped: {tmp_path}/2{ending}: {what}"
        ):
            source = Series(str(tmp_path / f"*{ending}"), CHANNELS, 2, 1, on_error="skip")
        assert len(source) == 12
        assert len(source.skipped) == 1


def test_what_is_known_of_windows_is_where_they_lie(tmp_path: Path) -> None:
    for label in ("run", "walk"):
        write(recording(8), tmp_path / label / "anna.csv")
    source = Series(str(tmp_path / "{label}/{subject}.csv"), CHANNELS, 4, 2, time="t", rate_hz=10)
    known = source.known()
    assert known["subject"] == ["anna"] * 6
    assert known["label"] == ["run"] * 3 + ["walk"] * 3
    assert known["recording"] == [
        str(tmp_path / label / "anna.csv") for label in ("run", "walk") for _ in range(3)
    ]
    assert [known["start"], known["stop"]] == [["0", "2", "4"] * 2, ["4", "6", "8"] * 2]
    assert known["time"] == ["0.0", "0.2", "0.4"] * 2
    assert (
        source.paths()
        == Series.paths_of(str(tmp_path / "{label}/{subject}.csv"), length=4)
        == sorted(tmp_path.glob("*/*.csv"))
    )


def test_a_file_can_hold_recordings_that_columns_tell_apart(tmp_path: Path) -> None:
    frames = [
        recording(count, begin).assign(who=who, day=day)
        for who, day, count, begin in (("a", 1, 6, 0), ("a", 2, 3, 100), ("b", 2, 9, 200))
    ]
    path = write(pd.concat(frames), tmp_path / "all.csv")
    source = Series(path, CHANNELS, 4, 2, recording=["who", "day"])
    assert first_rows(source) == [0, 2, 200, 202, 204]
    assert source.known()["who"] == ["a"] * 2 + ["b"] * 3
    assert source.known()["recording"] == [f"{path} a 1"] * 2 + [f"{path} b 2"] * 3
    assert source.known()["start"] == ["0", "2", "0", "2", "4"]
    assert len(Series(path, CHANNELS, 4, 2)) == 8
    # Each begins at 0 s
    timed = Series(path, CHANNELS, 4, 2, recording=["who", "day"], time="t", gap_s=0.2)
    assert first_rows(timed) == first_rows(source)
    parts = [
        Series(
            path, CHANNELS, 4, 2, recording=["who", "day"], part=part, split=ByGroup("who", 0, 0.4)
        )
        for part in ("train", "test")
    ]  # type: ignore[arg-type]
    assert sorted(map(len, parts)) == [2, 3]
    back = write(pd.concat([*frames, frames[0]]), tmp_path / "back.csv")
    with pytest.raises(
        DataError,
        match=(
            rf"^{back}: row 20: the recording \(a, 1\) continues, but ended before row 8\. Set "
            r"sort: true"
        ),
    ):
        Series(back, CHANNELS, 4, 2, recording=["who", "day"])
    with pytest.raises(ConfigError, match=r"^recording: 'who' is also a field of the path"):
        Series(str(tmp_path / "{who}.csv"), CHANNELS, 4, 2, recording=["who"])


def test_windows_can_be_split_one_by_one_for_a_comparison(tmp_path: Path) -> None:
    for number in range(4):
        write(recording(40, 1000 * number), tmp_path / f"{number}.npy")
    rule = Stratified("recording", key="start", val=0.2, test=0.2)
    parts = [
        Series(str(tmp_path / "*.npy"), CHANNELS, 4, 2, part=part, split=rule)
        for part in ("train", "val", "test")
    ]  # type: ignore[arg-type]
    windows = [set(first_rows(one)) for one in parts]
    assert sum(map(len, windows)) == len(set.union(*windows)) == 4 * 19
    assert all(len(set(one.known()["recording"])) == 4 for one in parts)


def test_recordings_of_another_rate_are_refused(tmp_path: Path) -> None:
    for name, rate in (("a", 10), ("b", 10.1), ("c", 25)):
        frame = recording(50)
        frame["t"] = np.round(np.arange(50) / rate, 2)  # a clock that rounds
        write(frame, tmp_path / f"{name}.csv")
    files = str(tmp_path / "*.csv")
    with pytest.raises(
        DataError,
        match=(
            rf"^{tmp_path}/c\.csv: 25 rows per second by 't', but {tmp_path}/a\.csv has 10\. "
            r"Resample it, or remove it"
        ),
    ):
        Series(files, CHANNELS, 4, 2, time="t", gap_s=1)
    with pytest.raises(
        DataError, match=rf"^{tmp_path}/a\.csv: 10 rows per second by 't', but rate_hz is 25"
    ):
        Series(files, CHANNELS, 4, 2, time="t", rate_hz=25, gaps="split", gap_s=1)
    with pytest.warns(UserWarning, match=r"^1 of 3 files skipped: .*c\.csv: 25 rows per second"):
        assert len(Series(files, CHANNELS, 4, 2, time="t", rate_hz=10, on_error="skip")) == 48
    frame = recording(50).drop(index=20)
    path = write(frame, tmp_path / "one_is_missing.csv")
    with pytest.raises(
        DataError, match=rf"^{path}: row 22: more than 0\.15 s after the previous row"
    ):
        Series(path, CHANNELS, 4, 2, time="t", rate_hz=10)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl", ".xlsx"])
def test_times_may_be_dates(tmp_path: Path, ending: str) -> None:
    frame = recording(12)
    frame["t"] = pd.Timestamp("2026-11-24 23:59:59") + pd.to_timedelta(
        np.arange(12) * 250, unit="ms"
    )
    if ending in (".csv", ".jsonl"):
        frame["t"] = [time.isoformat() for time in frame["t"]]
    path = write(frame, tmp_path / f"a{ending}")
    source = Series(path, CHANNELS, 4, 4, time="t", rate_hz=4)
    seconds = pd.Timestamp("2026-11-24 23:59:59", tz="UTC").timestamp()
    assert [float(time) for time in source.known()["time"]] == pytest.approx(
        [seconds, seconds + 1, seconds + 2], abs=1e-3
    )
    frame["t"] = [time if row != 3 else "later" for row, time in enumerate(map(str, frame["t"]))]
    path = write(frame, tmp_path / f"b{ending}")
    with pytest.raises(
        DataError,
        match=(
            rf"^{path}: row {4 if ending in ('.jsonl', '.parquet') else 5}, column 't': 'later' "
            r"is not a date"
        ),
    ):
        Series(path, CHANNELS, 4, 4, time="t", rate_hz=4)


def test_numbers_that_cannot_be_in_their_unit_are_named(tmp_path: Path) -> None:
    path = write(
        pd.DataFrame({"x": [20.0, 21.0, -300.0], "y": [1.0, 1.0, 1.0]}), tmp_path / "a.csv"
    )
    assert len(Series(path, CHANNELS, 3, 1)) == 1
    with pytest.raises(
        DataError,
        match=(
            rf"^{path}: row 4, column 'x': -300 degC is impossible \(range: at least -273\.15\)\. "
            r"Correct it, or set another unit"
        ),
    ):
        Series(path, CHANNELS, 3, 1, units={"x": "degC"})
    with pytest.raises(DataError, match=r"row 2, column 'x': 20 1 is impossible \(range: 0 to 1\)"):
        Series(path, CHANNELS, 3, 1, units={"x": "1"})
    converted = Series(path, CHANNELS, 2, 9, units={"x": "deg -> rad", "y": "g -> m/s2"})[0][
        "series"
    ]
    np.testing.assert_allclose(converted, [np.radians([20, 21]), [9.80665, 9.80665]], rtol=1e-6)


@pytest.mark.parametrize(
    ("number", "units", "expected"),
    [
        (100, "degC -> degF", 212),
        (-40, "degF -> degC", -40),
        (0, "degC -> K", 273.15),
        (36, "km/h -> m/s", 10),
        (90, "bpm -> Hz", 1.5),
        (50, "% -> 1", 0.5),
    ],
)
def test_units_become_others(number: float, units: str, expected: float) -> None:
    found = Units({"x": units}, ["x"]).apply(
        np.array([[number, np.nan]], dtype=np.float64), ["x"], Path("a"), [1, 2]
    )
    assert found[0, 0] == pytest.approx(expected)
    assert np.isnan(found[0, 1])


@given(st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)), st.floats(0, 1))
def test_there_and_back_is_where_one_was(one: str, other: str, number: float) -> None:
    if UNITS[one].quantity == UNITS[other].quantity:
        there = Units({"x": f"{one} -> {other}"}, ["x"]).apply(
            np.array([[number]]), ["x"], Path("a"), [1]
        )
        assert Units({"x": f"{other} -> {one}"}, ["x"]).apply(there, ["x"], Path("a"), [1])[
            0, 0
        ] == pytest.approx(number, abs=1e-9)


def test_arrays_that_are_no_recordings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array, what in (
        (np.zeros((4, 3)), r"\(4, 3\) of float64, expected numbers \(T, 2\)"),
        (np.array(["a"]), r"\(1, 1\) of <U1"),
        (np.empty((0, 2)), "it has no rows"),
        (np.full((4, 2), np.inf), "row 1: a number too large for float32"),
        (np.array([{}]), "cannot be read: .*allow_pickle"),
    ):
        np.save(path, array)
        with pytest.raises(DataError, match=rf"^{path}: {what}"):
            Series(str(path), CHANNELS, 2, 1)
    with pytest.raises(DataError, match=rf"^{path}: an array has only channels"):
        Series(str(path), CHANNELS, 2, 1, label="activity")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, r"^length, stride, channels: 0, 1"),
        ({"channels": []}, r"^length, stride, channels: 2, 1, \[\]"),
        ({"labels": "any"}, r"^labels: 'any' is neither pure nor majority"),
        ({"gaps": "fill"}, r"^gaps: 'fill' is neither refuse nor split"),
        (
            {"gap_s": 1.0},
            r"^time: set it together with gap_s, rate_hz or both, or set none of them",
        ),
        ({"time": "t"}, r"^time: set it together with gap_s"),
        ({"units": {"z": "g"}}, r"^units\.z: no such channel; the channels are x, y"),
        ({"units": {"x": "gee"}}, r"^units\.x: 'gee' is not a known unit"),
        (
            {"units": {"x": "degrC"}},
            r"^units\.x: 'degrC' is not a known unit\. Did you mean 'degC'\?",
        ),
        (
            {"units": {"x": "g -> K"}},
            r"^units\.x: g -> K: acceleration cannot be converted to temperature",
        ),
    ],
)
def test_a_mistake_in_the_settings_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Series(**{"files": "a.csv", "channels": CHANNELS, "length": 2, "stride": 1, **arguments})


def test_a_table_with_a_row_for_each_value_is_what_pandas_pivots(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {"device": device, "t": t / 10, "channel": channel, "value": draw.normal(), "act": act}
        for device, act in (("b", "run"), ("a", "walk"))
        for t in range(20)
        for channel in ("y", "temp", "x")
    ]
    frame = pd.DataFrame(rows).sample(frac=1, random_state=0)
    path, settings = str(tmp_path / "a.csv"), {"time": "t", "rate_hz": 10, "label": "act"}
    frame.to_csv(path, index=False)
    made: dict[str, Any] = {
        "recording": ["device"],
        "sort": True,
        "long_format": ["channel", "value"],
        **settings,
    }
    series = Series(path, ["x", "y"], 20, 20, **made)
    wide = frame.pivot(index=["device", "t"], columns="channel", values="value")[["x", "y"]]
    known = series.known()
    for number, device in enumerate(known["device"]):
        read = wide.loc[device].to_numpy(np.float32).T
        np.testing.assert_array_equal(series[number]["series"], read)
    assert (known["device"], known["label"]) in [
        (["a", "b"], ["walk", "run"]),
        (["b", "a"], ["run", "walk"]),
    ]
    state = frame[:1].assign(channel="state", value="start")
    pd.concat([state, frame]).to_csv(path, index=False)
    assert len(Series(path, ["x", "y"], 20, 20, **made)) == 2
    gone = frame.drop(frame[(frame["t"] == 1.0) & (frame["channel"] == "x")].index[:1])
    gone.to_csv(path, index=False)
    with pytest.raises(DataError, match=r"an empty cell\. Fill the gap, or set gaps: split"):
        Series(path, ["x", "y"], 20, 20, **made)
    assert len(Series(path, ["y"], 20, 20, **made)) == 2
    pd.concat([frame, frame[:1]]).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"row 122, column 'value': a second value of"):
        Series(path, ["x", "y", "temp"], 20, 20, **made)
    twice = Series(path, ["x", "y"], 20, 20, duplicates="drop", **made)
    assert len(twice) == 2
    pd.concat([frame, frame[:1].assign(value=9)]).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"row 122, column 'value': another value of"):
        Series(path, ["x", "y", "temp"], 20, 20, duplicates="drop", **made)
    frame.assign(act=[*frame["act"][:-1], "sit"]).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"column 'act': '\w+', but '\w+' at the same time"):
        Series(path, ["x", "y", "temp"], 20, 20, **made)
    with pytest.raises(DataError, match="no row of the channel 'z', only of"):
        Series(path, ["x", "z"], 20, 20, **made)
    with pytest.raises(ConfigError, match=r"long_format: .* set time"):
        Series(path, ["x"], 20, 20, long_format=["channel", "value"])
