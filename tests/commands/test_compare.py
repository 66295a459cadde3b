"""`fermarsi compare` says what differs between runs."""

import json
import shutil
from pathlib import Path

import pytest

from harness.commands.compare import compare_runs
from harness.errors import ConfigError
from harness.rundir.outcome import read_outcome
from tests.pool import command


def test_settings_results_and_time_side_by_side(digits: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(digits, tmp_path / "wide", symlinks=True))
    config = (other / "config.yaml").read_text()
    assert "lr:" in config
    changed = [
        "  lr: 0.5" if line.strip().startswith("lr:") else line for line in config.splitlines()
    ]
    (other / "config.yaml").write_text("\n".join(changed) + "\n")
    outcome = json.loads((other / "outcome.json").read_text())
    outcome["time"]["compute_s"] += 3600.0
    (other / "outcome.json").write_text(json.dumps(outcome))
    found = compare_runs([digits, other])
    assert [*found.settings] == ["optimizer.lr"]
    assert found.settings["optimizer.lr"][1] == 0.5
    ended = read_outcome(digits)
    assert ended is not None
    assert found.results["ended"] == [ended.reason] * 2
    assert ended.best is not None
    assert found.results[f"best {ended.best['metric']}"] == [ended.best["value"]] * 2
    assert found.time["compute"][1] - found.time["compute"][0] == pytest.approx(3600)
    shown = command("compare", digits, other)
    assert shown.exit_code == 0, shown.stderr
    assert "optimizer.lr" in shown.stdout
    renamed = (other / "config.yaml").read_text().replace("split: val", f"split: {'x' * 90}")
    (other / "config.yaml").write_text(renamed)
    shown = command("compare", digits, other)
    assert "\u2026" not in shown.stdout  # 80 columns cut nothing: names are told apart
    assert "x" * 15 in shown.stdout
    asked = json.loads(command("compare", digits, other, "--json").stdout)
    assert asked["settings"].pop("data.val.source.split") == ["val", "x" * 90]
    assert asked["settings"] == {"optimizer.lr": found.settings["optimizer.lr"]}


def test_a_run_that_has_not_ended_and_equal_settings(digits: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(digits, tmp_path / "begun", symlinks=True))
    (other / "outcome.json").unlink()
    found = compare_runs([digits, other])
    assert found.settings == {}
    assert found.results["ended"][1] == "not yet"
    assert "All settings are the same." in list(found.page())


def test_what_is_no_run_is_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one run"):
        compare_runs([digits])
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        compare_runs([digits, tmp_path])
