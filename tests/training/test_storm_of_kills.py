"""`checkpoint.every: auto`, told nothing, in a storm of kills that lasts for weeks: its clock and
its books are the real ones, time alone is simulated.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from harness.checkpoint.settings import CheckpointConfig
from harness.rundir.ledger import Ledger
from harness.training.pacing import Pace
from tests.training.test_pacing import Clock

KILLS = 40


@dataclass(frozen=True)
class Job:
    """Seconds: a step, what a save holds the loop for, how much longer steps take in sum until it
    is durable, and until then; the start of a launch; the mean time between kills.
    """

    step_s: float
    held_s: float
    slowed_s: float
    durable_s: float
    start_s: float
    mean_s: float


JOBS = {
    "preempted every half an hour": Job(0.5, 0.02, 0.03, 2.0, 20.0, 1800.0),
    "a node that fails every two hours": Job(2.0, 0.1, 0.3, 20.0, 40.0, 7200.0),
    "a large model on many nodes": Job(10.0, 1.0, 2.5, 120.0, 120.0, 36000.0),
}


class Storm:
    """A run whose launches are killed. What a save that was not durable yet would have kept is
    lost.
    """

    def __init__(self, job: Job, path: Path) -> None:
        self.job, self.path, self.clock = job, path, Clock()
        self.kept: tuple[int, dict[str, float], Any] | None = None
        self.overhead_s = self.trained_s = self.told_s = 0.0
        self.undone: list[tuple[float, float]] = []  # seconds, and the interval at that time

    def live(self, seconds: float) -> None:
        job, clock = self.job, self.clock
        ledger = Ledger(self.path, clock, clock)
        pace = Pace(CheckpointConfig(every="auto"), ledger, round(1e9 * job.held_s), clock)
        clock.now += job.start_s
        step = 0
        if self.kept is not None:
            step, totals, state = self.kept
            ledger.resume(totals)
            pace.restore(state)
        else:
            ledger.resume(None)
        ledger.begin_training()
        began, saved_s, until = step, clock.now, clock.now + seconds
        flight: tuple[float, float, tuple[int, dict[str, float], Any]] | None = None
        slow = 1 + job.slowed_s / job.durable_s
        while clock.now < until:
            clock.now += job.step_s * (slow if flight else 1.0)
            step += 1
            if flight and clock.now >= flight[0]:
                _, saved_s, self.kept = flight
                pace.end(step, job.durable_s)
                flight = None
            if flight is None and pace.is_due():
                pace.begin(step)
                with ledger.account("checkpoint_stall"):
                    clock.now += job.held_s
                flight = clock.now + job.durable_s, clock.now, (step, ledger.totals(), pace.state())
                self.overhead_s += job.held_s + job.slowed_s
            if (news := pace.news()) is not None:
                self.told_s = news.seconds
        ledger.save()
        self.trained_s += (step - began) * job.step_s
        self.undone.append((clock.now - saved_s, self.told_s))


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_little_is_lost_in_a_storm_of_kills(job: Job, tmp_path: Path) -> None:
    drawn, storm = random.Random(7), Storm(job, tmp_path / "ledger.json")
    began = storm.clock.now
    for _ in range(KILLS):
        storm.live(drawn.expovariate(1 / job.mean_s))
    assert storm.kept is not None
    overhead = storm.overhead_s / storm.trained_s
    undone_s = median(seconds for seconds, _ in storm.undone)
    interval_s = median(interval for _, interval in storm.undone)
    goodput = storm.kept[0] * job.step_s / (storm.clock.now - began)
    print(
        f"overhead {overhead:.2%}, undone {undone_s:.1f} s (at most "
        f"{max(storm.undone)[0]:.1f} s), interval {interval_s:.1f} s, goodput {goodput:.1%}"
    )
    assert overhead <= 0.01
    assert undone_s <= 2 * interval_s
    assert goodput >= 0.97
