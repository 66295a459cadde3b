"""Saving on several ranks: each writes its share, and all succeed or fail together."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.checkpoint import layout
from harness.checkpoint import write as write_module
from harness.checkpoint.read import choose, inspect
from harness.checkpoint.retention import Retention
from harness.checkpoint.stage import Snapshot
from harness.ranks.ranks import Ranks
from tests.checkpoint.examples import LOSS, assert_same, loaded_from, names_in, snapshot, store_in
from tests.pool import RanksFailed, on_ranks


def rng_of(rank: int) -> dict[str, Tensor]:
    return {"torch": torch.arange(8, dtype=torch.uint8) + rank}


def large_state(step: int, rank: int) -> Snapshot:
    """State whose moments are cut between ranks."""
    model = {f"{index}.weight": torch.full((64, 32), float(step + index)) for index in range(5)}
    moments = {
        f"exp_avg/{name}": torch.arange(64 * 32.0).reshape(64, 32) / (step + 1) for name in model
    }
    return snapshot(
        step,
        model=model,
        optimizer=moments,
        rng=rng_of(rank),
        trainer={"lr": 0.5} if rank == 0 else {},
    )


def save_large(directory: Path, steps: list[int]) -> list[Any]:
    ranks = Ranks.join(20.0)
    store = store_in(directory, ranks)
    original, layout.CUT_BYTES = layout.CUT_BYTES, 1024
    try:
        for step in steps:
            store.save(large_state(step, ranks.rank), LOSS)
    finally:
        layout.CUT_BYTES = original
        store.close()
    return [report.to_json() for report in store.reports()]


def load_large(directory: Path) -> bool:
    ranks = Ranks.join(20.0)
    loaded = loaded_from(directory, ranks.rank, ranks.size)
    expected = large_state(2, ranks.rank)
    assert_same(loaded.model, expected.model)
    assert_same(loaded.optimizer, expected.optimizer)
    if loaded.rng is not None:
        assert_same(loaded.rng, expected.rng)
    return loaded.rng is not None


def test_any_number_of_ranks_reads_what_another_number_wrote(tmp_path: Path) -> None:
    for size in (1, 2, 3):
        reports = on_ranks(size, save_large, tmp_path / str(size), [1, 2])
        assert [[(one["step"], one["error"]) for one in of_rank] for of_rank in reports] == [
            [(1, None), (2, None)]
        ] * size
        path = tmp_path / str(size) / "step-00000002"
        assert inspect(path, verify="full").problems == []
        assert len(names_in(path, lambda name: name.startswith("rng-"))) == size
        sizes = [
            (path / f"model-0000{n}-of-0000{size}.safetensors").stat().st_size
            for n in range(1, size + 1)
        ]
        sizes = [
            mine + (path / f"optimizer-0000{n}-of-0000{size}.safetensors").stat().st_size
            for n, mine in enumerate(sizes, start=1)
        ]
        assert max(sizes) <= 1.1 * sum(sizes) / size
    for size in (1, 2, 3):
        assert on_ranks(2, load_large, tmp_path / str(size) / "step-00000002") == [size == 2] * 2


def test_one_rank_writes_the_same_tensors_as_two(tmp_path: Path) -> None:
    on_ranks(2, save_large, tmp_path / "two", [1])
    save_large(tmp_path / "one", [1])
    one, two = (
        loaded_from(tmp_path / "one/step-00000001"),
        loaded_from(tmp_path / "two/step-00000001"),
    )
    assert_same(one.model, two.model)
    assert_same(one.optimizer, two.optimizer)


def fail_on(directory: Path, rank: int, where: str) -> list[Any]:
    """Three saves, the second of which fails on one rank."""
    ranks = Ranks.join(20.0)
    store = store_in(directory, ranks, Retention(keep_last=5))
    original = write_module.write_files

    def refuse(*args: Any) -> Any:
        raise OSError(5, os.strerror(5)) if where == "writing" else ValueError("a bug")

    for step in (1, 2, 3):
        if step == 2 and ranks.rank == rank and where in ("writing", "a bug"):
            write_module.write_files = refuse
        model: dict[str, Any] = {"x": torch.ones(2)}
        if step == 2 and ranks.rank == rank and where == "copying":
            model = {"x": "no tensor"}
        if step == 2 and ranks.rank == rank and where == "another state":
            model = {"x": torch.ones(3)}
        store.save(snapshot(step, model=model, rng=rng_of(ranks.rank)), LOSS)
        store.wait()
        write_module.write_files = original
    store.close()
    return [report.to_json() for report in store.reports()]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "writing",
            "writing into the directory that rank 0 has made, .* failed: Input/output error",
        ),
        ("a bug", "a bug"),
        ("copying", "model x: a str where a tensor is needed"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_on_any_rank_is_every_ranks_and_costs_that_save_only(
    tmp_path: Path, rank: int, where: str, message: str
) -> None:
    for reports in on_ranks(2, fail_on, tmp_path, rank, where):
        assert [one["error"] is None for one in reports] == [True, False, True]
        assert re.search(message, reports[1]["error"])
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == [
        "step-00000001",
        "step-00000003",
    ]
    assert names_in(tmp_path, lambda name: name.startswith(".")) == []
    assert inspect(tmp_path / "step-00000003", verify="full").problems == []


def large_or_not(directory: Path) -> list[Any]:
    ranks = Ranks.join(20.0)
    store = store_in(directory, ranks)
    store.save(
        snapshot(1, optimizer={"m/x": torch.ones(4 + ranks.rank, 2**18)}, rng=rng_of(ranks.rank)),
        LOSS,
    )
    store.close()
    return [report.to_json() for report in store.reports()]


def test_ranks_whose_states_differ_are_found_out(tmp_path: Path) -> None:
    for reports in on_ranks(2, large_or_not, tmp_path):
        assert "ranks hold" in reports[0]["error"]
    assert choose(tmp_path, "auto").path is None


def late(directory: Path, rank: int) -> tuple[list[Any], float]:
    """Three saves; one rank answers too late in the first, so that their channel breaks."""
    ranks = Ranks.join(30.0)
    store = store_in(directory, ranks, timeout_s=1.0)
    original = write_module.write_files

    def dawdle(*args: Any) -> Any:
        time.sleep(2.0)
        return original(*args)

    began = time.monotonic()
    for step in (1, 2, 3):
        if step == 1 and ranks.rank == rank:
            write_module.write_files = dawdle
        store.save(snapshot(step, rng=rng_of(ranks.rank)), LOSS)
        store.wait()
        write_module.write_files = original
    store.raise_if_failing()
    store.close()
    return [report.to_json() for report in store.reports()], time.monotonic() - began


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_answers_too_late_costs_that_save_only(tmp_path: Path, rank: int) -> None:
    for reports, seconds in on_ranks(2, late, tmp_path, rank):
        assert [one["error"] is None for one in reports] == [False, True, True]
        assert seconds < 15
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == [
        "step-00000002",
        "step-00000003",
    ]
    loaded = loaded_from(tmp_path / "step-00000003", 1, 2)
    assert_same(loaded.rng or {}, rng_of(1))


def hang(directory: Path, rank: int) -> list[Any]:
    """One rank's disk hangs for longer than anybody waits: the loop goes on, saves fail, and the
    run ends.
    """
    ranks = Ranks.join(30.0)
    store = store_in(directory, ranks, timeout_s=0.5)
    original = write_module.write_files

    def wait(*args: Any) -> Any:
        time.sleep(4.0)
        return original(*args)

    if ranks.rank == rank:
        write_module.write_files = wait
    for step in (1, 2, 3):
        store.save(snapshot(step, rng=rng_of(ranks.rank)), LOSS)
    failing = False
    try:
        store.raise_if_failing()
    except Exception:  # noqa: BLE001 - that is the question
        failing = True
    store.wait()
    write_module.write_files = original
    store.save(snapshot(4, rng=rng_of(ranks.rank)), LOSS)
    store.close()
    return [failing, [(one.step, one.error) for one in store.reports()]]


def test_a_rank_whose_disk_hangs_does_not_hold_the_others_for_ever(tmp_path: Path) -> None:
    answers = on_ranks(2, hang, tmp_path, 1)
    assert answers[0][0]  # rank 0 decides
    for _, reports in answers:
        assert sorted(step for step, error in reports if error is None) == [4]
        assert any(
            "rank 1 is still writing the previous checkpoint" in (error or "")
            for _, error in reports
        )
    assert_is_step_of(tmp_path / "step-00000004", 4)


def assert_is_step_of(path: Path, step: int) -> None:
    assert inspect(path, verify="full").problems == []
    assert_same(loaded_from(path, 1, 2).rng or {}, rng_of(1))
    assert loaded_from(path, 0, 1).manifest.step == step


def die(directory: Path, rank: int) -> list[Any]:
    ranks = Ranks.join(20.0)
    store = store_in(directory, ranks, timeout_s=5.0)
    store.save(snapshot(1, rng=rng_of(ranks.rank)), LOSS)
    store.wait()
    if ranks.rank == rank:
        write_module.write_files = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,return-value]
    store.save(snapshot(2, rng=rng_of(ranks.rank)), LOSS)
    store.close()
    return [(one.step, one.error is None) for one in store.reports()]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_leaves_the_checkpoint_before(tmp_path: Path, rank: int) -> None:
    with pytest.raises(RanksFailed) as raised:
        on_ranks(2, die, tmp_path, rank)
    assert raised.value.results == {1 - rank: [(1, True), (2, False)]}
    chosen = choose(tmp_path, "auto").path
    assert chosen == tmp_path / "step-00000001"
    assert_same(loaded_from(chosen, 1, 2).rng or {}, rng_of(1))
