"""What a sweep sees of its trials."""

import json
from pathlib import Path
from typing import Any

from harness.search.follow import Prospect, Tail
from harness.stopping.budget import Budget
from harness.stopping.verdict import MetricInfo


def line(step: int, **more: Any) -> str:
    record = {"kind": "eval", "step": step, "epoch": step / 10, "samples": step, "elapsed_s": 1.0}
    return json.dumps({**record, "val/loss": 1 / step, **more}) + "\n"


def test_each_evaluation_is_seen_once_however_the_file_grows_or_is_cut_back(
    tmp_path: Path,
) -> None:
    """Optuna 3002: what was no interval's end, a sanity check, was reported as the first value."""
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert not list(tail.read())  # not there yet
    path.write_text('{"kind": "train", "step": 1}\n' + line(10) + line(15, extra_evaluation=True))
    assert [one["step"] for one in tail.read()] == [10]
    with path.open("a") as file:
        file.write(line(20) + line(30)[:9])
    assert [one["step"] for one in tail.read()] == [20]
    with path.open("a") as file:
        file.write(line(30)[9:])
    assert [one["step"] for one in tail.read()] == [30]
    # A launch goes on from step 10, and does again what comes then
    path.write_text(line(10) + line(20))
    assert not list(tail.read())
    path.write_text(line(10) + line(20) + line(30) + line(40))
    assert [one["step"] for one in tail.read()] == [40]
    # Longer than it was when it is looked at again: the place lies within a line
    path.write_text(line(10, more="x" * 7) + line(20) + line(30) + line(40) + line(50))
    assert [one["step"] for one in (*tail.read(), *tail.read())] == [50]


def test_a_prospect_passes_over_what_is_not_measured_and_waits_for_a_best() -> None:
    prospect = Prospect("val/loss", MetricInfo("min", 0.0), Budget(steps=400))
    rows = [json.loads(line(10 * n)) | {"val/loss": 2 + 1 / n, "lr": 0.1} for n in range(1, 30)]
    assert not any(prospect.take(row, None) for row in rows[:8])
    lost = [{**rows[8], "val/loss": value} for value in (None, float("nan"))]
    assert not any(prospect.take(row, 0.5) for row in lost)
    ended = [prospect.take(row, 0.5) for row in rows[8:]]
    assert ended[:3] == [False, False, True]
