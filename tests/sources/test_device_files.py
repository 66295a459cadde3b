"""EDF, WFDB and HDF5 beside what their specifications, read by hand, say that they hold."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyedflib
import pytest
from numpy.typing import NDArray

from harness.errors import DataError
from harness.sources.series import Series
from harness.sources.tables import Table

DRAW = np.random.default_rng(0)


def edf(path: Path, rates: tuple[int, ...] = (100, 100), seconds: int = 4) -> Path:
    kind = pyedflib.FILETYPE_BDF if path.suffix == ".bdf" else pyedflib.FILETYPE_EDF
    deepest = 2**23 if path.suffix == ".bdf" else 2**15
    with pyedflib.EdfWriter(str(path), len(rates), kind) as file:
        for number, rate in enumerate(rates):
            file.setSignalHeader(
                number,
                {
                    "label": f"EEG {number}",
                    "dimension": "uV",
                    "sample_frequency": rate,
                    "physical_min": -200.0,
                    "physical_max": 100.0,
                    "digital_min": -deepest,
                    "digital_max": deepest - 1,
                    "prefilter": "",
                    "transducer": "",
                },
            )
        file.writeSamples([DRAW.uniform(-200, 100, rate * seconds) for rate in rates])
    return path


def edf_by_hand(path: Path, signal: int, num: int, rate: int) -> NDArray[np.float64]:
    """A signal of an EDF file of records of one second (Kemp et al. 1992)."""
    content = path.read_bytes()
    size = int(content[184:192])
    counts = np.frombuffer(content[size:], "<i2").reshape(-1, num, rate)[:, signal].ravel()
    return (counts.astype(np.float64) + 2**15) / (2**16 - 1) * 300 - 200


def series(path: Path, channels: list[str], **more: Any) -> NDArray[np.float32]:
    source = Series(str(path), channels, 50, 50, **more)
    read = source.__getitems__(list(range(len(source))))["series"]
    found: NDArray[np.float32] = read.transpose(1, 0, 2).reshape(len(channels), -1)
    return found


def test_signals_of_edf_are_in_their_units(tmp_path: Path) -> None:
    path = edf(tmp_path / "a.edf")
    settings: dict[str, Any] = {"time": "time", "rate_hz": 100}
    found = series(path, ["EEG 1"], **settings)
    assert np.allclose(found[0], edf_by_hand(path, 1, 2, 100), atol=1e-4)
    with pytest.raises(DataError, match=r"a\.edf: 100 rows per second by 'time', but rate"):
        series(path, ["EEG 1"], time="time", rate_hz=50, gap_s=1)
    with pytest.raises(DataError, match=r"no column 'EEG 9', only EEG 0, EEG 1, time"):
        series(path, ["EEG 9"])
    assert Table(str(edf(tmp_path / "a.bdf"))).features == ["EEG 0", "EEG 1"]
    mixed = edf(tmp_path / "b.edf", (100, 10))
    assert series(mixed, ["EEG 0"]).shape == (1, 400)
    with pytest.raises(
        DataError, match=r"b\.edf: signals with different rates \(Hz\): EEG 0 100, EEG"
    ):
        series(mixed, ["EEG 0", "EEG 1"])
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"a\.edf: cannot be read: .* truncated"):
        series(path, ["EEG 1"])


def test_records_of_wfdb_are_read_with_all_their_files(tmp_path: Path) -> None:
    counts = DRAW.integers(-1000, 1000, (200, 2)).astype("<i2")
    counts.tofile(tmp_path / "r1.dat")
    header = "# as header(5) says\nr1 2 50 200\n"
    for zero, name in ((5, "II"), (9, "V5")):
        header += f"r1.dat 16 200({zero})/mV 16 0 0 0 0 {name}\n"
    (tmp_path / "r1.hea").write_text(header)
    wanted = (counts[:, 1] - 9.0) / 200
    path = tmp_path / "r1.hea"
    assert np.allclose(series(path, ["V5"], time="time", rate_hz=50)[0], wanted, atol=1e-6)
    assert Series.paths_of(str(path)) == [path, tmp_path / "r1.dat"]
    assert Table(str(path)).paths() == [path, tmp_path / "r1.dat"]
    (tmp_path / "r1.dat").write_bytes((tmp_path / "r1.dat").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"r1\.hea: cannot be read: "):
        series(path, ["V5"])


def test_signals_of_wfdb_keep_their_own_rates(tmp_path: Path) -> None:
    """Format 16 interleaves the samples of a frame: here two of `fast`, then one of `slow`."""
    counts = DRAW.integers(-1000, 1000, (200, 3)).astype("<i2")
    counts.tofile(tmp_path / "m.dat")
    path = tmp_path / "m.hea"
    path.write_text("m 2 50 200\nm.dat 16x2 200/mV 16 0 0 0 0 fast\nm.dat 16 200 16 0 0 0 0 slow\n")
    fast = series(path, ["fast"], time="time", rate_hz=100)
    assert np.allclose(fast[0], counts[:, :2].ravel() / 200, atol=1e-6)
    slow = series(path, ["slow"], time="time", rate_hz=50)
    assert np.allclose(slow[0], counts[:, 2] / 200, atol=1e-6)
    with pytest.raises(DataError, match=r"m\.hea: .* different rates \(Hz\): fast 100, slow 50\."):
        series(path, ["fast", "slow"])


def test_headers_that_name_other_folders_or_themselves_are_refused(tmp_path: Path) -> None:
    edf(tmp_path / "secret.edf")
    for number, (header, what) in enumerate(
        (
            ("a 1 50 9\n../secret.edf 16\n", r"it names '\.\./secret\.edf'. Put all files"),
            (f"a 1 50 9\n{tmp_path}/secret.edf 16\n", "it names '/.*secret"),
            ("a 1 50 9\nsub/a.dat 16\n", "it names 'sub/a"),
            ("a/1 1 50 9\n.. 9\n", r"it names '\.\.'"),
            ("a/1 1 50 9\na 9\n", "it is a segment of itself"),
            (" \n", "cannot be read: "),
        )
    ):
        path = tmp_path / str(number) / "a.hea"
        path.parent.mkdir()
        path.write_text(header)
        assert Series.paths_of(str(path))[0] == path
        with pytest.raises(DataError, match=rf"a\.hea: {what}"):
            series(path, ["II"])
    (tmp_path / "fine.csv").write_text("II\n" + "1\n" * 50)
    files = [str(tmp_path / "fine.csv"), str(tmp_path / "*/a.hea")]
    with pytest.warns(UserWarning, match="6 of 7 files skipped"):
        assert len(Series(files, ["II"], 50, 50, on_error="skip")) == 1


def test_datasets_of_other_files_are_refused(tmp_path: Path) -> None:
    np.arange(9.0).tofile(tmp_path / "secret.bin")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(9.0)
    layout = h5py.VirtualLayout(shape=(9,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", shape=(9,))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("e", (9,), "f8", external=[(str(tmp_path / "secret.bin"), 0, 72)])
        file.create_virtual_dataset("v", layout)
        file["x"] = np.arange(9.0)
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
    for name in "ev":
        with pytest.raises(DataError, match=rf"a\.h5: dataset '{name}' is stored in other files"):
            Table(str(tmp_path / "a.h5"), [name])
    with pytest.raises(DataError, match="dataset 'link' is stored in other files"):
        Table(str(tmp_path / "a.h5"), ["link"])
    assert Table(str(tmp_path / "a.h5"), ["x"])[8]["features"].tolist() == [8]


def test_datasets_of_hdf5_are_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    acc, marks = DRAW.normal(size=(100, 3)), DRAW.integers(0, 9, 100)
    with h5py.File(path, "w") as file:
        file["imu/acc"] = acc
        file["imu/mark"] = marks.astype(">i4")
        file["who"] = np.array([b"anna"] * 50 + [b"bert"] * 50)
        file["short"] = np.arange(5.0)
        file["pairs"] = np.zeros(100, dtype=[("a", "f4"), ("b", "f4")])
        file.create_dataset("ragged", (100,), dtype=h5py.vlen_dtype(np.float32))
        file.create_dataset("links", (100,), dtype=h5py.ref_dtype)
        file["latin"] = np.array([b"J\xf6rg"] * 100)
    channels = ["imu/acc/2", "imu/mark"]
    found = series(path, channels, recording=["who"])
    assert np.array_equal(found, np.float32([acc[:, 2], marks]))
    for names, what in (
        (["imu/mark", "short"], r"columns with different lengths: imu/mark 100, short 5"),
        (["pairs"], r"dataset 'pairs' holds .* neither numbers nor text"),
        (["ragged"], r"dataset 'ragged' holds cells of type ndarray, neither numbers nor text"),
        (["links"], r"dataset 'links' holds cells of type Reference, neither numbers"),
        (["latin"], r"dataset 'latin' is not UTF-8 \('utf-8' codec .* Store it as UTF-8"),
        (["imu/acc/3"], r"no column 'imu/acc/3', only imu/acc/0"),
    ):
        with pytest.raises(DataError, match=rf"a\.h5: {what}"):
            Table(str(path), names)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"a\.h5: cannot be read: .* truncated"):
        Table(str(path), ["short"])


def test_records_beyond_those_that_an_edf_declares_are_told(tmp_path: Path) -> None:
    path = edf(tmp_path / "a.edf")
    content = bytearray(path.read_bytes())
    path.write_bytes(bytes(content) + b"\0" * 10)  # not a whole one
    assert series(path, ["EEG 0"]).shape == (1, 400)
    bdf = edf(tmp_path / "b.bdf")
    named = bdf.rename(tmp_path / "b.edf")  # its first byte says what it is
    assert series(named, ["EEG 0"]).shape == (1, 400)
    content[236:244] = b"3       "
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"a\.edf: its header declares 3 data records, and 1 more"):
        series(path, ["EEG 0"])


def test_signals_of_wfdb_are_those_of_their_checksums(tmp_path: Path) -> None:
    counts = DRAW.integers(-1000, 1000, (200, 2)).astype("<i2")
    counts.tofile(tmp_path / "r.dat")
    path, sums = tmp_path / "r.hea", counts.astype(np.int64).sum(axis=0)
    lines = [f"r.dat 16 200 16 0 0 {sum_ - 2**16} 0" for sum_ in sums.tolist()]
    path.write_text("\n".join(["r 2 50 200", *lines, ""]))
    found = series(path, ["record r, signal 1"])  # as header(5) calls those without a name
    assert np.allclose(found[0], counts[:, 1] / 200, atol=1e-6)
    path.write_text("\n".join(["r 2 50 150", *lines, ""]))
    with pytest.raises(DataError, match=r"r\.hea: signal 0 has the checksum \d+, and its header"):
        series(path, ["record r, signal 1"])


def test_a_missing_value_that_is_text_counts_or_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        counts = np.array([1, 2, -999, 4], np.int16)
        file.create_dataset("told", data=counts).attrs["missing_value"] = "-999"
        file.create_dataset("odd", data=counts).attrs["missing_value"] = "none"
    told = Table(str(tmp_path / "a.h5"), ["told"], missing="keep")
    assert np.isnan(told.__getitems__([0, 1, 2, 3])["features"]).ravel().tolist() == [
        *(False, False, True, False)
    ]
    with pytest.raises(DataError, match=r"a\.h5: /odd: its missing_value is no number"):
        Table(str(tmp_path / "a.h5"), ["odd"])


def test_numbers_outside_of_the_range_that_a_file_calls_valid_are_missing(tmp_path: Path) -> None:
    """https://docs.unidata.ucar.edu/nug/current/attribute_conventions.html"""
    counts = np.array([-1, 0, 100, -128], np.int8)
    nan = np.nan
    cases: dict[str, tuple[dict[str, Any], list[float]]] = {
        "unsigned": ({"_Unsigned": "true"}, [255, 0, 100, 128]),
        "bytes": ({"_Unsigned": b"true", "_FillValue": np.int8(-1)}, [nan, 0, 100, 128]),
        "signed": ({"_Unsigned": "false"}, [-1, 0, 100, -128]),
        "scaled": ({"_Unsigned": "true", "scale_factor": 0.5}, [127.5, 0, 50, 64]),
        "range": ({"valid_range": np.array([-1, 50], np.int8)}, [-1, 0, nan, nan]),
        "from": ({"valid_min": np.int8(0), "add_offset": 1.0}, [nan, 1, 101, nan]),
        "to": ({"valid_max": np.int8(0)}, [-1, 0, nan, -128]),
        "both": ({"_Unsigned": "true", "valid_max": np.int8(-128)}, [nan, 0, 100, 128]),
    }
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, (attributes, _) in cases.items():
            file.create_dataset(name, data=counts).attrs.update(attributes)
        file.create_dataset("several", data=counts).attrs["scale_factor"] = [0.5, 0.25]
    table = Table(str(tmp_path / "a.h5"), list(cases), missing="keep")
    wanted = np.array([values for _, values in cases.values()], np.float32).T
    np.testing.assert_array_equal(table.__getitems__([0, 1, 2, 3])["features"], wanted)
    with pytest.raises(DataError, match=r"/several: its scale_factor or add_offset has several"):
        Table(str(tmp_path / "a.h5"), ["several"])


def test_a_signal_without_a_scale_is_refused(tmp_path: Path) -> None:
    """holgern/pyedflib#14: channels "-" of CHB-MIT, which pyedflib gives as counts."""
    path = tmp_path / "a.edf"
    with pyedflib.EdfWriter(str(path), 2, pyedflib.FILETYPE_EDF) as file:
        for number, name in enumerate(("EEG", "-")):
            header = pyedflib.highlevel.make_signal_header(name, sample_frequency=10)
            file.setSignalHeader(number, header)
        file.writeSamples([np.arange(100.0), np.arange(100.0)])
    data = path.read_bytes()
    begin = 256 + 2 * (16 + 80 + 8 + 8 + 8)  # of the digital minima, in columns of 8 bytes
    path.write_bytes(data[: begin + 8] + data[begin + 24 : begin + 32] + data[begin + 16 :])
    np.testing.assert_allclose(series(path, ["EEG"])[0][:10], np.arange(10), atol=0.01)
    with pytest.raises(DataError, match=r"a\.edf: signal '-' has no scale.* Choose other columns"):
        series(path, ["-"])


def test_datasets_mean_what_their_attributes_say(tmp_path: Path) -> None:
    counts = np.array([1, 2, -999, 4], np.int16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        packed = file.create_dataset("packed", data=counts)
        packed.attrs["scale_factor"], packed.attrs["add_offset"] = 0.5, np.array([10.0])
        packed.attrs["_FillValue"] = np.int16(-999)
        file.create_dataset("plain", data=counts).attrs["missing_value"] = np.int16(-1)
        file["plain"].attrs["scale_factor"] = h5py.Empty("f8")
        kinds = h5py.enum_dtype({"walk": 0, "run": 1})
        file.create_dataset("act", data=np.array([1, 0, 1, 1]), dtype=kinds)
        file["link"] = h5py.SoftLink("/plain")
        file["again"] = file["plain"]
        file.create_dataset("wide", data=np.arange(8).reshape(4, 2))
        file["wide link"] = h5py.SoftLink("/wide")
        file["away"] = h5py.ExternalLink("b.h5", "/x")
        file["round"] = h5py.SoftLink("round")
        file["behind"] = h5py.SoftLink("/away")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = counts
    path = str(tmp_path / "a.h5")
    asked = ["packed", "plain", "link", "again", "wide link/1"]
    table = Table(path, asked, {"act": "text"}, missing="keep")
    read = table.__getitems__([0, 1, 2, 3])
    packed = [10.5, 11, np.nan, 12]
    wanted = np.stack([packed, counts, counts, counts, [1, 3, 5, 7]], axis=1)
    np.testing.assert_array_equal(read["features"], wanted)
    assert read["act"] == ["run", "walk", "run", "run"]
    for name in ("away", "behind"):
        with pytest.raises(DataError, match=r"'/?away' is stored in other files"):
            Table(path, [name])
    with pytest.raises(DataError, match="no column 'round', only"):
        Table(path, ["round"])
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["deep"] = np.zeros((2, 2, 2))
    with pytest.raises(DataError, match=r"c\.h5: it holds no columns"):
        Table(str(tmp_path / "c.h5"), ["deep"])


def sleep(path: Path, *notes: tuple[float, float, str]) -> None:
    """An EDF+ file of 10 s with annotations: onset, duration, text."""
    with pyedflib.EdfWriter(str(path), 1, pyedflib.FILETYPE_EDFPLUS) as file:
        file.setSignalHeader(0, pyedflib.highlevel.make_signal_header("EEG", sample_frequency=10))
        file.writeSamples([np.zeros(100)])
        for note in notes:
            file.writeAnnotation(*note)


def test_annotations_of_edf_are_labels_of_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    with pyedflib.EdfWriter(str(path), 1, pyedflib.FILETYPE_EDFPLUS) as file:
        file.setSignalHeader(
            0, {**pyedflib.highlevel.make_signal_header("EEG", sample_frequency=10)}
        )
        file.writeSamples([np.zeros(100)])
        for note in ((1.0, 2.0, "N1"), (3.0, 3.05, "N2"), (8.0, -1, "wake")):
            file.writeAnnotation(*note)
    table = Table(str(path), ["EEG"], {"annotation": "text"}, missing="keep")
    rows = np.arange(100) / 10  # by hand
    held = np.select(
        [(rows >= 1) & (rows < 3), (rows >= 3) & (rows < 6.05), rows >= 8], ["N1", "N2", "wake"], ""
    )
    assert table.known()["annotation"] == held.tolist()
    series = Series(str(path), ["EEG"], 10, 10, label="annotation")
    assert series.known()["label"] == ["N1", "N1", "N2", "N2", "N2", "wake", "wake"]
    assert Table(str(path)).features == ["EEG"]
    with pyedflib.EdfWriter(str(path), 1, pyedflib.FILETYPE_EDFPLUS) as file:
        file.setSignalHeader(
            0, {**pyedflib.highlevel.make_signal_header("EEG", sample_frequency=10)}
        )
        file.writeSamples([np.zeros(100)])
        file.writeAnnotation(1.0, 2.0, "N1")
        file.writeAnnotation(2.0, 1.0, "arousal")
    with pytest.raises(DataError, match="annotations 'N1' and 'arousal' hold at once, at 2 s"):
        Series(str(path), ["EEG"], 10, 10, label="annotation")
    sleep(path, (2.0, -1, "N1"), (2.0, -1, "arousal"), (4.0, -1, "N2"))
    with pytest.raises(DataError, match="annotations 'N1' and 'arousal' hold at once, at 2 s"):
        Series(str(path), ["EEG"], 10, 10, label="annotation")


def test_annotations_of_wfdb_are_labels_until_the_next(tmp_path: Path) -> None:
    signal = DRAW.normal(size=(200, 1))
    with warnings.catch_warnings():  # of pandas, about how wfdb calls it
        warnings.simplefilter("ignore")
        wfdb = importlib.import_module("wfdb")
        wfdb.wrsamp("r", 50, ["mV"], ["II"], signal, fmt=["16"], write_dir=str(tmp_path))
        samples, notes = np.array([20, 50, 120]), ["(N", "", "(AFIB"]
        wfdb.wrann("r", "atr", samples, ["+", "V", "+"], aux_note=notes, write_dir=str(tmp_path))
    path = tmp_path / "r.hea"
    table = Table(str(path), ["II"], {"aux_note": "text", "symbol": "text"}, missing="keep")
    assert table.known()["aux_note"] == [""] * 20 + ["(N"] * 100 + ["(AFIB"] * 80
    assert table.known()["symbol"] == [""] * 20 + ["+"] * 30 + ["V"] * 70 + ["+"] * 80
    assert Series.paths_of(str(path)) == [path, tmp_path / "r.atr", tmp_path / "r.dat"]
    (tmp_path / "r.atr").unlink()
    with pytest.raises(DataError, match=r"r\.hea: cannot be read: .*r\.atr"):
        Table(str(path), ["II"], {"symbol": "text"})


@pytest.mark.parametrize("variable", [False, True])
def test_segments_of_wfdb_keep_their_own_gains(tmp_path: Path, variable: bool) -> None:
    counts = DRAW.integers(-1000, 1000, (100, 1)).astype("<i2")
    values = []
    for number, gain in ((1, 200), (2, 50)):
        counts.tofile(tmp_path / f"s{number}.dat")
        sum_ = int(counts.sum()) % 2**16
        line = f"s{number}.dat 16 {gain}(0)/mV 16 0 0 {sum_} 0 II\n"
        (tmp_path / f"s{number}.hea").write_text(f"s{number} 1 50 100\n{line}")
        values.append(counts[:, 0] / gain)
    layout, segments = "", "s1 100\ns2 100\n"
    if variable:
        (tmp_path / "r_layout.hea").write_text("r_layout 1 50 0\n~ 0 200/mV 16 0 0 0 0 II\n")
        layout, segments = "r_layout 0\n", "s1 100\n~ 50\ns2 100\n"
        values.insert(1, np.full(50, np.nan))
    path = tmp_path / "r.hea"
    number = segments.count("\n") + variable
    path.write_text(f"r/{number} 1 50 {250 if variable else 200}\n{layout}{segments}")
    table = Table(str(path), ["II"], missing="keep")
    found = table.__getitems__(list(range(len(table))))["features"].ravel()
    np.testing.assert_allclose(found, np.concatenate(values), atol=1e-6)
    (tmp_path / "s2.dat").write_bytes(counts[::-1].tobytes()[:-2] + b"\0\0")
    with pytest.raises(DataError, match=r"r\.hea: signal 'II' has the checksum"):
        Table(str(path), ["II"], missing="keep")
