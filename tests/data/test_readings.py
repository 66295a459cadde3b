"""Readings of files that are kept as mapped columns: the same samples, once for all, resumed."""

import fcntl
import os
import shutil
import signal
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data import readings
from harness.data import shelf as shelf_module
from harness.data.preparing import Feedback, store_shelf
from harness.data.readings import OnDisk
from harness.data.settings import StoreConfig
from harness.data.shelf import Shelf, Temporary, shelved, temporary_shelf
from harness.data.split import Split
from harness.data.store import EntrySource, Store
from harness.errors import DataError
from harness.sources import csv_files, shared, table_files, tables
from harness.sources.series import Series
from harness.sources.split import ByValue
from harness.sources.tables import Table
from harness.training.launch import launch
from tests.pool import RanksFailed, on_ranks

ROWS = 800


def write(folder: Path) -> str:
    """Rows of two files; the text `who` is distinct in each row, `group` repeats."""
    draw = np.random.default_rng(0)
    for number, begin in enumerate(range(0, ROWS, ROWS // 2)):
        rows = range(begin, begin + ROWS // 2)
        columns: dict[str, Any] = {f"x{at}": draw.normal(size=len(rows)) for at in range(3)}
        columns |= {"who": [f"s{row}é" for row in rows], "group": [str(row % 7) for row in rows]}
        columns |= {"day": [2**60 + row for row in rows]}
        table = pa.table(columns)
        pq.write_table(table, folder / f"a{number}.parquet", row_group_size=100)
        lines = [",".join(columns)]
        lines += [",".join(map(str, row.values())) for row in table.to_pylist()]
        (folder / f"a{number}.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "{file}.")


def table(files: str, **more: Any) -> Table:
    kinds: Any = {"who": "text", "day": "integer"}
    rule = ByValue("group", val=["1"], test=["2"])
    return Table(files, ["x0", "x1", "x2"], kinds, part="train", split=rule, **more)


def content(source: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    found = source.__getitems__(list(range(len(source))))
    return found, {name: list(of) for name, of in source.known().items()}


def assert_same(source: Any, other: Any) -> None:
    (found, known), (samples, columns) = content(source), content(other)
    assert known == columns
    assert found.keys() == samples.keys()
    for name, values in samples.items():
        np.testing.assert_array_equal(found[name], values)
        assert getattr(found[name], "dtype", None) == getattr(values, "dtype", None)


def in_small_pieces() -> None:
    readings.SHARD_BYTES, csv_files._BLOCK, table_files._ROWS_AT_ONCE = 9000, 4000, 40
    readings._FEW = 16


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "_FEW", 16)
    monkeypatch.setattr(readings, "SHARD_BYTES", 9000)
    monkeypatch.setattr(csv_files, "_BLOCK", 4000)
    monkeypatch.setattr(table_files, "_ROWS_AT_ONCE", 40)


def kept(directory: Path) -> Shelf:
    """That of a store; without fsync, which takes most of the time of these tests."""
    shelf = store_shelf(StoreConfig(dir=directory), Feedback())
    return replace(shelf, is_kept=False)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_reading_gives_what_memory_gives_and_is_made_once(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write(tmp_path) + ending
    with shelved(kept(tmp_path / "store")):
        assert_same(table(files), table(files))
    (directory,) = (tmp_path / "store" / "readings").iterdir()
    assert not list(directory.glob("shard-*")), "only the columns remain"
    fresh = table(files)
    monkeypatch.setattr(OnDisk, "append", None)  # nothing is read again
    with shelved(kept(tmp_path / "store")):
        again = table(files)
    assert_same(again, fresh)
    assert isinstance(again._whole.values["features"].base, np.memmap)  # type: ignore[union-attr]
    assert again.paths() == fresh.paths()


def test_pieces_in_another_order_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards number their columns: those of the first would stand for the others'."""
    monkeypatch.setattr(readings, "SHARD_BYTES", 1)
    columns = OnDisk(tmp_path / "r", sync=False)
    one = {"a": np.zeros(2), "b": np.ones(2)}
    columns.append(one, None)
    columns.append(dict(reversed(one.items())), None)
    with pytest.raises(ValueError, match=r"columns \['b', 'a'\] after \['a', 'b'\]"):
        columns.finish()


def read_and_be_killed(files: str, directory: str, at: int, joining: bool) -> None:
    in_small_pieces()
    calls, written = 0, readings._rename

    def rename(made: Path, path: Path, *, sync: bool) -> None:
        nonlocal calls
        calls += 1
        if (path.name == "columns") if joining else calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        written(made, path, sync=sync)

    readings._rename = rename
    with shelved(kept(Path(directory))):
        table(files)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_killed_reading_goes_on_where_it_was(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, store = write(tmp_path) + ending, str(tmp_path / "store")
    # Columns are joined in the same way for all formats
    kills = [(2, False), (0, True)] if ending == "parquet" else [(2, False)]
    for at, joining in kills:
        with pytest.raises(RanksFailed, match=r"signal 9|SIGKILL"):
            on_ranks(1, read_and_be_killed, files, store, at, joining)
    appended: list[int] = []
    append = OnDisk.append

    def count(self: OnDisk, piece: Any, state: Any) -> None:
        appended.append(len(piece["row:"]))
        append(self, piece, state)

    monkeypatch.setattr(OnDisk, "append", count)
    with shelved(kept(tmp_path / "store")):
        again = table(files)
    if ending == "parquet":
        assert appended == [], "all rows were there before the last kill"
    else:
        assert 0 < sum(appended) < ROWS, "some were there"
    assert_same(again, table(files))
    (directory,) = (tmp_path / "store" / "readings").iterdir()
    assert {path.name for path in directory.iterdir()} == {"columns", "manifest.json"}


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore:1 of 2 files skipped")
def test_a_file_that_fails_late_leaves_no_row(tmp_path: Path) -> None:
    files = write(tmp_path) + "csv"
    path = tmp_path / "a0.csv"
    path.write_text(path.read_text() + "1,2,broken,w,1,5\n")
    with (
        pytest.raises(DataError, match=r"a0\.csv: row 402, column 'x2'"),
        shelved(kept(tmp_path / "other")),
    ):
        table(files)
    with shelved(kept(tmp_path / "store")):
        skipped = table(files, on_error="skip")
    fresh = table(files, on_error="skip")
    assert_same(skipped, fresh)
    assert skipped.skipped == fresh.skipped
    assert len(skipped.skipped) == 1
    assert set(content(skipped)[1]["file"]) == {"a1"}


@pytest.mark.usefixtures("small")
def test_a_reading_follows_the_content_of_its_files(tmp_path: Path) -> None:
    files = write(tmp_path) + "csv"
    with shelved(kept(tmp_path / "store")):
        table(files)
        path = tmp_path / "a1.csv"
        path.write_text(path.read_text().replace("s500", "S500"))
        assert "S500é" in content(table(files))[0]["who"]


def test_a_damaged_reading_is_named(tmp_path: Path) -> None:
    files = write(tmp_path) + "csv"
    with shelved(store_shelf(StoreConfig(dir=tmp_path / "store"), Feedback())):
        table(files)
        (values,) = (tmp_path / "store").rglob("00000.values")
        values.write_bytes(values.read_bytes()[:-4])
        with pytest.raises(DataError, match=r"00000\.values: .* bytes instead of .* delete"):
            table(files)


@pytest.mark.usefixtures("small")
def test_series_share_their_reading(tmp_path: Path) -> None:
    files = write(tmp_path) + "csv"

    def series() -> Series:
        return Series(files, ["x0", "x2"], 10, 10, label="group", labels="majority")

    with shelved(kept(tmp_path / "store")):
        series()
        kept_series = series()
    assert_same(kept_series, series())
    assert kept_series.classes == series().classes


def test_a_series_cut_off_within_a_file_keeps_its_recordings_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file, recordings in (("s", range(4)), ("u", range(4, 6))):
        rows = [f"{1000 * of + row},r{of}" for of in recordings for row in range(300)]
        (tmp_path / f"{file}.csv").write_text("\n".join(["x,recording", *rows]) + "\n")

    def series() -> Series:
        return Series(str(tmp_path / "*.csv"), ["x"], 100, 100, recording=["recording"])

    monkeypatch.setattr(readings, "SHARD_BYTES", 1500)  # the rows of two recordings are more
    flush, flushed = OnDisk._flush, []

    def leave_after_one(self: OnDisk) -> None:
        if flushed:
            raise KeyboardInterrupt
        flush(self)
        flushed.append(self.num_rows)

    with monkeypatch.context() as context, shelved(kept(tmp_path / "store")):
        context.setattr(OnDisk, "_flush", leave_after_one)
        with pytest.raises(KeyboardInterrupt):
            series()
    assert flushed
    with shelved(kept(tmp_path / "store")):
        resumed = series()
    assert_same(resumed, series())


def test_the_time_of_a_series_grows_with_its_files_not_their_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        np.save(tmp_path / f"{number:02}.npy", np.zeros((4, 1)))
    compared, equal = [], PurePath.__eq__

    def count(self: PurePath, other: object) -> bool:
        compared.append(self)
        return equal(self, other)

    monkeypatch.setattr(PurePath, "__eq__", count)
    assert len(Series(str(tmp_path / "*.npy"), ["x"], 4, 4)) == 60
    assert len(compared) < 600


@pytest.mark.usefixtures("small")
def test_of_two_readings_at_once_both_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, store = write(tmp_path) + "csv", tmp_path / "store"
    shelf = replace(store_shelf(StoreConfig(dir=store), Feedback()), is_kept=True)
    finish, other = OnDisk.finish, []

    def finish_second(self: OnDisk) -> Any:
        if not other:
            other.append(None)
            with shelved(kept(store)):
                other[0] = table(files)
        return finish(self)

    monkeypatch.setattr(OnDisk, "finish", finish_second)
    with shelved(shelf):
        slower = table(files)
    assert_same(slower, table(files))
    (directory,) = (store / "readings").iterdir()
    assert {path.name for path in directory.iterdir()} == {"columns", "manifest.json"}


@pytest.mark.usefixtures("small")
def test_pruning_leaves_what_is_being_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, store = write(tmp_path) + "csv", Store(tmp_path / "store")
    finish, pruned, left = OnDisk.finish, [], []

    def prune_first(self: OnDisk) -> Any:
        with pytest.warns(UserWarning, match="another process is making it: it stays"):
            pruned.extend(store.prune(set()))
        return finish(self)

    with monkeypatch.context() as context, shelved(kept(store.directory)):
        context.setattr(OnDisk, "finish", prune_first)
        assert_same(table(files), table(files))

    def prune_between(done: int, of: int) -> None:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            left.extend(store.prune(set()))

    split = Split(table(files), (), "data.train", lambda batch: None)
    entry = store.build("k", split, {}, 0, lambda: None, prune_between)
    assert [one.path.parent.name for one in left] == ["readings"]
    assert_same(EntrySource(entry), table(files))
    assert pruned == []
    assert [one.key for one in store.prune(set())] == ["k"]


def test_a_temporary_directory_that_was_taken_for_a_left_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lock, taken = fcntl.flock, []

    def take_first(file: Any, how: int) -> None:
        if not taken:
            taken.append(Path(file.name).parent)
            shutil.rmtree(taken[0])
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", take_first)
    made = Temporary()
    assert made.path != taken[0]
    assert list(tmp_path.iterdir()) == [made.path]
    Temporary().remove()
    assert made.path.exists()
    made.remove()


def test_another_version_of_the_readers_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write(tmp_path) + "csv"
    with shelved(kept(tmp_path / "store")):
        table(files)
        monkeypatch.setattr(shared, "_version", lambda: "another")
        table(files)
    assert len(list((tmp_path / "store" / "readings").iterdir())) == 2


def test_what_a_dead_process_left_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RanksFailed):
        on_ranks(1, leave_a_directory, str(tmp_path))
    (left,) = tmp_path.glob("fermarsi-readings-*")
    made, other = Temporary(), Temporary()
    assert not left.exists()
    assert made.path.exists(), "one in use stays"
    files = write(tmp_path) + "csv"
    with shelved(temporary_shelf(made.path)):
        mapped = table(files)
    made.remove()
    other.remove()
    assert_same(mapped, table(files))
    assert not list(tmp_path.glob("fermarsi-readings-*"))


def leave_a_directory(parent: str) -> None:
    tempfile.tempdir = parent
    Temporary()
    os.kill(os.getpid(), signal.SIGKILL)


def train_and_count(config: Path, folder: Path) -> list[Any]:
    """The files that this rank read, whether it mapped the others, and the exit code."""
    tempfile.tempdir = str(folder)
    read: list[str] = []
    pieces, opened = tables.read_pieces, shelf_module.read_columns
    mapped: list[str] = []

    def count(path: Path, *rest: Any) -> Any:
        read.append(path.name)
        return pieces(path, *rest)

    def note(directory: Path) -> Any:
        mapped.append(directory.name)
        return opened(directory)

    tables.read_pieces, shelf_module.read_columns = count, note
    code = launch(config, [])
    return [read, len(mapped), code]


def test_ranks_without_a_store_read_once_and_map_one_copy(tmp_path: Path) -> None:
    write(tmp_path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    config = tmp_path / "c.yaml"
    source = "_target_: harness.sources.tables.Table, features: [x0, x1], columns: {group: text}"
    config.write_text(
        f"""
run: {{dir: {tmp_path / "run"}}}
data:
  train:
    source: {{files: {tmp_path / "a0.csv"}, {source}}}
    treatments: &same [{{_target_: harness.treatments.Encode, key: group}}]
  val: {{source: {{files: {tmp_path / "a1.csv"}, {source}}}, treatments: *same}}
network: {{_target_: harness.networks.Mlp, dims: [2, 7]}}
task: {{_target_: harness.tasks.Classification, input: features, target: group}}
batch: {{size: 40, micro_size: 20}}
optimizer: {{_target_: torch.optim.SGD, lr: 0.1}}
stop: {{every: {{epochs: 1}}, budget: {{epochs: 1}}}}
"""
    )
    first, second = on_ranks(2, train_and_count, config, temporary)
    assert first == [["a0.csv", "a1.csv"], 0, 0]
    assert second == [[], 2, 0]
    assert not list(temporary.iterdir())


def peak_of_reading(path: str, store: str) -> int:
    """Bytes: the most memory beyond that before, of pages that are no file's."""
    readings.SHARD_BYTES = 2**22
    most = 0

    def anonymous() -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

    before = anonymous()

    def look(what: str, done: int, of: int) -> None:
        nonlocal most
        most = max(most, anonymous() - before)

    shelf = kept(Path(store))
    shelf.progress = look
    with shelved(shelf):
        source = Table(path, [f"x{at}" for at in range(8)])
    assert len(source) == 2_400_000
    return most


def test_a_file_larger_than_memory_is_read_in_little_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    draw = np.random.default_rng(0)
    one = pa.table({f"x{at}": draw.normal(size=100_000) for at in range(8)})
    # Neither is worth its time for random numbers
    with pq.ParquetWriter(path, one.schema, use_dictionary=False, compression="none") as file:
        for _ in range(24):
            file.write_table(one)
    (peak,) = on_ranks(1, peak_of_reading, str(path), str(tmp_path / "store"))
    values = 2_400_000 * 8 * 8
    assert peak < 0.75 * values, f"{peak:,} of {values:,} bytes of values"
