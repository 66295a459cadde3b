"""Reports of long runs and of many classes stay small."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from harness.commands.curve import MOST_POINTS, Curve
from harness.commands.report import RecordSummary, write_report
from tests.pool import command, train_on_ranks

SMALL = Path(__file__).parents[1] / "training" / "small.yaml"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 60))
def test_a_curve_keeps_its_peaks_in_bounded_memory(values: list[float], times: int) -> None:
    curve = Curve()
    for step, value in enumerate(values * times):
        curve.add(step, value)
    assert len(curve.steps) < 2 * MOST_POINTS
    assert (min(curve.values), max(curve.values)) == (min(values), max(values))
    assert curve.steps == sorted(set(curve.steps))
    assert all(
        (values * times)[step] == value
        for step, value in zip(curve.steps, curve.values, strict=True)
    )


def test_a_report_of_many_records_is_small(tmp_path: Path) -> None:
    [end] = train_on_ranks(1, SMALL, [f"run.dir={tmp_path}", "stop.budget.steps=4"])
    assert end.exit_code == 0, end.stderr
    noise = np.random.default_rng(0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        for step in range(5, 100_005):
            record = {"kind": "train", "step": step, "train/loss_step": noise.random()}
            file.write(json.dumps(record) + "\n")
    tracemalloc.start()
    history = RecordSummary.read(tmp_path / "metrics.jsonl")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert history.last is not None
    assert history.last["step"] == 100_004
    assert peak_bytes < 2_000_000  # as a list they take 40 MB
    assert write_report(tmp_path).stat().st_size < 2_000_000


def test_a_report_shows_the_fan_of_what_is_forecast(tmp_path: Path) -> None:
    stop = "stop: {targets: {val/accuracy: {at_least: 0.95}}, budget: {steps: 2000}}\n"
    (tmp_path / "config.yaml").write_text(stop)
    position = {"kind": "eval", "epoch": 1, "samples": 8, "elapsed_s": 1, "lr": 0.1}

    def report(last: int) -> str:
        rows = [
            {**position, "step": step, "val/accuracy": 0.9 - 20 / (step + 40)}
            for step in range(100, last + 1, 100)
        ]
        lines = "".join(json.dumps(one) + "\n" for one in rows)
        (tmp_path / "metrics.jsonl").write_text(lines)
        return write_report(tmp_path).read_text()

    looking_ahead, at_the_end = report(1000), report(2000)
    assert "<li>val/accuracy, 95%: 0.8" in looking_ahead
    assert "by step 2,000; chance to reach 0.95: " in looking_ahead
    assert "FillBetweenPolyCollection" in looking_ahead
    assert "FillBetweenPolyCollection" not in at_the_end
    assert "<li>" not in at_the_end
    few = report(300)
    assert "<li>no forecast of val/accuracy: 3 of at least 6 evaluations are there" in few


def test_the_table_of_many_classes_lies_in_a_file_of_its_own(tmp_path: Path) -> None:
    network = "network={_target_: torch.nn.Linear, in_features: 6, out_features: 300}"
    [end] = train_on_ranks(1, SMALL, [f"run.dir={tmp_path}", network])
    assert end.exit_code == 0, end.stderr
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert max(map(len, lines)) < 5000
    last = [one for line in lines if (one := json.loads(line))["kind"] == "eval"][-1]
    stated = last["tables"]["val/confusion"]
    assert stated == {"file": "tables/val-confusion.npy", "shape": [300, 300]}
    assert np.load(tmp_path / stated["file"]).sum() == 20
    ended = command("report", tmp_path)
    assert ended.exit_code == 0, ended.stderr
    assert "val/confusion" in (tmp_path / "report.html").read_text()
