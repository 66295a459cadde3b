"""`exact: true` is written only where it was earned."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoint.read import list_checkpoints
from harness.training.determinism import operation_in
from harness.training.environment import differences
from tests.pool import Launched, train_on_ranks

STORM = Path(__file__).parents[1] / "resume" / "storm.yaml"
PLAIN = ["optimizer={_target_: torch.optim.SGD, lr: 0.01}", "schedule=null", "stop.budget.steps=3"]


LIBRARIES = (Path(torch.__file__).parent / "lib").glob("libtorch_c*.so")


def sentences(library: bytes) -> list[str]:
    """What a library can say of operations that are not deterministic."""
    found = []
    for words in (b"non-deterministic algorithm", b"not have a determ", b"DPA is not determ"):
        place = library.find(words)
        while place >= 0:
            begin, end = library.rindex(b"\0", 0, place) + 1, library.index(b"\0", place)
            found.append(library[begin:end].decode())
            place = library.find(words, end)
    return found


def launch(run: Path, ranks: int, network: str, *more: str, **env: str) -> list[Launched]:
    spec = f"network={{_target_: tests.training.exact_parts.{network}}}"
    return train_on_ranks(ranks, STORM, [f"run.dir={run}", spec, *PLAIN, *more], env=env)


def outcome(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "outcome.json").read_text()))


def manifest(run: Path) -> Any:
    last = list_checkpoints(run / "checkpoints")[-1].manifest
    assert last is not None
    return last


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_operation_without_a_deterministic_kernel_is_named(tmp_path: Path, ranks: int) -> None:
    ends = launch(tmp_path / "run", ranks, "Puts")
    assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr
    said = outcome(tmp_path / "run")
    assert (said["exact"], said["exact_reason"]) == (False, "no deterministic kernel for: put_")
    assert not manifest(tmp_path / "run").exact


def test_one_that_the_trial_did_not_meet_ends_the_run_with_its_name(tmp_path: Path) -> None:
    # One pass in the trial, one in the warm-up, twelve in step 1: the fifteenth is in step 2.
    (end,) = launch(tmp_path / "run", 1, "Puts, late: 14", LATE="1")
    assert end.exit_code == 2
    assert "ConfigError: step 2: put_ has no deterministic kernel" in end.stderr
    assert "Traceback" not in end.stderr


def test_torch_s_sentences_are_known() -> None:
    said = {text for path in LIBRARIES for text in sentences(path.read_bytes())}
    assert len(said) >= 2
    assert [text for text in said if operation_in(f"some_op{text}") is None] == []
    assert operation_in("Flash Attention defaults to a non-deterministic algorithm. ") == (
        "Flash Attention"
    )
    cublas = (
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` "
        "or `at::Context::setDeterministicAlgorithms(true)`, but this operation is not "
        "deterministic because it uses CuBLAS and you have CUDA >= 10.2."
    )
    assert operation_in(cublas) == "CuBLAS"
    assert operation_in("expected scalar type Float but found Double") is None


def test_another_machine_is_told_and_the_run_stays_inexact(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for steps, threads in ((2, "1"), (4, "2"), (6, "2")):
        (end,) = launch(run, 1, "Threads", f"stop.budget.steps={steps}", THREADS=threads)
        assert end.exit_code == 0, end.stderr
        if steps == 4:
            assert "other machines from step 2 on (threads: 1 -> 2)" in end.stdout + end.stderr
    said = outcome(run)
    assert said["exact"] is False
    assert said["exact_reason"] == "other machines from step 2 on (threads: 1 -> 2)"
    assert manifest(run).facts["environment"][0]["threads"] == "2"


def test_differences_are_between_the_values_that_there_are() -> None:
    one, other = {"GPU": "A", "threads": "1"}, {"GPU": "B", "threads": "1"}
    assert differences([], [one]) == []
    assert differences([one], [one]) == []
    assert differences([one], [other, one]) == ["GPU: A -> A, B"]
    assert differences([one], [{"threads": "1"}]) == ["GPU: A -> none"]
