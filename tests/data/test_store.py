"""Samples kept ready in a store, and what decides when they are made anew."""

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data import store as store_module
from harness.data.split import Split
from harness.data.store import EntrySource, Store
from harness.errors import DataError
from tests.pool import RanksFailed, on_ranks

MADE_OF = {"split": "train", "source": {"_target_": "x.Y"}, "treatments": []}


class Mixed:
    """Sample i: a fixed row, a ragged one of i % 5 + 1 steps, a text and a number.

    `first_read`: the first sample that was read.
    """

    def __init__(self, count: int = 300, stop_at: int | None = None) -> None:
        self.count = count
        self.stop_at = stop_at
        self.first_read = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index == self.stop_at:
            raise OSError("the disk is gone")
        self.first_read = min(self.first_read, index)
        steps = np.arange(2 * (index % 5 + 1), dtype=np.float32).reshape(-1, 2) + index
        return {
            "row": np.full(3, index, dtype=np.int16),
            "steps": steps,
            "name": f"näme {index}",
            "y": index,
        }

    def known(self) -> Mapping[str, list[str]]:
        return {"speaker": [str(index % 7) for index in range(self.count)]}


def split(source: Any) -> Split:
    return Split(source, (), "data.train", lambda batch: None)


def build(directory: Path, source: Any, key: str = "k", check_leave: Any = lambda: None) -> Path:
    return Store(directory).build(
        key, split(source), MADE_OF, 0, check_leave, lambda done, of: None
    )


@pytest.fixture(params=[None, 700], ids=["one shard", "many shards"])
def shards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(store_module, "SHARD_BYTES", request.param)


@pytest.mark.usefixtures("shards")
def test_what_was_kept_is_what_the_source_gives(tmp_path: Path) -> None:
    source = Mixed()
    stored = EntrySource(build(tmp_path, source))
    assert len(stored) == 300
    assert stored.known() == source.known()
    for indices in ([0], [299, 3, 3, 150], list(range(300)), [5, 10, 15, 295]):
        kept = split(stored).fetch(
            np.array(indices), np.zeros(len(indices), np.uint64), 0, training=True
        )
        fresh = split(source).fetch(
            np.array(indices), np.zeros(len(indices), np.uint64), 0, training=True
        )
        assert kept.keys() == fresh.keys()
        for name, values in fresh.items():
            for one, other in zip(kept[name], values, strict=True):
                assert one == other if isinstance(one, str) else torch.equal(one, other)
    assert kept["steps"].shape == (4, 1, 2), "samples of one shape come as one tensor"


class StopBuildError(Exception):
    pass


def test_a_build_goes_on_where_an_interrupted_one_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 700)
    calls = 0

    def check_leave() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise StopBuildError

    with pytest.raises(StopBuildError):
        build(tmp_path, Mixed(), check_leave=check_leave)
    assert Store(tmp_path).find("k") is None
    assert [entry.num_samples for entry in Store(tmp_path).entries()] == [None]
    again = Mixed()
    build(tmp_path, again)
    assert again.first_read == 3 * store_module.BLOCK_SAMPLES, (
        "three shards of a block each were whole"
    )
    build(tmp_path / "other", Mixed())
    files = sorted(
        path.relative_to(tmp_path / "other") for path in (tmp_path / "other").rglob("*.npy")
    )
    assert files
    assert all(
        (tmp_path / file).read_bytes() == (tmp_path / "other" / file).read_bytes() for file in files
    )


def build_and_be_killed(directory: str, at_block: int) -> None:
    store_module.SHARD_BYTES = 700
    calls = 0

    def check_leave() -> None:
        nonlocal calls
        calls += 1
        if calls == at_block:
            os.kill(os.getpid(), signal.SIGKILL)

    build(Path(directory), Mixed(), check_leave=check_leave)


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 700)
    for _ in range(3):
        with pytest.raises(RanksFailed, match=r"signal 9|SIGKILL"):
            on_ranks(1, build_and_be_killed, str(tmp_path), 2)
        assert Store(tmp_path).find("k") is None
    (tmp_path / "k" / ".shard-00004-dead").mkdir()  # a kill in the middle of a write
    stored = EntrySource(build(tmp_path, Mixed()))
    assert [sample["y"] for sample in (stored[index] for index in range(300))] == list(range(300))
    assert not list((tmp_path / "k").glob(".shard*"))


def test_two_builds_at_a_time_make_one_entry(tmp_path: Path) -> None:
    on_ranks(2, build_slowly, str(tmp_path))
    assert [
        sample["y"] for sample in (EntrySource(tmp_path / "k")[index] for index in range(300))
    ] == list(range(300))


def build_slowly(directory: str) -> None:
    store_module.SHARD_BYTES = 700
    build(Path(directory), Mixed(), check_leave=lambda: time.sleep(0.01))


def test_a_sample_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data\.train: OSError while reading samples .*the disk is gone"
    ):
        build(tmp_path, Mixed(stop_at=100))


def test_a_full_disk_is_told_and_what_is_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 700)
    save, calls = store_module._save, 0

    def full(path: Path, array: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 18:
            raise OSError(28, "No space left on device", str(path))
        save(path, array)

    monkeypatch.setattr(store_module, "_save", full)
    with pytest.raises(DataError, match=r"No space left on device.*data\.store\.dir"):
        build(tmp_path, Mixed())
    monkeypatch.setattr(store_module, "_save", save)
    again = Mixed()
    assert len(EntrySource(build(tmp_path, again))) == 300
    assert again.first_read == 3 * store_module.BLOCK_SAMPLES


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest"])
def test_a_damaged_entry_is_refused(tmp_path: Path, damage: str) -> None:
    entry = build(tmp_path, Mixed())
    file = entry / "shard-00000" / "row.npy"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        file.unlink()
    else:
        (entry / "manifest.json").write_text(
            json.dumps({**json.loads((entry / "manifest.json").read_text()), "num_samples": 301})
        )
    with pytest.raises(DataError, match=r"Delete .*it will be built again"):
        EntrySource(entry)


def test_pruning_keeps_what_is_used(tmp_path: Path) -> None:
    for key in ("a", "b", "c"):
        build(tmp_path, Mixed(10), key)
    assert [entry.key for entry in Store(tmp_path).prune({"b"})] == ["a", "c"]
    assert [entry.key for entry in Store(tmp_path).entries()] == ["b"]


def test_what_is_known_is_mapped_and_equals_what_the_source_said(tmp_path: Path) -> None:
    """Few words and one a sample, empty ones, odd characters; entries of format 1 are read too."""
    count = 70_000
    columns = {
        "of its own": [f"s{at}" for at in range(count)],
        "odd": [*["", "ü\n\x00", "\udc80"] * (count // 3), ""],
    }

    class Known(Mixed):
        def __getitems__(self, indices: list[int]) -> dict[str, Any]:
            return {"x": np.array(indices, np.float32)}

        def known(self) -> Mapping[str, list[str]]:
            return columns

    path = build(tmp_path, Known(count))
    found = EntrySource(path).known()
    assert dict(found) == columns
    assert found["of its own"][-1] == f"s{count - 1}"
    assert list(found["of its own"][3:5]) == ["s3", "s4"]
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["known"]
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    (path / "known.json").write_text(json.dumps(columns))
    assert dict(EntrySource(path).known()) == columns
