"""Media held in memory: decoded once for all processes of a launch; tables of files, mapped."""

import os
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from harness.commands.data import build_store, inspect_store, prune_store
from harness.commands.predict import PredictionRequest
from harness.commands.trained import load_trained, open_split
from harness.data import readings
from harness.data import shelf as shelf_module
from harness.data.preparing import Feedback, store_shelf
from harness.data.settings import StoreConfig
from harness.data.shelf import Shelf, shelved, temporary_shelf
from harness.errors import DataError
from harness.sources import csv_files, listed, shared, table_files
from harness.sources.audio import Recordings
from harness.sources.collection import Collection
from harness.sources.images import Images
from harness.sources.listed import listed_files
from harness.sources.series import Series
from harness.sources.split import ByGroup
from harness.sources.tables import Table
from harness.sources.video import Clips
from harness.training.launch import launch
from tests.data.test_readings import assert_same
from tests.pool import RanksFailed, on_ranks
from tests.sources.make_motion import write

COUNT = 12


def make_images(folder: Path) -> partial[Images]:
    for at in range(COUNT):
        path = folder / f"c{at % 3}" / f"s{at % 4}_{at:02}.png"
        path.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(at).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    (folder / "c0" / "s0_05.png").write_bytes(b"no image")
    files = str(folder / "c{label}/{who}_*.png")
    rule = ByGroup("who", val=0, test=0.25)
    return partial(Images, files, part="train", split=rule, on_error="skip")


def make_sounds(folder: Path) -> partial[Recordings]:
    for at in range(4):
        wave = np.random.default_rng(at).uniform(-0.5, 0.5, (900 + 350 * at, 2))
        soundfile.write(folder / f"{at}.wav", wave, 8000)
    (folder / "0.wav").write_bytes(b"no sound")
    files = str(folder / "*.wav")
    return partial(Recordings, files, 8000, 0.05, channels=2, hop_s=0.03, on_error="skip")


def make_films(folder: Path) -> partial[Clips]:
    for at in range(3):
        noise = np.random.default_rng(at).integers(0, 256, (9 + at, 16, 24), dtype=np.uint8)
        write(folder / f"{at}.mkv", noise, "ffv1", "gray")
    (folder / "1.mkv").write_bytes(b"no film")
    return partial(Clips, str(folder / "*.mkv"), frames=3, stride=2, step=2, on_error="skip")


MAKERS: list[Callable[[Path], partial[Any]]] = [make_images, make_sounds, make_films]


@pytest.mark.filterwarnings("ignore:1 of .* files skipped")
@pytest.mark.parametrize("make", MAKERS)
def test_what_another_process_decoded_is_mapped_and_the_same(
    tmp_path: Path, make: Callable[[Path], partial[Any]], monkeypatch: Any
) -> None:
    opened, shelf = make(tmp_path), tmp_path / "shelf"
    fresh = opened()
    with shelved(temporary_shelf(shelf)):
        assert_same(opened(), fresh)
    monkeypatch.setattr(Collection, "_read_rows", None)  # nothing is decoded again
    for kind in (Images, Recordings, Clips):
        monkeypatch.setattr(kind, "_read_rows", None)
    with shelved(temporary_shelf(shelf)):
        again = opened()
    assert_same(again, fresh)
    assert again.skipped == fresh.skipped
    assert len(again.skipped) == 1
    assert again.classes == fresh.classes
    assert again.paths() == fresh.paths()


def hold(opened: partial[Any], directory: str, kill_at: int | None) -> tuple[set[str], Any]:
    """The files that are decoded, and the source; killed when it would decode one more."""
    readings.SHARD_BYTES = 1  # each file is written at once
    decoded, kind = set[str](), opened.func
    read_rows = kind._read_rows

    def read(self: Any, path: Path) -> Any:
        if len(decoded) == kill_at and path.name not in decoded:
            os.kill(os.getpid(), signal.SIGKILL)
        decoded.add(path.name)
        return read_rows(self, path)

    kind._read_rows = read
    store = StoreConfig(dir=Path(directory), samples=False)
    with shelved(store_shelf(store, Feedback())), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "1 of .* files skipped")
        source = opened()
    return decoded, source


@pytest.mark.filterwarnings("ignore:1 of .* files skipped")
@pytest.mark.parametrize("make", MAKERS)
def test_decoding_goes_on_after_a_kill_and_gives_the_same(
    tmp_path: Path, make: Callable[[Path], partial[Any]]
) -> None:
    opened, store = make(tmp_path), str(tmp_path / "store")
    fresh = opened()
    with pytest.raises(RanksFailed, match=r"signal 9|SIGKILL"):
        on_ranks(1, hold, opened, store, 2)
    ((decoded, again),) = on_ranks(1, hold, opened, store, None)
    # Of the two before the kill one may be broken
    done = {path.name for path in fresh.files.paths} - decoded
    assert 1 <= len(done) <= 2
    assert decoded
    assert_same(again, fresh)
    assert again.skipped == fresh.skipped
    ((decoded, mapped),) = on_ranks(1, hold, opened, store, None)
    assert decoded == set()
    assert_same(mapped, fresh)


def count_reads(config: Path, temporary: Path) -> list[Any]:
    """The image files that a rank decodes in a training, and what it maps of them."""
    tempfile.tempdir = str(temporary)
    decoded: Counter[str] = Counter()
    mapped: list[Path] = []
    read_rows, read_columns = Images._read_rows, shelf_module.read_columns

    def read(self: Images, path: Path) -> Any:
        decoded[path.name] += 1
        return read_rows(self, path)

    def note(directory: Path) -> Any:
        mapped.append(directory)
        return read_columns(directory)

    Images._read_rows = read  # type: ignore[method-assign]
    shelf_module.read_columns = note
    code = launch(config, [])
    return [sum(decoded.values()), max(decoded.values(), default=0), len(mapped), code]


def write_config(folder: Path, more: str = "") -> Path:
    """Of a training on twelve images."""
    make_images(folder)
    (folder / "c0" / "s0_05.png").unlink()
    config = folder / "c.yaml"
    files = folder / "c{label}/{who}_*.png"
    source = f"""_target_: harness.sources.images.Images, files: '{files}',
      split: {{_target_: harness.sources.split.ByGroup, column: who, val: 0.25, test: 0}}"""
    config.write_text(
        f"""
run: {{dir: {folder / "run"}}}
data:
  {more}
  train:
    source: {{{source}, part: train}}
    treatments: &same [{{_target_: harness.treatments.ToFloat, key: image}}]
  val: {{source: {{{source}, part: val}}, treatments: *same}}
network: {{_target_: harness.networks.Mlp, dims: [256, 3]}}
task: {{_target_: harness.tasks.Classification, input: image, target: label}}
batch: {{size: 4, micro_size: 2}}
optimizer: {{_target_: torch.optim.SGD, lr: 0.1}}
stop: {{every: {{epochs: 1}}, budget: {{epochs: 1}}}}
"""
    )
    return config


def test_ranks_without_a_store_decode_each_image_once(tmp_path: Path) -> None:
    config, temporary = write_config(tmp_path), tmp_path / "tmp"
    temporary.mkdir()
    first, second = on_ranks(2, count_reads, config, temporary)
    assert first == [COUNT, 1, 0, 0]
    assert second == [0, 0, 2, 0]
    assert not list(temporary.iterdir())


def test_a_store_without_samples_has_what_was_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    config = write_config(tmp_path, f"store: {{dir: {store}, samples: false}}")
    assert len(build_store(config, ()).rows) == 2
    assert not list(store.glob("*/shard-*")), "no samples"
    monkeypatch.setattr(Images, "_read_rows", None)  # nothing is decoded again
    assert launch(config, []) == 0
    trained = load_trained(tmp_path / "run", (f"{tmp_path}/",))
    assert len(open_split(trained, "val")) == 3, "for evaluate and predict too"
    assert sorted(row.used_by for row in inspect_store(config, ()).rows) == ["train", "val"]
    assert prune_store([config]) == []
    assert len(list((store / "readings").iterdir())) == 2


def test_processes_of_a_prediction_decode_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch(write_config(tmp_path), []) == 0
    out, allow = tmp_path / "p.csv", (f"{tmp_path}/",)
    request = PredictionRequest(
        tmp_path / "run", "val", "", out, allow, readings=tmp_path / "r", several=True
    )
    _, first, _ = request.open()
    shared._IN_USE.clear()  # as in another process
    monkeypatch.setattr(Images, "_read_rows", None)
    _, second, _ = request.open()
    assert_same(second.source, first.source)
    assert isinstance(second.source._arrays.base, np.memmap)


def test_what_was_skipped_is_told_by_each_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the reading is mapped."""
    for at in range(2):
        (tmp_path / f"{at}.csv").write_text("x,y\n1,2\n3,4\n5,6\n")
    (tmp_path / "1.csv").write_text("x,y\n1,word\n")
    films = tmp_path / "films"
    films.mkdir()
    tables = str(tmp_path / "*.csv")
    for count, opened in (
        (3, make_films(films)),
        (2, lambda: Table(tables, ["x", "y"], on_error="skip")),
        (2, lambda: Series(tables, ["x", "y"], 2, 2, on_error="skip")),
    ):
        for _ in range(2):
            with (
                shelved(temporary_shelf(tmp_path / "shelf")),
                pytest.warns(UserWarning, match=f"^1 of {count} files skipped: ") as told,
            ):
                opened()
            assert len(told) == 1
    assert len(list((tmp_path / "shelf").iterdir())) == 3, "each is read once"


class Brighter(Images):
    """A class of somebody else, whose code and arguments are in no key."""

    def __init__(self, files: str, by: int) -> None:
        self.by = by
        super().__init__(files)

    def _read(self, path: Path) -> Any:
        return super()._read(path) + np.uint8(self.by)


def test_what_other_classes_decode_is_not_shared(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", (1, 1))
    for by in (3, 9):
        with shelved(temporary_shelf(tmp_path / "shelf")):
            source = Brighter(str(tmp_path / "a.png"), by)
        assert (source[0]["image"] == by).all()


@pytest.mark.parametrize("as_kept", [False, True])
def test_a_row_whose_file_is_gone_is_skipped_with_a_shelf_too(
    tmp_path: Path, as_kept: bool
) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("file_name\na.png\ngone.png\n")
    files, store = str(tmp_path / "list.csv"), tmp_path / "store"
    with shelved(kept(store) if as_kept else temporary_shelf(store)):
        with pytest.raises(DataError, match=r"gone\.png: there is no such file"):
            Images(files)
        with pytest.warns(UserWarning, match=r"^1 of 2 files skipped: .*no such file"):
            assert len(Images(files, on_error="skip")) == 1
    assert Images.paths_of(files) == [Path(files), tmp_path / "a.png"]


def test_lists_of_one_content_in_two_folders_list_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Projects that share a store, each with a path from its own folder."""
    for at, project in enumerate(("one", "two")):
        (tmp_path / project).mkdir()
        monkeypatch.chdir(tmp_path / project)
        Image.fromarray(np.full((4, 4), at, np.uint8)).save("a.png")
        Path("list.csv").write_text("file_name\na.png\n")
        with shelved(kept(tmp_path / "store")):
            source = Images("list.csv")
        assert list(source.files.paths) == [tmp_path / project / "a.png"]
        assert (source[0]["image"] == at).all()


def test_lists_may_have_their_columns_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "SHARD_BYTES", 1)  # each table is one shard
    (tmp_path / "1.csv").write_text("file_name,label,site\na.png,dog,rome\n")
    (tmp_path / "2.csv").write_text("site,file_name,label\noslo,b.png,cat\n")
    with shelved(kept(tmp_path / "store")):
        found, _ = listed_files(str(tmp_path / "*.csv"))
    assert {name: list(column) for name, column in found.fields.items()} == {
        "label": ["dog", "cat"],
        "site": ["rome", "oslo"],
    }


def kept(directory: Path) -> Shelf:
    return store_shelf(StoreConfig(dir=directory), Feedback())


def make_table(folder: Path, count: int) -> str:
    """Ends of names and classes in other orders than the rows."""
    rows = [f"d{at * 7 % 5}/{at * 31 % count:05}.png,k{at % 3},{at}" for at in range(count)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,age", *rows]) + "\n")
    return str(folder / "metadata.csv")


def in_small_pieces() -> None:
    readings.SHARD_BYTES, table_files._ROWS_AT_ONCE, readings._FEW = 9000, 40, 16
    csv_files._BLOCK = 4000


def list_and_be_killed(files: str, directory: str, at: int) -> None:
    in_small_pieces()
    calls, written = 0, readings._rename

    def rename(made: Path, path: Path, *, sync: bool) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        written(made, path, sync=sync)

    readings._rename = rename
    with shelved(kept(Path(directory))):
        listed_files(files)


def list_in_small_pieces(files: str, directory: str) -> tuple[int, list[str], list[str]]:
    in_small_pieces()
    appended = 0
    append = readings.OnDisk.append

    def count(self: readings.OnDisk, piece: Any, state: Any) -> None:
        nonlocal appended
        appended += len(next(iter(piece.values())))
        append(self, piece, state)

    readings.OnDisk.append = count  # type: ignore[method-assign]
    with shelved(kept(Path(directory))):
        found, _ = listed_files(files)
        assert isinstance(found.paths._names, readings.Words), "no Python text for each file"
    return appended, list(map(str, found.paths)), list(found.fields["label"])


def test_a_list_of_files_goes_on_after_a_kill_and_is_mapped_afterwards(tmp_path: Path) -> None:
    count = 1000
    files, store = make_table(tmp_path, count), str(tmp_path / "store")
    with pytest.raises(RanksFailed, match=r"signal 9|SIGKILL"):
        on_ranks(1, list_and_be_killed, files, store, 3)
    plain, _ = listed_files(files)
    expected = sorted(
        (tmp_path / f"d{at * 7 % 5}/{at * 31 % count:05}.png", f"k{at % 3}") for at in range(count)
    )
    assert list(plain.paths) == [path for path, _ in expected]
    assert list(plain.fields["label"]) == [label for _, label in expected]
    ((appended, paths, labels),) = on_ranks(1, list_in_small_pieces, files, store)
    assert 0 < appended < count + count, "the order is new, some rows were there"
    assert (paths, labels) == ([str(one) for one, _ in expected], [of for _, of in expected])
    ((appended, paths, labels),) = on_ranks(1, list_in_small_pieces, files, store)
    assert (appended, len(paths)) == (0, count)


def test_a_part_of_listed_files_is_chosen_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shared, "_MANY", 50)
    count = 60
    files = make_table(tmp_path, count)
    for at in range(count):
        path = tmp_path / f"d{at * 7 % 5}/{at * 31 % count:05}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4), at, np.uint8)).save(path)

    def images() -> Images:
        rule = ByGroup("age", val=0.25, test=0)
        columns = {"age": "number"}
        return Images(files, "train", rule, None, columns, keep="disk", check="first")  # type: ignore[arg-type]

    fresh = images()
    assert fresh.paths() == [Path(files)], "what the table lists is trusted"
    assert Images.paths_of(files, check="first") == [Path(files)]
    assert len(Images.paths_of(files)) == count + 1
    with shelved(kept(tmp_path / "store")):
        assert_same(images(), fresh)
    monkeypatch.setattr(listed, "read_pieces", None)
    monkeypatch.setattr(ByGroup, "parts", None)
    with shelved(kept(tmp_path / "store")):
        again = images()
    assert_same(again, fresh)
    assert again[0]["image"][0, 0, 0] == again[0]["age"]


def test_how_far_the_reading_of_a_list_and_of_its_files_is_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in (
        (readings, "SHARD_BYTES", 9000),
        (table_files, "_ROWS_AT_ONCE", 40),
        (csv_files, "_BLOCK", 4000),
    ):
        monkeypatch.setattr(module, name, value)
    files, told = make_table(tmp_path, 1000), list[tuple[str, int, int]]()
    feedback = Feedback(progress=lambda *progress: told.append(progress))
    shelf = store_shelf(StoreConfig(dir=tmp_path / "store", samples=False), feedback)
    with shelved(shelf):
        listed_files(files)
    size = Path(files).stat().st_size
    assert {(what, of) for what, _, of in told} == {(f"reading {files}", size)}
    done = [done for _, done, _ in told]
    assert len(done) > 3
    assert done == sorted(done)
    assert 0.9 * size < done[-1] <= size
    assert len({*done}) >= 3, "it moves"

    told.clear()
    make_images(tmp_path)
    (tmp_path / "c0" / "s0_05.png").unlink()
    with shelved(shelf):
        Images(str(tmp_path / "c{label}" / "*.png"))
    assert told == [("reading files", number, COUNT) for number in range(COUNT)]

    class LeftError(Exception):
        pass

    def leave() -> None:
        if len(told) == 2:
            raise LeftError

    told.clear()
    shelf.check_leave = leave
    with shelved(shelf), pytest.raises(LeftError):
        listed_files(make_table(tmp_path, 999))
    assert len(told) == 2
