"""The end of a launch, its exit code, and what `fermarsi status` makes of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import CheckpointError
from harness.rundir.outcome import Outcome, exit_code, read_outcome, write_outcome
from harness.rundir.status import read_status

ENDED = Outcome(
    "budget", "all steps done", 10, 1.5, 640, 2, 1, None, None, True, "because", {"compute_s": 1.0}
)


@pytest.mark.parametrize(
    ("reason", "under_agent", "code"),
    [
        ("targets_reached", False, 0),
        ("no_improvement", False, 0),
        ("budget", True, 0),
        ("stop_requested", False, 0),
        ("diverged", False, 3),
        ("diverged", True, 3),
        ("interrupted", False, 75),
        ("interrupted", True, 0),
    ],
)
def test_the_exit_code_follows_from_the_reason(reason: str, under_agent: bool, code: int) -> None:
    assert exit_code(replace(ENDED, reason=reason), under_agent=under_agent) == code


def test_an_outcome_comes_back_as_it_was(tmp_path: Path) -> None:
    assert read_outcome(tmp_path) is None
    write_outcome(tmp_path, ENDED)
    assert read_outcome(tmp_path) == ENDED


def test_a_damaged_outcome_is_named(tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"outcome\.json: cannot be parsed"):
        read_outcome(tmp_path)


def test_status_tells_the_four_states_apart(tmp_path: Path) -> None:
    assert read_status(tmp_path).exit_code == 2
    (tmp_path / "config.yaml").write_text("")
    assert read_status(tmp_path).exit_code == 1
    write_outcome(tmp_path, replace(ENDED, reason="interrupted"))
    assert read_status(tmp_path).exit_code == 75
    write_outcome(tmp_path, ENDED)
    assert read_status(tmp_path).exit_code == 0
    (tmp_path / "outcome.json").write_text("{")
    assert read_status(tmp_path).exit_code == 1
