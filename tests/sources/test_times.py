"""Times and arrays as devices store them; pandas says what the times are."""

import datetime
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pytest

from harness.errors import ConfigError, DataError
from harness.sources.series import Series
from harness.sources.split import ByTime
from harness.sources.tables import Table

CASES = Path(__file__).parents[3] / "shared" / "cases" / "data"


def times_of(series: Series) -> list[float]:
    return list(map(float, series.known()["time"]))


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
@pytest.mark.parametrize("gaps", ["refuse", "split"])
def test_times_in_milliseconds_are_read_or_named(gaps: Any) -> None:
    path = CASES / "x_epoch_ms" / "ms.csv"
    settings: dict[str, Any] = {"time": "t", "rate_hz": 50, "gaps": gaps}
    with pytest.raises(DataError, match=r"ms\.csv: rows are 20 s apart .* set time_unit: ms\."):
        Series(str(path), ["a"], 5, 5, **settings)
    series = Series(str(path), ["a"], 5, 5, time_unit="ms", **settings)
    frame = pd.read_csv(path)
    assert len(series) == len(frame) // 5
    since = pd.to_datetime(frame["t"], unit="ms") - pd.Timestamp(0)
    assert times_of(series) == pytest.approx(since.dt.total_seconds()[::5][: len(series)].tolist())


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_each_unit_gives_the_same_seconds(tmp_path: Path, unit: Any, factor: float) -> None:
    lines = "".join(f"{round(index * factor)},{index}\n" for index in range(6))
    (tmp_path / "a.csv").write_text(f"t,a\n{lines}")
    settings: dict[str, Any] = {"time": "t", "rate_hz": 1, "time_unit": unit}
    assert times_of(Series(str(tmp_path / "a.csv"), ["a"], 2, 2, **settings)) == [0, 2, 4]


@pytest.mark.parametrize(
    ("form", "texts"),
    [
        (
            "%d/%m/%Y %H:%M:%S",
            ["31/01/2026 23:59:58", "31/01/2026 23:59:59", "01/02/2026 00:00:00"],
        ),
        ("%d.%m.%y %H:%M:%S", ["31.01.26 23:59:58", "31.01.26 23:59:59", "01.02.26 00:00:00"]),
        ("%Y%m%d%H%M%S", ["20260131235958", "20260131235959", "20260201000000"]),
        (
            "%d/%m/%Y %H:%M:%S %z",
            [f"{text} +0200" for text in ("31/01/2026 23:59:58", "31/01/2026 23:59:59")],
        ),
    ],
)
def test_dates_of_another_form_are_what_pandas_reads(
    tmp_path: Path, form: str, texts: list[str]
) -> None:
    (tmp_path / "a.csv").write_text("t,a\n" + "".join(f"{text},1\n" for text in texts))
    settings: dict[str, Any] = {"time": "t", "rate_hz": 1, "time_format": form}
    series = Series(str(tmp_path / "a.csv"), ["a"], 1, 1, **settings)
    since = pd.to_datetime(pd.Series(texts), format=form, utc=True) - pd.Timestamp(0, tz="UTC")
    assert times_of(series) == since.dt.total_seconds().tolist()


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "xlsx", "csv"])
@pytest.mark.parametrize(
    ("form", "numbers"),
    [("%Y%m%d", [20260101, 20260102]), ("%d%m%Y", ["01012026", "02012026"])],
)
def test_dates_that_are_integers_are_read_in_their_form(
    tmp_path: Path, ending: str, form: str, numbers: list[Any]
) -> None:
    texts = list(map(str, numbers))
    frame = pd.DataFrame({"t": numbers if ending == "csv" else list(map(int, texts)), "a": 1.0})
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        frame.to_parquet(path)
    elif ending == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif ending == "xlsx":
        frame.to_excel(path, index=False)
    else:
        frame.to_csv(path, index=False)
    series = Series(str(path), ["a"], 1, 1, time="t", rate_hz=1 / 86400, time_format=form)
    days = pd.to_datetime(pd.Series(texts), format=form, utc=True) - pd.Timestamp(0, tz="UTC")
    assert times_of(series) == days.dt.total_seconds().tolist()


@pytest.mark.parametrize("ending", ["parquet", "xlsx"])
def test_native_dates_need_no_form(tmp_path: Path, ending: str) -> None:
    frame = pd.DataFrame({"t": pd.to_datetime(["2026-01-01", "2026-01-02"]), "a": 1.0})
    path = tmp_path / f"a.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_excel(path, index=False)
    series = Series(str(path), ["a"], 1, 1, time="t", rate_hz=1 / 86400, time_format="%d/%m/%Y")
    assert times_of(series) == [1767225600, 1767312000]


def test_dates_that_a_spreadsheet_took_for_others_are_told(tmp_path: Path) -> None:
    """Excel in American English reads 03/02/2026 as the second of March, and leaves 13/02/2026."""
    settings: dict[str, Any] = {"time": "t", "gap_s": 1e9, "time_format": "%d/%m/%Y"}
    american = [pd.Timestamp(2026, day, 2) for day in (1, 2, 3)]
    for cells, is_told in (
        ([*american, "13/02/2026", "14/02/2026"], True),
        ([*american, "03/04/2026"], False),
        ([pd.Timestamp(2026, 1, 30), "31/01/2026", "01/02/2026"], False),
    ):
        pd.DataFrame({"t": cells, "a": 1.0}).to_excel(tmp_path / "a.xlsx", index=False)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            Series(str(tmp_path / "a.xlsx"), ["a"], 1, 1, sort=True, **settings)
        what = r"3 cells of 't' are dates, .* 2 are text, .* took the day for the month"
        assert [bool(re.search(what, str(one.message))) for one in told] == [True] * is_told


@pytest.mark.parametrize("ending", ["xlsx", "parquet"])
def test_a_form_is_of_the_column_that_is_text_where_the_other_is_native(
    tmp_path: Path, ending: str
) -> None:
    day, dates = datetime.time(12, 30), [datetime.date(2026, 2, 1), datetime.date(2026, 2, 2)]
    texts = ["01/02/2026", "02/02/2026"]
    pairs: dict[str, tuple[list[Any], list[Any]]] = {
        "%d/%m/%Y %H.%M": (dates, ["12.30", "12.30"]),
        "%H.%M": (dates, ["12.30", "12.30"]),
        "%d/%m/%Y %I:%M %p": (dates, ["12:30 PM", "12:30 PM"]),
        "%d/%m/%Y %H:%M": (texts, [day, day]),
        "%d/%m/%Y": (texts, [day, day]),
        "%d/%m/%Y %H%M": (dates, [1230, 1230]),
        "%m/%d/%Y %H:%M": (dates, [day, day]),
    }
    path = tmp_path / f"a.{ending}"
    settings: dict[str, Any] = {"time": ["d", "t"], "gap_s": 1e9}
    for form, (first, second) in pairs.items():
        columns = {"d": first, "t": second, "a": [1.0, 2.0]}
        if ending == "parquet":
            pd.DataFrame(columns).to_parquet(path)
        else:
            book = openpyxl.Workbook()
            sheet: Any = book.active
            for row in (list(columns), *zip(*columns.values(), strict=True)):
                sheet.append(list(row))
            book.save(path)
        series = Series(str(path), ["a"], 1, 1, time_format=form, **settings)
        assert times_of(series) == [1769949000, 1770035400], form
    pd.DataFrame({"d": dates, "t": ["24:00", "0:01"], "a": 1.0}).to_parquet(tmp_path / "b.parquet")
    late = Series(str(tmp_path / "b.parquet"), ["a"], 1, 1, time_format="%d/%m %H:%M", **settings)
    assert times_of(late) == [1769990400, 1769990460]
    with pytest.raises(DataError, match=r"row \d, column 'd': time data '24:00' does not match"):
        Series(str(tmp_path / "b.parquet"), ["a"], 1, 1, time_format="%d/%m %H.%M", **settings)


@pytest.mark.parametrize("clock", ["12.30", "12,30", "12:30.5", "12-03", "1230.5"])
def test_times_that_python_takes_for_others_are_refused(tmp_path: Path, clock: str) -> None:
    (tmp_path / "a.csv").write_text(f't,a\n"2026-02-01 {clock}",1\n')
    settings: dict[str, Any] = {"time": "t", "rate_hz": 1}
    what = rf"'2026-02-01 {re.escape(clock)}' is a date in another format\. Set time_format"
    with pytest.raises(DataError, match=rf"row 2, column 't': {what}, e\.g\. '%Y-%m-%d %H\.%M'"):
        Series(str(tmp_path / "a.csv"), ["a"], 1, 1, **settings)
    with pytest.raises(DataError, match=r"is neither a number nor a date"):
        ByTime("t").parts({"t": [f"2026-02-01 {clock}", "2026-02-02"]})
    if clock == "12.30":
        form = {**settings, "time_format": "%Y-%m-%d %H.%M"}
        assert times_of(Series(str(tmp_path / "a.csv"), ["a"], 1, 1, **form)) == [1769949000]


def test_a_date_that_is_not_of_the_form_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,a\n31/01/2026,1\n2026-02-01,2\n")
    with pytest.raises(
        DataError, match=r"row 3, column 't': time data '2026-02-01' does not match"
    ):
        Series(str(tmp_path / "a.csv"), ["a"], 1, 1, time="t", rate_hz=1, time_format="%d/%m/%Y")
    with pytest.raises(
        DataError, match=r"row 2, column 't': '31/01/2026' .*Set time_format, e\.g\."
    ):
        Series(str(tmp_path / "a.csv"), ["a"], 1, 1, time="t", rate_hz=1)
    with pytest.raises(ConfigError, match=r"^time_unit: 'min' is not one of s, ms, us, ns"):
        Series("a.csv", ["a"], 1, 1, time="t", rate_hz=1, time_unit="min")  # type: ignore[arg-type] # one of them


def test_arrays_of_channels_first_and_npz_are_read(tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(2, 6)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", x=values)
    np.savez(tmp_path / "c.npz", x=values, y=values)
    for name in ("a.npy", "b.npz"):
        series = Series(str(tmp_path / name), ["p", "q"], 3, 3, channels_first=True)
        assert series[1]["series"].tolist() == values[:, 3:].tolist()
        with pytest.raises(
            DataError, match=r"\(2, 6\) .*If it is \(C, T\), set channels_first: true"
        ):
            Series(str(tmp_path / name), ["p", "q"], 3, 3)
    with pytest.raises(DataError, match=r"c\.npz: the arrays x, y\. Save each in a file"):
        Series(str(tmp_path / "c.npz"), ["p", "q"], 3, 3)


def test_a_damaged_npz_is_named_or_left_out(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "b.npz", x=np.arange(4000.0) ** 0.5)
    whole = (tmp_path / "b.npz").read_bytes()
    middle = len(whole) // 2
    flipped = bytes(byte ^ 255 for byte in whole[middle : middle + 64])
    (tmp_path / "a.npz").write_bytes(whole[:middle] + flipped + whole[middle + 64 :])
    (tmp_path / "c.npz").write_bytes(whole[: -middle // 2])
    for name in ("a.npz", "c.npz"):
        with pytest.raises(DataError, match=rf"{name[0]}\.npz: cannot be read: .* truncated"):
            Series(str(tmp_path / name), ["p"], 3, 3)
    with pytest.warns(UserWarning, match="2 of 3 files skipped"):
        series = Series(str(tmp_path / "*.npz"), ["p"], 3, 3, on_error="skip")
    assert [path.name for path in series.paths()] == ["b.npz"]
    assert len(series.skipped) == 2


def of_zone(path: Path, texts: list[str], **more: Any) -> Series:
    path.write_text("t,a\n" + "".join(f"{text},{row}\n" for row, text in enumerate(texts)))
    settings: dict[str, Any] = {"time": "t", "gap_s": 9e9, "timezone": "Europe/Rome"}
    return Series(str(path), ["a"], 1, 1, **settings | more)


def test_local_times_are_what_pandas_says_of_their_zone(tmp_path: Path) -> None:
    texts = pd.date_range("2026-03-28 20:00", "2026-03-29 01:59", freq="17min").astype(str).tolist()
    texts += ["2026-03-29 03:00:00", "2026-07-01 12:00:00", "2026-12-01 00:00:00"]
    wanted = pd.Series(pd.to_datetime(texts)).dt.tz_localize("Europe/Rome")
    since = (wanted - pd.Timestamp(0, tz="UTC")).dt.total_seconds().tolist()
    assert times_of(of_zone(tmp_path / "a.csv", texts)) == since
    day = "%d/%m/%Y %H.%M"
    others = [pd.Timestamp(text).strftime(day) for text in texts]
    assert times_of(of_zone(tmp_path / "b.csv", others, time_format=day)) == since
    stated = [f"{text}+01:00" for text in texts[:1]] + texts[1:]
    assert times_of(of_zone(tmp_path / "c.csv", stated)) == since


def test_the_hour_that_occurs_twice_is_read_in_order_and_told(tmp_path: Path) -> None:
    moments = pd.date_range("2025-10-25 23:00", "2025-10-26 03:00", freq="20min", tz="UTC")
    texts = moments.tz_convert("Europe/Rome").tz_localize(None).astype(str).tolist()
    with pytest.warns(UserWarning, match=r"a\.csv: 6 times in 't' are in the hour .* in row 5:"):
        series = of_zone(tmp_path / "a.csv", texts)
    assert times_of(series) == [moment.timestamp() for moment in moments]


def test_the_hour_that_occurs_twice_is_that_of_each_recording(tmp_path: Path) -> None:
    moments = pd.date_range("2025-10-25 23:00", "2025-10-26 03:00", freq="20min", tz="UTC")
    texts = moments.tz_convert("Europe/Rome").tz_localize(None).astype(str).tolist()
    settings: dict[str, Any] = {"time": "t", "gap_s": 9e9, "timezone": "Europe/Rome", "sort": True}
    path = tmp_path / "a.csv"
    devices = ("p", "q")  # q writes 5 minutes behind p
    wanted = [at.timestamp() - 300 * late for late in range(2) for at in moments]
    behind = (moments - pd.Timedelta("5min")).tz_convert("Europe/Rome").tz_localize(None)
    rows = [
        f"{text},{device},0\n"
        for pair in zip(texts, behind.astype(str), strict=True)
        for text, device in zip(pair, devices, strict=True)
    ]
    path.write_text("t,d,a\n" + "".join(rows))
    with pytest.warns(UserWarning, match="the times of a recording go back"):
        assert times_of(Series(str(path), ["a"], 1, 1, recording=["d"], **settings)) == wanted
    with pytest.raises(DataError, match=r"column 't': .* twice in Europe/Rome, and .* Sort the"):
        Series(str(path), ["a"], 1, 1, **settings)
    with pytest.raises(DataError, match=r"occurs twice in Europe/Rome"):
        of_zone(path, texts[::-1], sort=True)


def test_a_row_repeated_in_the_hour_that_occurs_twice_is_no_second_pass(tmp_path: Path) -> None:
    texts = [f"2025-10-26 0{time}" for time in ("1:50", "2:10", "2:10", "2:30", "3:00")]
    with (
        pytest.warns(UserWarning, match="3 times"),
        pytest.raises(DataError, match=r"row 4, .* not later than"),
    ):
        of_zone(tmp_path / "a.csv", texts)
    with pytest.warns(UserWarning, match="stand still after a step as long"):
        hourly = of_zone(tmp_path / "a.csv", [f"2025-10-26 0{hour}:00" for hour in (1, 2, 2, 3)])
    assert np.diff(times_of(hourly)).tolist() == [3600] * 3
    with pytest.warns(UserWarning, match="2 times"):
        old = of_zone(tmp_path / "a.csv", ["1968-09-22 00:10", "1968-09-22 00:30"])
    assert np.diff(times_of(old)).tolist() == [1200]


def test_times_that_a_zone_does_not_have_are_refused(tmp_path: Path) -> None:
    texts = ["2026-03-29 01:59", "2026-03-29 02:30", "2026-03-29 03:00"]
    with pytest.raises(DataError, match=r"row 3, column 't': .* does not exist in Europe/Rome"):
        of_zone(tmp_path / "a.csv", texts)
    with pytest.raises(ConfigError, match=r"timezone: 'Europe/Roma' .* 'Europe/Rome'"):
        of_zone(tmp_path / "a.csv", texts, timezone="Europe/Roma")
    for cells in (["1", "2"], ["2026-03-29T01:00Z", "2026-03-29T02:00Z"]):
        with pytest.raises(DataError, match=r"row 2, column 't': .* Remove timezone"):
            of_zone(tmp_path / "a.csv", cells)


@pytest.mark.parametrize("suffix", ["csv", "xlsx", "parquet"])
def test_dates_and_times_of_day_may_be_in_two_columns(tmp_path: Path, suffix: str) -> None:
    moments = pd.Series(pd.date_range("2026-01-31 23:59:58", periods=4, freq="s"))
    frame = pd.DataFrame({"d": moments.dt.date, "t": moments.dt.time, "a": range(4)})
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        frame["d"] = moments.dt.strftime("%d/%m/%Y")
        frame.to_csv(path, index=False)
    elif suffix == "xlsx":
        frame.to_excel(path, index=False)
    else:
        frame.to_parquet(path)
    form = "%d/%m/%Y %H:%M:%S" if suffix == "csv" else None
    series = Series(str(path), ["a"], 2, 1, time=["d", "t"], rate_hz=1, time_format=form)
    assert times_of(series) == [one.timestamp() for one in moments.dt.tz_localize("UTC")[:3]]
    if suffix == "csv":
        with pytest.raises(DataError, match=r"row 2, column 'd': .* a date in another format"):
            Series(str(path), ["a"], 2, 1, time=["d", "t"], rate_hz=1)
    with pytest.raises(ConfigError, match=r"time: \['a', 'b', 'c'\]"):
        Series(str(path), ["a"], 2, 1, time=["a", "b", "c"], rate_hz=1)


def test_devices_that_write_by_turns_are_put_apart_and_in_order(tmp_path: Path) -> None:
    rows = [(t, who, 10 * number + t) for t in range(6) for number, who in enumerate("ab")]
    mixed = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    repeated = [*mixed[:5], *mixed[3:], mixed[0]]
    path = tmp_path / "a.csv"
    pd.DataFrame(repeated, columns=["t", "device", "x"]).to_csv(path, index=False)
    settings: dict[str, Any] = {"time": "t", "rate_hz": 1, "recording": ["device"]}
    with pytest.raises(DataError, match=r"a\.csv: row \d+: .* Set sort: true if several"):
        Series(str(path), ["x"], 6, 6, **settings)
    with pytest.raises(DataError, match=r"a\.csv: row \d+, column 't': .*duplicates: drop"):
        Series(str(path), ["x"], 6, 6, sort=True, **settings)
    series = Series(str(path), ["x"], 6, 6, sort=True, duplicates="drop", **settings)
    found = {who: series[at]["series"].tolist() for at, who in enumerate(series.known()["device"])}
    assert found == {"a": [list(range(6))], "b": [list(range(10, 16))]}
    other = (repeated[0][0], repeated[0][1], 99)  # one time, another value
    pd.DataFrame([*repeated, other], columns=["t", "device", "x"]).to_csv(path, index=False)
    with pytest.raises(DataError, match=rf"row {len(repeated) + 2}, column 't': not later"):
        Series(str(path), ["x"], 6, 6, sort=True, duplicates="drop", **settings)
    with pytest.raises(ConfigError, match=r"sort, duplicates: .* Set time"):
        Series(str(path), ["x"], 6, 6, sort=True)


def test_names_of_time_zones_in_a_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,a\n2026-01-31 12:00 EST,1\n")
    settings: dict[str, Any] = {"time": "t", "rate_hz": 1, "time_format": "%Y-%m-%d %H:%M %Z"}
    with pytest.raises(ConfigError, match=r"time_format: .* ignores names of time zones\. "):
        Series(str(tmp_path / "a.csv"), ["a"], 1, 1, **settings)
    literal = {**settings, "time_format": "%Y-%m-%d %H:%M EST", "timezone": "America/New_York"}
    series = Series(str(tmp_path / "a.csv"), ["a"], 1, 1, **literal)
    assert times_of(series) == [pd.Timestamp("2026-01-31 17:00", tz="UTC").timestamp()]


@pytest.mark.parametrize("year", ["0001", "9999"])
def test_years_whose_neighbours_python_does_not_have_are_refused(tmp_path: Path, year: str) -> None:
    (tmp_path / "a.csv").write_text(f"t,a\n{year}-01-01 00:00:00,1\n{year}-12-31 23:59:59,2\n")
    settings: dict[str, Any] = {"time": "t", "rate_hz": 1, "timezone": "Asia/Tokyo"}
    with pytest.raises(DataError, match=rf"row 2, column 't': {year}-01-01 .*: give years from 2"):
        Series(str(tmp_path / "a.csv"), ["a"], 1, 1, **settings)


@pytest.mark.parametrize(
    ("form", "texts", "expected"),
    [  # what strptime makes of 15 by %H%M is 01:05, pvlib's reader of SRML was wrong in this way
        ("%Y%m%d %H%M", ["20200101 5", "20200101 15", "20200101 130", "20200101 1530"], None),
        ("%d%m%Y", ["1012026", "11012026", "1112026"], None),
        ("%m/%d/%Y %H:%M", ["01/31/1988 23:00", "01/31/1988 24:00"], None),  # as in TMY3
        ("%Y%m%d %H%M", ["20200228 2300", "20200229 2400"], ["202002282300", "202003010000"]),
        (None, ["1988-12-31 23:00:00", "1988-12-31 24:00:00"], ["198812312300", "198901010000"]),
        ("%d/%m/%Y %H:%M:%S.%f", ["01/01/2026 00:00:00.1234567"], None),  # .NET's seven digits
        ("%Y%m%dT%H%M%S", ["20260131T235958"], ["2026-01-31 23:59:58"]),
        ("%Y%m%d%H%M%S%f", ["20260131235958123"], ["2026-01-31 23:59:58.123"]),
        ("%d%b%Y:%H%M%z", ["1Feb2026:0130+0100"], ["2026-02-01 00:30"]),
        ("%Y/%m/%d %H%M", ["2026/1/2  5"], ["2026-01-02 00:05"]),
    ],
)
def test_times_without_zeros_and_those_of_24_hours_are_what_was_meant(
    tmp_path: Path, form: str | None, texts: list[str], expected: list[str] | None
) -> None:
    meant = {
        "20200101 5": "202001010005",
        "20200101 15": "202001010015",
        "20200101 130": "202001010130",
        "20200101 1530": "202001011530",
        "1012026": "202601010000",
        "11012026": "202601110000",
        "1112026": "202611010000",
        "01/31/1988 23:00": "198801312300",
        "01/31/1988 24:00": "198802010000",
        "01/01/2026 00:00:00.1234567": "2026-01-01 00:00:00.123456",
    }
    (tmp_path / "a.csv").write_text("t,a\n" + "".join(f"{text},1\n" for text in texts))
    settings: dict[str, Any] = {"time": "t", "gap_s": 1e9, "time_format": form}
    series = Series(str(tmp_path / "a.csv"), ["a"], 1, 1, **settings)
    wanted = [pd.Timestamp(text) for text in expected or map(meant.__getitem__, texts)]
    assert times_of(series) == [moment.tz_localize("UTC").timestamp() for moment in wanted]


@pytest.mark.parametrize(
    ("text", "form"),
    [("1/2/26-130", "%d/%m/%y-%H%M"), ("1126 5", "%d%m%y,%H"), ("20241", "%Y%j"), ("2012", "%Y%m")],
)
def test_digits_that_could_be_two_dates_are_refused(tmp_path: Path, text: str, form: str) -> None:
    (tmp_path / "a.csv").write_text(f"t,a\n{text},1\n")
    settings: dict[str, Any] = {"time": "t", "gap_s": 1e9, "time_format": form}
    with pytest.raises(DataError, match=r"row 2, column 't': .* Correct it, or set time_format"):
        Series(str(tmp_path / "a.csv"), ["a"], 1, 1, **settings)


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("%d/%m/%Y %H:%M %p", "ignores %p beside %H. Use %I"),
        ("%d/%m/%Y %I:%M", "%I needs %p"),
        ("%Y-%W", "ignores weeks"),
    ],
)
def test_forms_of_dates_that_python_would_not_use_are_refused(form: str, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{form!r}: ") + f".*{why}"):
        Series("a.csv", ["a"], 1, 1, time="t", gap_s=1, time_format=form)


@pytest.mark.parametrize("ending", ["parquet", "xlsx"])
def test_durations_are_seconds(tmp_path: Path, ending: str) -> None:
    elapsed = pd.to_timedelta([0, 1.5, 90_000, 90_001.25], unit="s")
    frame, path = pd.DataFrame({"t": elapsed, "a": 1.0}), tmp_path / f"a.{ending}"
    if ending == "parquet":
        frame.to_parquet(path)
    else:
        book = openpyxl.Workbook()
        sheet: Any = book.active
        for row in [["t", "a"], *([one.to_pytimedelta(), 1] for one in elapsed)]:
            sheet.append(row)
        book.save(path)
    settings: dict[str, Any] = {"time": "t", "gap_s": 1e9}
    read = times_of(Series(str(path), ["a"], 1, 1, **settings))
    assert read == pytest.approx(elapsed.total_seconds().tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("form", "row", "what"),
    [
        ("[h]:mm:ss.000", r"\d+", r"not later .* read to the millisecond: give closer rows their"),
        ("yyyy-mm-dd hh:mm:ss.000", r"\d+", "not later .* time in seconds, as numbers"),
        ("hh:mm:ss.000", "2", r"12:00:00 is a time of day without a date\. .*: \[date, time\]"),
    ],
)
def test_times_that_spreadsheets_do_not_hold_are_named(
    tmp_path: Path, form: str, row: str, what: str
) -> None:
    book = openpyxl.Workbook()
    sheet: Any = book.active
    sheet.append(["t", "a"])
    for half_ms in range(8):
        sheet.append([(45_000 if "y" in form else 0) + 0.5 + half_ms / 2000 / 86_400, 1])
        sheet.cell(sheet.max_row, 1).number_format = form
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match=rf"a\.xlsx: row {row}, column 't': {what}"):
        Series(str(tmp_path / "a.xlsx"), ["a"], 4, 4, time="t", rate_hz=2000)
    with pytest.raises(
        DataError, match=r"row 2, column 't': .*12:00:00 is not a number\. If it is"
    ):
        Table(str(tmp_path / "a.xlsx"))
