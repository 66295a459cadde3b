"""Which checkpoint a run resumes from."""

from pathlib import Path

import pytest
import torch

from harness.checkpoint.read import choose, find_checkpoint, list_checkpoints, load_trainer
from harness.errors import CheckpointError
from tests.checkpoint.examples import (
    LOSS,
    assert_is_step,
    loaded_from,
    names_in,
    save_steps,
    snapshot,
    store_in,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    save_steps(directory / "checkpoints", 1, 9, 10, 200_000_000)
    return directory


def test_the_newest_is_the_one_of_the_highest_step_whatever_the_time(run: Path) -> None:
    assert [one.step for one in list_checkpoints(run / "checkpoints")] == [1, 9, 10, 200_000_000]
    for resume in ("auto", "must"):
        assert choose(run / "checkpoints", resume).path == run / "checkpoints/step-200000000"


@pytest.mark.parametrize("resume", [9, "9", "step-00000009", Path("step-00000009")])
def test_a_step_or_a_path_chooses_that_one(run: Path, resume: int | str | Path) -> None:
    assert choose(run / "checkpoints", resume).path == run / "checkpoints/step-00000009"
    assert (
        choose(run / "elsewhere", run / "checkpoints/step-00000009").path
        == run / "checkpoints/step-00000009"
    )


def test_a_link_is_followed(run: Path) -> None:
    assert choose(run / "checkpoints", "latest").path == run / "checkpoints/step-200000000"


@pytest.mark.parametrize("resume", [7, "7", "step-7", "best", Path("/nowhere")])
def test_what_is_not_there_is_an_error_that_says_what_is(
    run: Path, resume: int | str | Path
) -> None:
    with pytest.raises(
        CheckpointError,
        match=(
            r"run\.resume: .* there are: step-00000001, step-00000009, step-00000010, "
            r"step-200000000"
        ),
    ):
        choose(run / "checkpoints", resume)


def test_never_refuses_to_go_over_checkpoints(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run\.resume is never, but there are checkpoints"):
        choose(run / "checkpoints", "never")
    assert choose(tmp_path, "never").path is None
    assert choose(tmp_path / "nothing", "auto").path is None
    with pytest.raises(CheckpointError, match=r"run\.resume is must, but there is no checkpoint"):
        choose(tmp_path, "must")


def test_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    for name in (
        "step-1",
        "step-00000001.tmp",
        "step-000000001",
        "step-0000000a",
        "xstep-00000001",
        "step-00000001\n",
        ".tmp-step-00000001-abcd",
    ):
        (tmp_path / name).mkdir()
    assert list_checkpoints(tmp_path) == []


def test_a_run_or_a_checkpoint_is_found_and_of_a_run_the_best(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    save_steps(checkpoints, 1, 2, 3)
    assert find_checkpoint(checkpoints / "step-00000002") == checkpoints / "step-00000002"
    assert (
        find_checkpoint(tmp_path) == find_checkpoint(checkpoints) == checkpoints / "step-00000003"
    )
    store = store_in(checkpoints)
    store.save(snapshot(4, metrics={"val/loss": 0.1}), LOSS)
    store.wait()
    store.save(snapshot(5, metrics={"val/loss": 0.2}), LOSS)
    store.close()
    assert (
        find_checkpoint(tmp_path)
        == find_checkpoint(checkpoints / "best")
        == checkpoints / "step-00000004"
    )
    (checkpoints / "step-00000004" / "config.yaml").unlink()
    with pytest.warns(UserWarning, match=r"step-00000005 is taken instead: .*/step-00000004: sk"):
        assert find_checkpoint(tmp_path) == checkpoints / "step-00000005"
    with pytest.raises(CheckpointError, match=r"^/.*config\.yaml"):
        find_checkpoint(checkpoints / "step-00000004")
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run that has one"):
        find_checkpoint(tmp_path / "nothing")


def test_everything_comes_back_and_tied_weights_stay_tied(run: Path) -> None:
    path = run / "checkpoints/step-00000009"
    assert_is_step(path, 9)
    loaded = loaded_from(path)
    model = loaded.model.read()
    assert model["head.weight"] is model["embed.weight"]
    assert load_trainer(path)["history"][1] == (1, 2)
    assert loaded.manifest.facts == {"data": "abc"}


def test_another_number_of_ranks_gets_no_random_state(run: Path) -> None:
    assert loaded_from(run / "checkpoints/step-00000009", rank=1, num_ranks=2).rng is None


def test_each_tensor_lies_where_a_fresh_one_would(run: Path) -> None:
    loaded = loaded_from(run / "checkpoints/step-00000009")
    for tensor in [*loaded.model.values(), *loaded.optimizer.values()]:
        assert tensor.data_ptr() % 64 == torch.empty(1).data_ptr() % 64 == 0
        assert tensor.storage_offset() == 0
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_checkpoint_that_is_being_replaced_is_still_one(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000002.old")
    for resume in ("auto", 2, "2"):
        assert choose(tmp_path, resume).path == tmp_path / "step-00000002.old"
    store_in(tmp_path).close()
    assert names_in(tmp_path) == ["latest", "step-00000001", "step-00000002"]
    assert_is_step(tmp_path / "step-00000002", 2)
