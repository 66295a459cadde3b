"""A launch whose processes are killed, stopped or fail again and again goes on with whoever is
there, and ends with the samples of one that lost nobody.
"""

import os
import random
import signal
from pathlib import Path

import pytest

from tests.operations.test_lost_processes import ELASTIC, assert_same_steps, launched
from tests.pool import train_on_ranks
from tests.resume.test_exact import STORM

pytestmark = pytest.mark.torture


def test_stopped_once_and_killed_twice_two_at_a_time(tmp_path: Path) -> None:
    chance = random.Random(5)
    run = tmp_path / "run"
    with launched(run, 4, "--min-processes", "1", delay_s=0.15) as launch:
        for kind, count in ((signal.SIGSTOP, 1), (signal.SIGKILL, 2), (signal.SIGKILL, 2)):
            # Before, nobody knows how long a step takes: one that is stopped is not noticed
            step = launch.trace()[-1]["step"] if launch.trace() else 0
            launch.wait_for(
                lambda n=step: launch.trace()[-1:] and launch.trace()[-1]["step"] > n + 6
            )  # type: ignore[misc] # n is bound
            before = len(launch.launches())
            for one in chance.sample(launch.children(), count):
                os.kill(one, kind)
            launch.wait_for(lambda n=before: len(launch.launches()) > n)  # type: ignore[misc] # n is bound
        code, text = launch.end()
    assert code == 0, text
    ends = train_on_ranks(2, STORM, [f"run.dir={tmp_path / 'whole'}", *ELASTIC])
    assert [end.exit_code for end in ends] == [0, 0], ends[0].stderr
    assert_same_steps(run, tmp_path / "whole")
    assert len(launch.trace()) == 40
