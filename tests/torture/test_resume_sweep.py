"""Killed at every step, on any rank, once, twice or three times: the end has the bits of a run that
never was.
"""

from pathlib import Path

import pytest

from harness.checkpoint.read import list_checkpoints
from tests.resume.test_exact import assert_same, finish, launch, trace

pytestmark = pytest.mark.torture

STEPS = 40


@pytest.mark.parametrize(
    ("ranks", "stride", "extra"),
    [
        (1, 1, []),
        (2, 1, []),
        (3, 4, []),
        (4, 8, []),
        (1, 5, ["train.precision=bf16"]),
        (2, 10, ["train.precision=bf16"]),
        (1, 8, ["data.num_workers=2"]),
        (2, 16, ["data.num_workers=2"]),
        (3, 8, ["checkpoint.every.steps=1"]),
    ],
    ids=str,
)
def test_a_kill_at_every_step(tmp_path: Path, ranks: int, stride: int, extra: list[str]) -> None:
    """One run, killed in one step after the other; each launch resumes from its checkpoints."""
    reference, run = tmp_path / "reference", tmp_path / "run"
    finish(reference, ranks, *extra)
    assert len(trace(reference)) == STEPS
    extra = [*extra, "run.max_crashes=1000"]
    for step in range(1, STEPS + 1, stride):
        done = max((one.step for one in list_checkpoints(run / "checkpoints")), default=0)
        moment = ":before" if step % 2 else ""
        ends = launch(run, ranks, *extra, die_at=f"{step % ranks}:{step - done}{moment}")
        assert -9 in [one.exit_code for one in ends]
    finish(run, ranks, *extra)
    assert_same(run, reference)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_cut_off_again_and_again(tmp_path: Path, ranks: int) -> None:
    reference = tmp_path / "reference"
    finish(reference, ranks)
    for seed in range(3):
        run = tmp_path / f"run-{seed}"
        for cut in range(5):
            how = ":term" if (seed + cut) % 3 == 0 else ":before" if cut % 2 else ""
            launch(run, ranks, die_at=f"{cut % ranks}:{3 + (5 * seed + 4 * cut) % 9}{how}")
        finish(run, ranks)
        assert_same(run, reference)
