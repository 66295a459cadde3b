"""The history of evaluations: a file that the checkpoints of a launch share, each vouching for the
rows up to its own step.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint import exact_json, history
from harness.checkpoint.history import read_history
from harness.checkpoint.manifest import HISTORY, MANIFEST, parse_manifest
from harness.checkpoint.read import choose, inspect, list_checkpoints
from harness.checkpoint.retention import Retention
from harness.checkpoint.write import CheckpointStore
from harness.errors import CheckpointError
from tests.checkpoint.examples import (
    LOSS,
    assert_is_step,
    history_of,
    names_in,
    save_steps,
    snapshot,
    store_in,
)
from tests.checkpoint.test_damage import rewrite


@pytest.fixture(autouse=True)
def _shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in runs of many evaluations."""
    monkeypatch.setattr(history, "SHARED_FROM_BYTES", 0)


def save(store: CheckpointStore, step: int, **changes: Any) -> str | None:
    """Save and wait; why it failed."""
    store.save(snapshot(step, **changes), LOSS)
    store.wait()
    (report,) = store.reports()
    return report.error


def file_of(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08}" / HISTORY


def inodes(directory: Path) -> list[int]:
    return [file.stat().st_ino for file in sorted(directory.glob(f"step-*/{HISTORY}"))]


def assert_all_whole(directory: Path, steps: list[int]) -> None:
    assert [one.step for one in list_checkpoints(directory, "full")] == steps
    for step in steps:
        assert inspect(directory / f"step-{step:08}", verify="full").problems == []
        assert_is_step(directory / f"step-{step:08}", step)


def test_checkpoints_of_a_launch_share_a_file_and_each_has_its_own_rows(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    assert len(set(inodes(tmp_path))) == 1
    assert_all_whole(tmp_path, [1, 2, 3])
    lines = file_of(tmp_path, 1).read_bytes().splitlines(keepends=True)
    # By another reader: plain JSON, floats in hex
    loss = json.loads(lines[6])["metrics"]["val/loss"]
    assert float.fromhex(loss["~float"]) == 1 / 7
    for step in (1, 2, 3):
        manifest = parse_manifest((file_of(tmp_path, step).parent / MANIFEST).read_bytes())
        assert manifest.num_evaluations == 3 * step
        assert manifest.files[HISTORY].size_bytes == len(b"".join(lines[: 3 * step]))


def test_a_short_history_is_each_checkpoints_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte that changes in the one costs the others nothing."""
    monkeypatch.undo()
    save_steps(tmp_path, 1, 2, 3)
    assert len(set(inodes(tmp_path))) == 3
    assert_all_whole(tmp_path, [1, 2, 3])
    file = file_of(tmp_path, 3)
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    assert [bool(one.problems) for one in list_checkpoints(tmp_path)] == [False, False, True]
    found = choose(tmp_path, "auto").path
    assert found is not None
    assert found.name == "step-00000002"


def test_a_history_that_grows_long_is_shared_from_there_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path / "first", 1, 2)
    size_bytes = file_of(tmp_path / "first", 2).stat().st_size
    monkeypatch.setattr(history, "SHARED_FROM_BYTES", size_bytes)
    save_steps(tmp_path / "run", 1, 2, 3, 4)
    first, second, third, fourth = inodes(tmp_path / "run")
    assert first != second
    assert second == third == fourth
    assert_all_whole(tmp_path / "run", [1, 2, 3, 4])


def test_a_checkpoint_that_is_copied_elsewhere_is_whole(tmp_path: Path) -> None:
    save_steps(tmp_path / "run", 1, 2)
    elsewhere = tmp_path / "other" / "step-00000001"
    shutil.copytree(tmp_path / "run" / "step-00000001", elsewhere)
    shutil.rmtree(tmp_path / "run")
    assert inspect(elsewhere, verify="full").problems == []
    assert_is_step(elsewhere, 1)


def test_another_launch_leaves_the_file_of_the_one_before_alone(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    before = file_of(tmp_path, 2).read_bytes()
    save_steps(tmp_path, 3, 4)
    first, second, third, fourth = inodes(tmp_path)
    assert first == second != third == fourth
    assert file_of(tmp_path, 2).read_bytes() == before
    assert file_of(tmp_path, 4).read_bytes().startswith(before)
    assert_all_whole(tmp_path, [1, 2, 3, 4])


def test_whatever_is_deleted_set_aside_or_replaced_the_others_keep_their_rows(
    tmp_path: Path,
) -> None:
    store = store_in(tmp_path, retention=Retention(keep_last=1))
    for step in (1, 2, 3):
        assert save(store, step) is None
    assert_all_whole(tmp_path, [3])
    assert save(store, 3, metrics={"val/loss": 1.0}) is None  # again, now with metrics
    assert_all_whole(tmp_path, [3])
    store.close()
    save_steps(tmp_path, 3)  # by another launch
    (aside,) = tmp_path.glob("aside-step-00000003-*")
    assert inspect(aside, verify="full").problems == []
    assert read_history(aside) is not None
    assert_all_whole(tmp_path, [3])
    assert names_in(tmp_path, lambda name: name.startswith(".")) == []


def test_a_save_looks_at_new_rows_alone(tmp_path: Path) -> None:
    """Copying a history that grows made saves slower (NVlabs/GR00T-WholeBodyControl#200)."""

    class Rows(list[Any]):
        """A history that notes what is looked at."""

        seen: list[int]

        def __getitem__(self, index: Any) -> Any:
            self.seen.append(index)
            return super().__getitem__(index)

        def __iter__(self) -> Any:
            raise AssertionError("all of the history is gone through")

    known = history_of(100) * 20
    store = store_in(tmp_path)
    for step, count, new in ((1, 5999, 5999), (2, 6000, 1), (3, 6000, 0)):
        rows = Rows(known[:count])
        rows.seen = []
        assert save(store, step, history=rows) is None
        assert rows.seen == list(range(count - new, count))
    store.close()
    assert file_of(tmp_path, 3).read_bytes() == b"".join(map(exact_json.dumps, known))


# -- disks


def refusal(code: int) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize(
    "code", [errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.EIO, errno.EACCES]
)
def test_where_no_link_can_be_made_it_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """EIO: gRPC-FUSE on FAT (docker/for-mac#5036); EPERM: BeeGFS (NixOS/nix#3748), FAT; EACCES:
    Android (oven-sh/bun#36853).
    """
    monkeypatch.setattr(os, "link", refusal(code))
    save_steps(tmp_path, 1, 2, 3)
    assert len(set(inodes(tmp_path))) == 3
    assert_all_whole(tmp_path, [1, 2, 3])
    os.truncate(file_of(tmp_path, 3), 0)
    assert choose(tmp_path, "auto").path == tmp_path / "step-00000002"


def test_a_link_that_was_made_and_reported_as_failed_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS after a lost answer, and docker/for-mac#4496."""
    link = os.link

    def deny(*args: Any) -> None:
        link(*args)
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", deny)
    save_steps(tmp_path, 1, 2)
    assert len(set(inodes(tmp_path))) == 1
    assert_all_whole(tmp_path, [1, 2])


def half_a_write(descriptor: int, data: Any, offset: int) -> int:
    """Of the history; then the disk is full."""
    if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name != HISTORY:
        return real_pwrite(descriptor, data, offset)
    real_pwrite(descriptor, data[: len(data) // 2], offset)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


real_pwrite, real_fsync, real_rename = os.pwrite, os.fsync, os.rename


def no_fsync(descriptor: int) -> None:
    if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name == HISTORY:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    real_fsync(descriptor)


def no_commit(source: Any, target: Any) -> None:
    if Path(target).name.startswith("step-"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    real_rename(source, target)


@pytest.mark.parametrize(
    ("name", "call"), [("pwrite", half_a_write), ("fsync", no_fsync), ("rename", no_commit)]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_save_that_failed_leaves_no_trace_in_the_next(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: Callable[..., Any],
    first: bool,
) -> None:
    """A failed append must not leave its bytes in the midst of the file (HarperFast/rocksdb-js#748,
    pmcfadin/cqlite#1390).
    """
    store = store_in(tmp_path, retention=Retention(keep_last=9))
    if not first:
        assert save(store, 1) is None
    with monkeypatch.context() as patched:
        patched.setattr(os, name, call)
        for step in (2, 3):
            assert save(store, step) is not None
    kept = [] if first else [1]
    assert_all_whole(tmp_path, kept)
    for step in (3, 4):
        assert save(store, step) is None
    store.close()
    assert_all_whole(tmp_path, [*kept, 3, 4])
    assert len(set(inodes(tmp_path))) == 1


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: os.truncate(file, 10),
        lambda file: shutil.rmtree(file.parent),
    ],
    ids=["gone", "cut short", "its checkpoint gone"],
)
def test_a_file_that_somebody_took_away_is_written_anew(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    store = store_in(tmp_path, retention=Retention(keep_last=9))
    assert save(store, 1) is None
    harm(file_of(tmp_path, 1))
    for step in (2, 3):
        assert save(store, step) is None
        assert_is_step(tmp_path / f"step-{step:08}", step)
    store.close()
    assert choose(tmp_path, "auto").path == tmp_path / "step-00000003"


def test_a_copy_of_a_file_that_was_changed_is_refused_and_then_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusal(errno.EPERM))
    store = store_in(tmp_path)
    assert save(store, 1) is None
    data = file_of(tmp_path, 1).read_bytes()
    file_of(tmp_path, 1).write_bytes(b"X" + data[1:])
    assert "no longer what was written" in str(save(store, 2))
    assert save(store, 3) is None
    assert_is_step(tmp_path / "step-00000003", 3)


def test_more_evaluations_than_a_checkpoint_holds_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    assert save(store, 1) is None
    monkeypatch.setattr(history, "MAX_HISTORY_BYTES", 500)
    assert "60 evaluations are more than a checkpoint holds (500 bytes). Evaluate less" in str(
        save(store, 20)
    )
    assert_all_whole(tmp_path, [1])


# -- damage


@pytest.mark.parametrize("tail", [b"", b"\x00" * 5000, b'{"step": 9, "metr', b"\xff\n\n"])
def test_what_stands_behind_the_rows_of_a_checkpoint_is_not_read(
    tmp_path: Path, tail: bytes
) -> None:
    save_steps(tmp_path, 1, 2)
    os.truncate(file_of(tmp_path, 1), inspect_size(tmp_path, 1))
    with file_of(tmp_path, 1).open("ab") as file:
        file.write(tail)
    assert inspect(tmp_path / "step-00000001", verify="full").problems == []
    assert_is_step(tmp_path / "step-00000001", 1)
    choice = choose(tmp_path, "auto", verify="size")
    assert choice.path == tmp_path / "step-00000001"
    assert "step-00000002: skipped, not valid: history.jsonl: " in choice.skipped[0]


def inspect_size(directory: Path, step: int) -> int:
    manifest = inspect(directory / f"step-{step:08}").manifest
    assert manifest is not None
    return manifest.files[HISTORY].size_bytes


@pytest.mark.parametrize("verify", ["size", "full"])
def test_a_flip_among_later_rows_harms_the_later_checkpoint_alone(
    tmp_path: Path, verify: Any
) -> None:
    save_steps(tmp_path, 1, 2)
    data = bytearray(file_of(tmp_path, 2).read_bytes())
    data[inspect_size(tmp_path, 1)] ^= 1
    file_of(tmp_path, 2).write_bytes(data)  # the same file
    choice = choose(tmp_path, "auto", verify=verify)
    assert choice.path == tmp_path / "step-00000001"
    assert "history.jsonl: its SHA-256 is not the one" in choice.skipped[0]
    with pytest.raises(CheckpointError, match=r"history\.jsonl: its SHA-256 is not the one"):
        read_history(tmp_path / "step-00000002")


def test_a_manifest_that_claims_terabytes_is_refused_before_they_are_read(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    shutil.copy(file_of(tmp_path, 2), tmp_path / "own")
    os.replace(tmp_path / "own", file_of(tmp_path, 2))
    os.truncate(file_of(tmp_path, 2), 2**42)

    def grow(body: dict[str, Any]) -> None:
        body["files"][HISTORY]["size_bytes"] = 2**42

    rewrite(tmp_path / "step-00000002", grow)
    assert inspect(tmp_path / "step-00000002").problems == [
        f"{HISTORY}: {2**42} bytes; no more than {2**31} are read"
    ]
    assert choose(tmp_path, "auto").path == tmp_path / "step-00000001"


def test_a_manifest_that_counts_otherwise_is_found_out(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    rewrite(tmp_path / "step-00000001", lambda body: body.update(num_evaluations=4))
    with pytest.raises(CheckpointError, match="3 evaluations instead of 4"):
        read_history(tmp_path / "step-00000001")
