"""Links, retention, leftovers."""

import os
from pathlib import Path

import pytest

from harness.checkpoint.commit import collect_leftovers, prune, set_aside_newer
from harness.checkpoint.read import choose, list_checkpoints
from harness.checkpoint.retention import Ranking, Retention
from harness.errors import CheckpointError
from harness.stopping.budget import Every
from tests.checkpoint.examples import LOSS, assert_is_step, names_in, save_steps, snapshot, store_in


def steps_in(directory: Path) -> list[int]:
    return [one.step for one in list_checkpoints(directory)]


def test_links_are_relative_and_lead_to_the_latest_and_the_best(tmp_path: Path) -> None:
    store = store_in(tmp_path / "run", retention=Retention(keep_last=1, keep_best=1))
    for step, loss in enumerate([3.0, 1.0, float("nan"), 2.0, 1.0], start=1):
        store.save(snapshot(step, metrics={"val/loss": loss}), LOSS)
        store.wait()
        assert os.readlink(tmp_path / "run/latest") == f"step-{step:08}"
        assert os.readlink(tmp_path / "run/best") == (
            "step-00000001" if step == 1 else "step-00000002"
        )
        assert steps_in(tmp_path / "run") == sorted({1 if step == 1 else 2, step})
    store.close()
    (tmp_path / "run").rename(tmp_path / "moved")
    assert_is_step(tmp_path / "moved/best", 2)


def test_deleted_checkpoints_are_reported_and_gone(tmp_path: Path) -> None:
    reports = save_steps(tmp_path, 1, 2, 3, 4, retention=Retention(keep_last=2))
    assert [report.deleted for report in reports] == [[], [], ["step-00000001"], ["step-00000002"]]
    assert names_in(tmp_path) == ["latest", "step-00000003", "step-00000004"]


def test_retention_counts_what_earlier_launches_left(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    save_steps(tmp_path, 4, retention=Retention(keep_last=1, keep_every=Every(steps=2)))
    assert steps_in(tmp_path) == [2, 4]


def test_an_invalid_checkpoint_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    (tmp_path / "step-00000003" / "config.yaml").unlink()
    save_steps(tmp_path, 4, retention=Retention(keep_last=2))
    assert steps_in(tmp_path) == [2, 3, 4]


def test_one_that_a_disk_did_not_give_for_a_while_counts_again(tmp_path: Path) -> None:
    """It stayed for the rest of the launch, beyond what is kept."""
    save_steps(tmp_path, 1)
    store = store_in(tmp_path, retention=Retention(keep_last=1))
    (tmp_path / "step-00000001" / "manifest.json").rename(tmp_path / "away")
    store.save(snapshot(2), None)
    store.wait()
    assert steps_in(tmp_path)[-1] == 2
    (tmp_path / "away").rename(tmp_path / "step-00000001" / "manifest.json")
    store.save(snapshot(3), None)
    store.close()
    assert steps_in(tmp_path) == [3]


def test_leftovers_of_dead_attempts_are_collected_at_the_next_start(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    for name in (".tmp-step-00000002-abcd", ".trash-step-00000000-abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    os.symlink("step-00000001", tmp_path / ".tmp-latest-abcd")
    (tmp_path / "notes.txt").touch()
    store_in(tmp_path).close()
    assert names_in(tmp_path) == ["latest", "notes.txt", "step-00000001"]


def test_whoever_does_not_hold_the_lease_collects_nothing(tmp_path: Path) -> None:
    def fence() -> None:
        raise CheckpointError("fenced out")

    (tmp_path / ".tmp-x").mkdir()
    with pytest.raises(CheckpointError, match="fenced out"):
        collect_leftovers(tmp_path, fence)
    assert names_in(tmp_path) == [".tmp-x"]
    assert collect_leftovers(tmp_path / "nothing", fence) == []


def test_a_replacement_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000001.old")
    os.system(f"cp -r {tmp_path}/step-00000002 {tmp_path}/step-00000002.old")
    collect_leftovers(tmp_path, lambda: None)
    assert names_in(tmp_path, lambda name: not name.startswith("aside-step-00000002-")) == [
        "latest",
        "step-00000001",
        "step-00000002",
    ]
    assert len(names_in(tmp_path)) == 4


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    store = store_in(tmp_path, retention=Retention(keep_last=100))
    for step, loss in enumerate([3.0, 1.0, 2.0, 4.0], start=1):
        store.save(snapshot(step, metrics={"val/loss": loss}), LOSS)
    store.close()
    assert prune(tmp_path, Retention(keep_last=2), LOSS) == ["step-00000001"]
    # The best by the link
    assert prune(tmp_path, Retention(keep_last=1), None) == ["step-00000003"]
    assert prune(tmp_path, Retention(keep_last=1), Ranking("val/loss", "max")) == ["step-00000002"]
    assert prune(tmp_path, Retention(keep_last=1), None) == []
    assert prune(tmp_path / "nothing", Retention(), None) == []


def test_pruning_never_leaves_only_what_is_damaged(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    for step in (2, 3):
        path = tmp_path / f"step-0000000{step}" / "rng-00000-of-00001.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")  # sizes still fit
    assert prune(tmp_path, Retention(keep_last=1), None) == []
    assert choose(tmp_path, "auto").path == tmp_path / "step-00000001"


def test_newer_checkpoints_are_set_aside_for_a_run_that_goes_back(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    assert set_aside_newer(tmp_path, 1) == ["step-00000002", "step-00000003"]
    assert choose(tmp_path, "auto").path == tmp_path / "step-00000001"
    assert len(names_in(tmp_path, lambda name: name.startswith("aside-step-"))) == 2
    assert set_aside_newer(tmp_path, 1) == []
