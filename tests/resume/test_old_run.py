"""A run that an earlier release left goes on under this one, to the bits of a run never cut off.

`old_run/run` was written by fermarsi 0.1.0 before its modules moved (2 processes, 23 of 46 steps).
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.pool import train_on_ranks
from tests.resume.test_exact import last_state

OLD = Path(__file__).with_name("old_run") / "run"


def trace(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "trace.jsonl").read_text().splitlines()]


def finish(directory: Path) -> None:
    asked = [f"run.dir={directory}", "stop.budget.epochs=4", "log.trace=true"]
    ends = train_on_ranks(2, OLD / "config.yaml", asked)
    assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr


def judged(directory: Path) -> dict[str, Any]:
    """The last state, without the verdict by which the budget ended the old half."""
    state = last_state(directory)
    del state["history"][1]["verdict"]
    return state


def test_a_checkpoint_of_an_earlier_release_resumes_exactly(tmp_path: Path) -> None:
    resumed, whole = tmp_path / "resumed", tmp_path / "whole"
    shutil.copytree(OLD, resumed, symlinks=True)
    finish(resumed)
    finish(whole)
    kept, anew = trace(OLD), trace(whole)
    assert trace(resumed)[: len(kept)] == kept
    assert len(trace(resumed)) == len(anew) == 46
    # The kernels of another kind of processor round otherwise from the first step on: there the old
    # half cannot be that of a run made here, and only what is above can be compared.
    if anew[: len(kept)] == kept:
        assert trace(resumed) == anew
        own, other = judged(resumed), judged(whole)
        # 0.1.0 summed an evaluation's losses in float32: the two of its half have other last digits
        for index in range(2):
            old, new = (state["history"][index].pop("metrics") for state in (own, other))
            assert old == pytest.approx(new, rel=1e-7)
        assert own == other
