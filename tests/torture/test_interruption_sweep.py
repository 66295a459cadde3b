"""Every way of asking, in every phase, of one rank, of all at different moments, on one, two and
three ranks: about a minute.
"""

import shutil
import time
from pathlib import Path

import pytest

from tests.operations.test_interruption import LIMIT_S, go_on, launch, left, outcome
from tests.resume.test_exact import assert_same, trace

pytestmark = pytest.mark.torture

# Moments as in tests/operations/parts.py, with the step at which all leave at the latest; forward
# and evaluated are counted on each rank.
PHASES = {
    "begun:1": 0,
    "built:1": 0,
    "forward:1": 0,
    "forward:{middle}": 7,
    "evaluated:6": 6,
    "evaluated:12": 12,
    "stepped:8": 10,
    "stepped:14": 16,
}
HOWS = ("SIGTERM", "SIGUSR1", "SIGINT", "PREEMPT", "STOP")


def moments(ranks: int) -> list[tuple[str, str, int]]:
    """(phase, what ASK says, the last step) so that each way meets each phase on some number of
    ranks, and each rank is asked.
    """
    asked = []
    for number, (phase, latest) in enumerate(PHASES.items()):
        # In the midst of the micro-batches of step 5
        where = phase.format(middle=1 + 12 // ranks * 4 + 2)
        how = HOWS[(number + 2 * ranks) % len(HOWS)]
        who = 0 if how in ("PREEMPT", "STOP") else (number + 1) % ranks
        asked.append((where, f"{where}:{who}:{how}", latest))
    first = 1 + 12 // ranks * 4
    together = ",".join(f"forward:{first + rank}:{rank}:{HOWS[rank]}" for rank in range(ranks))
    asked.append(("all, at different moments", together, 7))
    asked.append(
        (
            "twice, as Slurm does it",
            f"forward:{first}:all:SIGTERM,forward:{first + 1}:all:SIGTERM",
            7,
        )
    )
    return asked


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_all_leave_at_the_same_step_in_time_and_go_on_exactly(tmp_path: Path, ranks: int) -> None:
    reference = tmp_path / "reference"
    go_on(reference, ranks)
    task = "task._target_=tests.operations.parts.Told"
    for phase, asked, latest in moments(ranks):
        run = tmp_path / "run"
        began = time.monotonic()
        ends = launch(run, ranks, asked, task, SAVE_S="0.2")
        assert time.monotonic() - began < LIMIT_S, phase
        if "STOP" in asked:
            assert [one.exit_code for one in ends] == [0] * ranks, phase
            assert outcome(run)["reason"] == "stop_requested"
            (run / "STOP").unlink()
            go_on(run, ranks, task)
            assert trace(run) == trace(reference), phase  # it was evaluated where the other was not
        else:
            found = left(run, ends)
            assert found["step"] <= latest, phase
            go_on(run, ranks, task)
            assert_same(run, reference)
        shutil.rmtree(run)
