"""The clock of saves, and what they cost the training."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.checkpoint.save_period import best_period_s
from harness.checkpoint.settings import CheckpointConfig, SaveEvery
from harness.rundir.ledger import Ledger
from harness.training.pacing import Pace, pace_of

MEAN_S = 20.0


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


class Training:
    """Steps of 10 ms, by a clock of its own; one during which a save is in flight takes 12 ms."""

    def __init__(self, settings: CheckpointConfig, path: Path | None = None) -> None:
        self.clock = Clock()
        self.ledger = Ledger(path, self.clock, Clock())
        self.ledger.begin_training()
        self.pace = Pace(settings, self.ledger, 10**6, self.clock)
        self.step = 0
        self.saves: list[float] = []
        self.in_flight = 0

    def train(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.step += 1
            self.clock.now += 0.012 if self.in_flight else 0.010
            self.in_flight = max(0, self.in_flight - 1)
            if not self.in_flight:
                self.pace.end(self.step, 0.03)
            if self.pace.is_due():
                assert not self.pace.is_due()  # asked for once
                self.save()

    def save(self) -> None:
        self.pace.begin(self.step)
        self.saves.append(self.clock.now)
        with self.ledger.account("checkpoint_stall"):
            self.clock.now += 0.002
        self.in_flight = 3


def auto(**changes: float) -> CheckpointConfig:
    return CheckpointConfig(every="auto", **changes)


def test_the_interval_is_that_of_the_measured_cost() -> None:
    # Held for 2 ms, and three steps that take 2 ms longer
    expected_s = best_period_s(0.008, MEAN_S)
    training = Training(auto(failures_per_day=86400 / MEAN_S, max_overhead=0.1))
    training.train(30.0)
    interval = training.pace.news()
    assert interval is not None
    assert interval.seconds == pytest.approx(expected_s, rel=0.01)
    assert "a save that costs 8 ms, and a failure every 20 s" in interval.reason
    assert training.pace.news() is None  # told
    gaps = [late - early for early, late in zip(training.saves, training.saves[1:], strict=False)]
    assert gaps[3:] == pytest.approx([expected_s] * len(gaps[3:]), abs=0.025)


def test_the_overhead_stays_below_what_is_allowed() -> None:
    training = Training(auto(failures_per_day=1e6))
    training.train(60.0)
    assert 0.008 * len(training.saves) / 60 == pytest.approx(0.01, rel=0.2)


def test_without_failures_saves_become_rarer() -> None:
    training = Training(auto())
    training.train(2.0)
    early = len(training.saves) / 2
    training.train(500.0)
    assert 0 < (len(training.saves) - early) / 500 < early / 2
    # It grows with the square root of the run's age
    last = training.saves[-1] - training.saves[-2]
    assert last == pytest.approx(best_period_s(0.008, 2 * training.ledger.elapsed_s()), rel=0.05)


def test_the_cost_is_known_after_a_resume(tmp_path: Path) -> None:
    first = Training(auto(failures_per_day=86400 / MEAN_S, max_overhead=0.1))
    first.train(30.0)
    second = Training(auto(failures_per_day=86400 / MEAN_S, max_overhead=0.1))
    second.pace.restore(first.pace.state())
    told, again = first.pace.news(), second.pace.news()
    assert told is not None
    assert told == again


def test_minutes_are_minutes() -> None:
    training = Training(CheckpointConfig(every=SaveEvery(minutes=0.05)))
    training.train(30.5)
    assert len(training.saves) == 10
    gaps = [late - early for early, late in zip(training.saves, training.saves[1:], strict=False)]
    assert gaps == pytest.approx([3.0] * 9, abs=0.025)


def test_a_failed_save_costs_no_opinion() -> None:
    training = Training(auto(failures_per_day=100))
    training.pace.begin(0)
    training.clock.now += 50.0
    training.pace.end(3, None)
    interval = training.pace.news()
    assert interval is not None
    assert interval.reason.endswith("not measured yet")


def test_a_save_in_flight_is_waited_for_but_not_for_ever() -> None:
    settings = CheckpointConfig(every=SaveEvery(minutes=1.0), timeout_s=600.0)
    training = Training(settings)
    training.pace.begin(1)
    for passed_s, due in ((100.0, False), (450.0, False), (51.0, True), (60.0, False)):
        training.clock.now += passed_s
        assert training.pace.is_due(saving=True) is due


def test_steps_need_no_clock() -> None:
    ledger = Ledger()
    for every in (None, SaveEvery(steps=3), SaveEvery(epochs=1)):
        assert pace_of(CheckpointConfig(every=every), ledger, 1) is None
