"""What past runs suggest, on runs whose answer is known."""

import json
import math
from pathlib import Path

import pytest

from harness.cli import app
from harness.errors import ConfigError


def run(directory: Path, name: str, values: list[float]) -> str:
    path = directory / f"{name}.jsonl"
    rows = [{"step": 10 * n, "val/accuracy": value} for n, value in enumerate(values, 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_it_saves_what_every_run_can_spare_and_is_honest_about_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("stop: {improvement: {metric: val/accuracy, patience: 9}}\n")
    # All rise with pauses of two intervals, and are done after ten
    paused = [0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.9, 0.9, 0.9, 0.95]
    runs = [run(tmp_path, str(n), [v - 0.01 * n for v in paused] + [0.9] * 20) for n in range(3)]
    asked = ["replay", *runs, "--config", str(config), "--suggest"]
    assert app(asked, standalone_mode=False) == 0
    said = capsys.readouterr().out
    # Two are stale in a row before the last gain, so three are needed: stops at 13 of 30
    assert "at_least: 0%, patience: 3}" in said
    assert "57%" in said
    assert "(leave-one-out, 3 of 3 runs): saves 57% of its steps at a regret of 0.00%" in said
    # A run that pauses longer needs more, and is lost by what the others suggest
    longer = [0.1, *[0.1] * 6, 0.9]
    runs.append(run(tmp_path, "late", longer + [0.9] * 22))
    assert app(["replay", *runs, *asked[4:]], standalone_mode=False) == 0
    said = capsys.readouterr().out
    assert "patience: 7}" in said
    loss = math.floor(100 * (0.8 / 0.9))
    assert f"at most {loss}." in said
    with pytest.raises(ConfigError, match=r"--regret: no effect without --suggest"):
        app([*asked[:-1], "--regret", "0.1"], standalone_mode=False)
    with pytest.raises(ConfigError, match="at least two runs"):
        app(["replay", runs[0], *asked[4:]], standalone_mode=False)
    with pytest.raises(ConfigError, match="not together with --sweep, --json or --plot"):
        app([*asked, "--json"], standalone_mode=False)


@pytest.mark.parametrize(
    "stop",
    [
        "improvement: {metric: val/accuracy, mode: min, patience: 9}",
        "{best: {metric: val/accuracy, mode: min}, budget: {steps: 9}}",
    ],
)
def test_what_is_better_is_as_the_settings_say_and_a_directory_may_be_named_by_a_setting(
    stop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"stop: {{{stop}}}" if stop[0] != "{" else f"stop: {stop}")
    falling = [1 / n for n in range(1, 9)] + [0.2] * 12
    runs = [run(tmp_path, f"lr=0.{n}", falling) for n in range(2)]
    assert app(["replay", *runs, "--config", str(config), "--suggest"], standalone_mode=False) == 0
    # The last gain is the eighth of 20: stops at the ninth
    assert "saves 55% of its steps at a regret of 0.00%" in capsys.readouterr().out
    begun = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in begun:
        path.write_text('{"step": 0, "val/accuracy": 0.5}\n')
    asked = ["replay", *map(str, begun), "--config", str(config), "--suggest"]
    assert app(asked, standalone_mode=False) == 0
    assert "saves 0% of its steps" in capsys.readouterr().out


@pytest.mark.parametrize("values", [[math.nan] * 9, [math.inf] * 9, [math.nan, *[0.5] * 8]])
def test_a_run_without_a_value_is_named(values: list[float], tmp_path: Path) -> None:
    """Diverged at once, or never measured: it ended in a traceback."""
    config = tmp_path / "config.yaml"
    config.write_text("stop: {improvement: {metric: val/loss, patience: 9}}\n")
    rows = [{"step": n, "val/loss": value} for n, value in enumerate(values, 1)]
    lost, good = tmp_path / "lost.jsonl", tmp_path / "good.jsonl"
    lost.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good.write_text('{"step": 1, "val/loss": 1.0}\n{"step": 2, "val/loss": 0.5}\n')
    asked = ["replay", str(good), str(lost), "--config", str(config), "--suggest"]
    with pytest.raises(ConfigError, match=r"lost\.jsonl: val/loss has no finite value before"):
        app(asked, standalone_mode=False)
