"""Saving on one rank: what is written, and what happens when it cannot be."""

import errno
import os
import pickle
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.checkpoint import copying, plan
from harness.checkpoint import stage as stage_module
from harness.checkpoint import write as write_module
from harness.checkpoint.read import choose, inspect
from harness.checkpoint.retention import Retention
from harness.checkpoint.write import CheckpointStore
from harness.errors import CheckpointError
from harness.ranks.ranks import Ranks
from tests.checkpoint.examples import (
    LOSS,
    assert_is_step,
    assert_same,
    loaded_from,
    names_in,
    save_steps,
    snapshot,
    store_in,
    tensors_of,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    store = store_in(tmp_path)
    yield store
    store.close()


def save(store: CheckpointStore, step: int, **changes: Any) -> Any:
    """Save, wait, and return the report."""
    store.save(snapshot(step, **changes), LOSS)
    store.wait()
    (report,) = store.reports()
    return report


def test_a_save_leaves_a_checkpoint_and_a_report(store: CheckpointStore, tmp_path: Path) -> None:
    report = save(store, 3)
    assert report.path == store.last_checkpoint() == tmp_path / "step-00000003"
    assert (report.error, report.warning, report.skipped, report.deleted) == (None, None, False, [])
    assert 0 < report.stall_s < report.total_s
    assert report.size_bytes == sum(
        path.stat().st_size for path in report.path.iterdir() if path.name != "manifest.json"
    )
    assert_is_step(report.path, 3)
    assert inspect(report.path, verify="full").problems == []
    assert names_in(tmp_path) == ["latest", "step-00000003"]
    assert report.to_json()["path"] == str(report.path)


def test_equal_states_give_equal_files(tmp_path: Path) -> None:
    save_steps(tmp_path / "a", 1)
    save_steps(tmp_path / "b", 1)
    for path in (tmp_path / "a" / "step-00000001").iterdir():
        if path.name != "manifest.json":  # holds when it was written
            assert (
                path.read_bytes() == (tmp_path / "b" / "step-00000001" / path.name).read_bytes()
            ), path.name


def test_the_manifest_tells_what_was_saved(store: CheckpointStore) -> None:
    report = save(
        store,
        3,
        reason="final",
        exact=False,
        exact_reason="because",
        metrics={"val/loss": 0.1, "val/x": float("nan")},
    )
    manifest = inspect(report.path).manifest
    assert manifest is not None
    assert (
        manifest.run_id,
        manifest.attempt,
        manifest.step,
        manifest.epoch,
        manifest.samples,
        manifest.world_size,
    ) == ("run", "run-1", 3, 0, 96, 1)
    assert (manifest.reason, manifest.exact, manifest.exact_reason) == ("final", False, "because")
    assert manifest.metrics["val/loss"] == 0.1
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.versions["code"].startswith("sources ")
    assert {entry.role for entry in manifest.files.values()} == {
        "model",
        "optimizer",
        "rng",
        "trainer",
        "config",
        "index",
        "history",
    }


def test_files_get_the_umasks_mode(store: CheckpointStore) -> None:
    before = os.umask(0o027)
    try:
        path = save(store, 1).path
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o640}


def test_what_is_stored_is_what_was_there_when_save_returned(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    original = write_module.write_files

    def wait_and_write(*args: Any) -> Any:
        assert held.wait(10)
        return original(*args)

    monkeypatch.setattr(write_module, "write_files", wait_and_write)
    state = snapshot(
        1,
        metrics={"val/loss": 1.0},
        facts={"list": [1]},
        trainer={"step": 1, "lr": 0.1, "list": [1]},
    )
    store.save(state, LOSS)
    for tensor in [*state.model.values(), *state.optimizer.values(), *state.rng.values()]:
        tensor.fill_(0)
    state.metrics["val/loss"] = 0.0  # type: ignore[index]
    state.facts["list"].append(2)
    state.trainer["list"].append(2)
    held.set()
    store.wait()
    path = store.last_checkpoint()
    assert path is not None
    assert_is_step(path, 1)
    loaded = loaded_from(path)
    assert (loaded.manifest.metrics, loaded.manifest.facts, loaded.trainer["list"]) == (
        {"val/loss": 1.0},
        {"list": [1]},
        [1],
    )


def test_whoever_reads_while_a_save_is_in_flight_finds_the_one_before(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)
    held, begun, original = threading.Event(), threading.Event(), write_module.write_files

    def write_and_wait(*args: Any) -> Any:
        written = original(*args)
        begun.set()
        assert held.wait(10)
        return written

    monkeypatch.setattr(write_module, "write_files", write_and_wait)
    store.save(snapshot(2), LOSS)
    assert begun.wait(10)
    found = choose(tmp_path, "auto", verify="full")
    assert found is not None
    assert found.path == tmp_path / "step-00000001"
    held.set()
    store.wait()
    found = choose(tmp_path, "auto", verify="full")
    assert found is not None
    assert_is_step(found.path, 2)


STABLE = {"model": {"embed.weight"}, "optimizer": {"exp_avg/embed.weight"}}


@pytest.fixture
def slow_copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Copies that are made under a step begin when the event is set, however small they are."""
    begin, fill = threading.Event(), copying._fill

    def fill_later(*args: Any) -> None:
        assert begin.wait(10)
        fill(*args)

    monkeypatch.setattr(copying, "_fill", fill_later)
    monkeypatch.setattr(stage_module, "_LATER_FROM_BYTES", 0)
    yield begin
    begin.set()


def test_what_is_stable_is_copied_until_the_next_step(
    store: CheckpointStore, slow_copies: threading.Event
) -> None:
    state = snapshot(1, stable=STABLE)
    weight, moment = state.model["embed.weight"], state.optimizer["exp_avg/embed.weight"]
    store.save(state, LOSS)
    assert store.is_copying()
    for tensor in [*state.model.values(), *state.optimizer.values(), *state.rng.values()]:
        if tensor is not weight and tensor is not moment:
            tensor.fill_(0)
    threading.Timer(0.2, slow_copies.set).start()
    store.finish_copy()
    assert slow_copies.is_set()
    assert not store.is_copying()
    weight.fill_(0)
    moment.fill_(0)
    store.wait()
    (report,) = store.reports()
    assert report.error is None
    assert 0.15 < report.stall_s < report.total_s
    assert_is_step(report.path or Path(), 1)


def test_a_write_to_what_is_copied_costs_that_save_and_no_other(
    tmp_path: Path, slow_copies: threading.Event
) -> None:
    store = store_in(tmp_path, max_failures=1)
    state = snapshot(1, stable=STABLE)
    store.save(state, LOSS)
    state.model["embed.weight"].t()[0] += 1
    slow_copies.set()
    store.wait()
    store.raise_if_failing()
    assert "embed.weight: changed by the next step" in (store.reports()[0].error or "")
    slow_copies.clear()
    assert save(store, 2, stable=STABLE).error is None  # copied at once
    assert names_in(tmp_path) == ["latest", "step-00000002"]
    assert_is_step(tmp_path / "step-00000002", 2)
    store.close()


def test_a_step_that_takes_long_or_hangs_does_not_hold_the_commit(
    store: CheckpointStore, slow_copies: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_SETTLED_S", 0.2)
    slow_copies.set()
    for step, change in ((1, 0.0), (2, 1.0)):
        state = snapshot(step, stable=STABLE)
        store.save(state, LOSS)
        if change:
            state.model["embed.weight"].add_(change)
        while store.is_saving():
            time.sleep(0.01)
        assert store.is_copying()  # nobody said that it may end
    assert [one.error is None for one in store.reports()] == [True, False]


def test_tensors_of_inference_mode_are_copied_at_once(
    store: CheckpointStore, slow_copies: threading.Event
) -> None:
    with torch.inference_mode():
        made = {"embed.weight": torch.ones(3)}
    store.save(snapshot(1, model=made, stable={"model": {"embed.weight"}}), LOSS)
    slow_copies.set()
    store.wait()
    assert [one.error for one in store.reports()] == [None]


def test_a_second_save_waits_for_the_first(store: CheckpointStore, tmp_path: Path) -> None:
    for step in range(1, 6):
        store.save(snapshot(step), None)
    store.wait()
    assert [(report.step, report.error) for report in store.reports()] == [
        (step, None) for step in range(1, 6)
    ]
    for path in tmp_path.glob("step-*"):
        assert inspect(path, verify="full").problems == []


def test_memory_is_used_again(store: CheckpointStore) -> None:
    save(store, 1)
    memory = store._stage._memory.octets.data_ptr()
    save(store, 2)
    assert store._stage._memory.octets.data_ptr() == memory
    large = torch.arange(1e5)
    save(store, 3, model={"large": large})
    assert_same(loaded_from(store.last_checkpoint() or Path()).model, {"large": large})


def test_a_large_share_is_written_into_several_files(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_SHARD_BYTES", 64)
    path = save(store, 1).path
    assert names_in(path, lambda name: name.startswith("model-")) == [
        f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    assert_is_step(path, 1)
    assert inspect(path, verify="full").problems == []


def test_a_state_without_tensors_and_one_with_odd_ones(store: CheckpointStore) -> None:
    assert loaded_from(save(store, 1, model={}, optimizer={}).path).model == {}
    odd = {
        "turned": torch.arange(6.0).reshape(2, 3).t(),
        "spread": torch.ones(1).expand(3),
        "conjugate": torch.tensor([1 + 2j]).conj(),
    }
    odd["grad"] = torch.ones(2, requires_grad=True)
    assert_same(
        loaded_from(save(store, 2, model=odd).path).model,
        {name: tensor.detach().resolve_conj() for name, tensor in odd.items()},
    )


# -- the same step again


def test_the_same_step_again_writes_nothing(store: CheckpointStore) -> None:
    path = save(store, 1, metrics={"val/loss": 1.0}).path
    before = (path / "manifest.json").stat()
    for changes in (
        {"metrics": {"val/loss": 1.0}, "reason": "final"},
        {"metrics": {}, "reason": "interrupted"},
    ):
        report = save(store, 1, **changes)
        assert (report.skipped, report.path, report.error) == (True, path, None)
    assert (path / "manifest.json").stat() == before


def test_the_same_step_with_metrics_replaces_the_one_without(
    store: CheckpointStore, tmp_path: Path
) -> None:
    save(store, 1, metrics={"val/loss": 1.0})
    save(store, 2)
    report = save(store, 2, metrics={"val/loss": 0.5}, reason="best")
    assert (report.skipped, report.error, report.warning) == (False, None, None)
    assert loaded_from(report.path).manifest.metrics == {"val/loss": 0.5}
    assert os.readlink(tmp_path / "best") == "step-00000002"
    assert names_in(tmp_path) == ["best", "latest", "step-00000001", "step-00000002"]


def test_a_damaged_checkpoint_of_the_same_step_is_written_again(store: CheckpointStore) -> None:
    path = save(store, 1).path
    (path / "config.yaml").unlink()
    assert not save(store, 1).skipped
    assert_is_step(path, 1)


def test_another_launch_replaces_a_checkpoint_of_the_same_step_and_keeps_it_aside(
    tmp_path: Path,
) -> None:
    save_steps(tmp_path, 1, 2)
    store = store_in(tmp_path)
    assert save(store, 2, trainer={"lr": 7.0}).error is None
    store.close()
    assert loaded_from(tmp_path / "step-00000002").trainer == {"lr": 7.0}
    (aside,) = tmp_path.glob("aside-step-00000002-*")
    assert inspect(aside, verify="full").problems == []
    assert loaded_from(aside).trainer["lr"] == 0.2


# -- failures


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, when: int, code: int = errno.EIO) -> None:
    """The `when`-th call of os.<name> fails, and all after it."""
    original: Callable[..., Any] = getattr(os, name)
    calls = iter(range(1, 1_000_000))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) >= when:
            raise OSError(code, os.strerror(code))
        return original(*args, **kwargs)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(
    "name", ["fsync", "pwrite", "posix_fallocate", "mkdir", "rename", "open", "link"]
)
@pytest.mark.parametrize("when", [1, 2, 4, 7])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_a_failing_disk_costs_that_save_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, when: int, code: int
) -> None:
    store = store_in(tmp_path)
    assert save(store, 1).error is None
    with monkeypatch.context() as patched:
        fail_at(patched, name, when, code)
        report = save(store, 2)
    # It may fail after the commit, or not be called so often
    last = 2 if report.error is None else 1
    if report.error is not None:
        assert os.strerror(code) in report.error
        assert report.path is None
    assert (
        store.last_checkpoint() == choose(tmp_path, "auto").path == tmp_path / f"step-0000000{last}"
    )
    assert_is_step(tmp_path / f"step-0000000{last}", last)
    assert save(store, 3).error is None
    store.close()
    assert_is_step(tmp_path / "step-00000003", 3)
    assert names_in(tmp_path, lambda name: name.startswith(".")) == []


def test_a_file_system_without_preallocation_will_do(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, "posix_fallocate", 1, errno.EOPNOTSUPP)
    assert save(store, 1).error is None


def test_too_little_space_is_found_before_anything_is_written(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "0 MB free and 17 MB needed" in save(store, 1).error
    assert names_in(tmp_path) == []


def test_failures_in_a_row_end_the_run_and_a_success_forgives(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        fail_at(patched, "fsync", 1)
        save(store, 1)
        save(store, 2)
        store.raise_if_failing()
    save(store, 3)
    with monkeypatch.context() as patched:
        fail_at(patched, "fsync", 1)
        for step in (4, 5, 6):
            store.raise_if_failing()
            save(store, step)
    with pytest.raises(
        CheckpointError,
        match=(
            r"3 saves in a row have failed \(checkpoint\.max_failures: 3\), the last because: "
            r".*Input/output error"
        ),
    ):
        store.raise_if_failing()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"x": [1.0]}}, "model x: a list where a tensor is needed"),
        (
            {"trainer": {"a": {"b": object()}}},
            r"trainer state\.a\.b: a builtins.object cannot be stored",
        ),
        ({"extra_files": {"manifest.json": ""}}, "a name that is the checkpoint's own"),
        ({"extra_files": {"history.jsonl": ""}}, "a name that is the checkpoint's own"),
        ({"extra_files": {"../x": ""}}, "no plain file name"),
        ({"extra_files": {"model-00001-of-00001.safetensors": "x"}}, "File exists"),
        ({"metrics": {"loss": "low"}}, "the manifest cannot hold metrics.loss"),
        ({"facts": {"x": torch.ones(1)}}, "facts.x: a torch.Tensor cannot be stored"),
        ({"reason": "whim"}, "the manifest cannot hold reason"),
    ],
)
def test_a_state_that_cannot_be_stored_is_reported(
    store: CheckpointStore, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    report = save(store, 1, **changes)
    assert report.path is None
    assert message.replace("\\", "") in report.error
    assert choose(tmp_path, "auto").path is None
    assert save(store, 2).error is None


def test_what_fails_after_the_commit_is_a_warning(store: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    report = save(store, 1)
    assert (report.error, report.path) == (None, tmp_path / "step-00000001")
    assert "latest" in report.warning
    store.raise_if_failing()


def test_a_disk_that_hangs_holds_the_loop_for_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path, timeout_s=0.1, max_failures=2)
    hanging, let_go = threading.Event(), threading.Event()
    original = os.fsync

    def hang(descriptor: int) -> None:
        hanging.set()
        let_go.wait(20)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", hang)
    store.save(snapshot(1), None)
    assert hanging.wait(10)
    began = time.monotonic()
    store.save(snapshot(2), None)
    store.save(snapshot(3), None)
    assert time.monotonic() - began < 5
    with pytest.raises(
        CheckpointError,
        match=r"rank 0 is still writing the previous checkpoint after 0 s\. Check its disk\.",
    ):
        store.raise_if_failing()
    let_go.set()
    store.wait()
    assert [(report.step, report.error is None) for report in store.reports()] == [
        (2, False),
        (3, False),
        (1, True),
    ]
    assert_is_step(tmp_path / "step-00000001", 1)
    store.close()


def test_a_launch_that_was_fenced_out_changes_nothing(tmp_path: Path) -> None:
    fenced = threading.Event()

    def fence() -> None:
        if fenced.is_set():
            raise CheckpointError("launch 2 has taken the run over")

    store = store_in(tmp_path, fence=fence)
    save(store, 1)
    (tmp_path / ".tmp-of-launch-2").mkdir()
    fenced.set()
    report = save(store, 2)
    assert "launch 2 has taken the run over" in report.error
    assert names_in(tmp_path) == [".tmp-of-launch-2", "latest", "step-00000001"]


def test_a_launch_that_slept_through_its_end_cannot_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passed the fence, slept, and wakes up when another launch holds the run: its temporary
    directory has been collected.
    """
    store = store_in(tmp_path, fence=lambda: None)
    original = os.rename

    def sleep(source: Path, target: Path) -> None:
        if Path(target).name == "step-00000001":
            monkeypatch.setattr(os, "rename", original)
            store_in(tmp_path).close()
        original(source, target)

    monkeypatch.setattr(os, "rename", sleep)
    assert "No such file" in save(store, 1).error
    assert names_in(tmp_path) == []


# -- no pickle


def test_neither_saving_nor_loading_touches_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("pickle")

    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "dump"),
        (pickle, "dumps"),
        (torch, "load"),
        (torch, "save"),
    ):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    (report,) = save_steps(tmp_path, 1)
    assert report.error is None
    assert_is_step(choose(tmp_path, "auto").path or Path(), 1)


def test_one_rank_alone_needs_no_process_group(tmp_path: Path) -> None:
    assert Ranks().size == 1
    assert [report.error for report in save_steps(tmp_path, 1, retention=Retention())] == [None]
    assert_same(loaded_from(tmp_path / "step-00000001").model, tensors_of(1))
