"""The configs of sound and of thermal frames train on real data."""

import json
from pathlib import Path

import pytest

from tests.pool import command, train_on_ranks
from tests.sources.make_thermal import FASHION, make

ROOT = Path(__file__).parents[2]
DIGITS = ROOT.parent / "shared" / "data" / "fsdd"

needs_digits = pytest.mark.skipif(not DIGITS.is_dir(), reason=f"needs the spoken digits in {DIGITS}")


def best_of(directory: Path) -> float:
    found: dict[str, float] = json.loads((directory / "outcome.json").read_text())["best"]
    return found["value"]


@needs_digits
def test_spoken_digits_are_soon_told_apart(tmp_path: Path) -> None:
    config, env = ROOT / "configs" / "spoken_digits.yaml", {"FERMARSI_FSDD": str(DIGITS)}
    overrides = [f"run.dir={tmp_path / 'run'}", "stop.budget.epochs=3"]
    assert [one.exit_code for one in train_on_ranks(2, config, overrides, env=env)] == [0, 0]
    assert best_of(tmp_path / "run") > 0.4  # by chance 0.1; after 15 epochs 0.98


@needs_digits
@pytest.mark.torture
def test_spoken_digits_reach_95_percent_on_the_usual_test(tmp_path: Path) -> None:
    config, env = ROOT / "configs" / "spoken_digits.yaml", {"FERMARSI_FSDD": str(DIGITS)}
    assert [one.exit_code for one in train_on_ranks(2, config, [f"run.dir={tmp_path / 'run'}"], env=env, timeout_s=900)] == [0, 0]
    evaluated = command("evaluate", tmp_path / "run", "--split", "test", "--json", timeout_s=300)
    assert json.loads(evaluated.stdout)["accuracy"] >= 0.95


def test_without_the_recordings_one_message_says_where_they_were_looked_for(tmp_path: Path) -> None:
    (end,) = train_on_ranks(
        1, ROOT / "configs" / "spoken_digits.yaml", [f"run.dir={tmp_path / 'run'}"], env={"FERMARSI_FSDD": str(tmp_path / "fsdd")}
    )
    assert end.exit_code == 2
    assert f"data.train.source: {tmp_path}/fsdd/recordings/{{label}}_{{speaker}}_{{take}}.wav: no such file (looked in {tmp_path})" in end.stderr
    assert "Traceback" not in end.stderr


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_thermal_frames_are_soon_told_apart(tmp_path: Path) -> None:
    make(tmp_path / "frames", 2000, 10)
    overrides = [f"run.dir={tmp_path / 'run'}", "stop.budget.epochs=4"]
    ends = train_on_ranks(2, ROOT / "configs" / "thermal.yaml", overrides, env={"FERMARSI_THERMAL": str(tmp_path / "frames")})
    assert [one.exit_code for one in ends] == [0, 0]
    assert best_of(tmp_path / "run") > 0.6
