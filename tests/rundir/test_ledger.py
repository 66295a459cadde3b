"""Every second is booked once."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.rundir.ledger import ACCOUNTS, Ledger


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_second_is_in_one_account() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    clock.now += 3
    with ledger.account("resume"):
        clock.now += 2
        with ledger.account("evaluation"):
            clock.now += 1
        clock.now += 4
    ledger.begin_training()
    clock.now += 10
    with ledger.account("data_wait"):
        clock.now += 5
    booked = {name: seconds for name, seconds in ledger.totals().items() if seconds}
    assert booked == {"start_up": 3, "resume": 6, "evaluation": 1, "compute": 10, "data_wait": 5}
    assert ledger.elapsed_s() == 25
    assert ledger.summary()["goodput"] == pytest.approx(10 / 25)


def test_an_error_inside_an_account_leaves_it() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    with pytest.raises(ValueError, match="x"), ledger.account("evaluation"):
        raise ValueError("x")
    clock.now += 7
    assert ledger.totals()["start_up"] == 7


def test_a_resume_after_a_crash_books_what_was_lost_and_the_idle_time(tmp_path: Path) -> None:
    clock, wall = Clock(), Clock(1000.0)
    first = Ledger(tmp_path / "ledger.json", clock, wall)
    clock.now += 2
    first.begin_training()
    clock.now += 10
    kept = first.totals()  # a checkpoint
    clock.now += 5
    wall.now += 17
    first.save()
    wall.now += 60  # dead
    second = Ledger(tmp_path / "ledger.json", clock, wall)
    clock.now += 3
    wall.now += 3
    second.resume(kept)
    booked = second.totals()
    assert booked["compute"] == 10
    assert booked["work_lost"] == 5
    assert booked["idle"] == 60
    assert booked["start_up"] == 2 + 3
    assert sum(booked.values()) == 2 + 10 + 5 + 60 + 3


def test_launches_that_were_cut_off_are_counted(tmp_path: Path) -> None:
    seen = []
    for ended in (False, False, True, True, False, True):
        ledger = Ledger(tmp_path / "ledger.json", Clock(), Clock())
        ledger.resume(None)
        seen.append(ledger.failures)
        ledger.ended = ended
        ledger.save()
    assert seen == [0, 1, 2, 2, 2, 3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"totals": {"bribes": 3.0}, "wall_s": 1.0}',
        '{"totals": {}, "wall_s": null}',
        '{"totals": {}, "wall_s": 1.0, "failures": "many"}',
    ],
)
def test_a_damaged_file_is_passed_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(text)
    ledger = Ledger(path, Clock(), Clock())
    ledger.resume({"compute": 4.0})
    assert ledger.totals()["compute"] == 4.0


def test_what_is_saved_names_every_account(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.save()
    assert set(json.loads((tmp_path / "ledger.json").read_text())["totals"]) == set(ACCOUNTS)


def test_it_is_left_once_a_period(tmp_path: Path) -> None:
    clock = Clock()
    ledger, path = Ledger(tmp_path / "ledger.json", clock, clock), tmp_path / "ledger.json"
    ledger.save(period_s=1.0)
    first = path.read_bytes()
    clock.now += 0.9
    ledger.save(period_s=1.0)
    assert path.read_bytes() == first
    clock.now += 0.1
    ledger.save(period_s=1.0)
    assert path.read_bytes() != first


def test_the_time_before_the_first_line_is_start_up() -> None:
    code = (
        "import time; time.sleep(0.5); from harness.rundir.ledger import process_age_s; "
        "print(process_age_s())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    assert float(out) >= 0.5
    assert Ledger(clock=Clock(), age_s=4.0).totals()["start_up"] == 4.0
