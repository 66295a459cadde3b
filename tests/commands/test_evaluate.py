"""`fermarsi evaluate` says what the run said."""

import json
from pathlib import Path

import pytest

from tests.pool import command, train_on_ranks
from tests.resume.test_exact import STORM


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_split_is_evaluated_in_the_run_s_precision(tmp_path: Path, precision: str) -> None:
    run = tmp_path / "run"
    asked = [f"run.dir={run}", f"train.precision={precision}", "stop.budget.steps=6"]
    (end,) = train_on_ranks(1, STORM, [*asked, "network.width=16"])
    assert end.exit_code == 0, end.stderr
    said = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (kept,) = [record for record in said if record["kind"] == "eval"]
    allow = ("--allow", "tests.")
    found = command("evaluate", run, "--json", *allow)
    assert found.exit_code == 0, found.stderr
    values = json.loads(found.stdout)
    for name in ("loss", "accuracy"):
        assert values[name] == kept[f"val/{name}"], name
    shown = "float32" if precision == "no" else precision
    assert f"in the run's precision ({shown})" in command("evaluate", run, *allow).stdout
    asked = ["evaluate", run, *allow, "optimizer.lr=0.5", "network.width=16"]
    refused = command(*asked)
    assert refused.exit_code == 2
    assert f"{run}: a network is evaluated with the settings that it" in refused.stderr
    assert "have no effect:\n  optimizer.lr: 0.001 -> 0.5\nLeave them out, or" in refused.stderr
    refused = command("predict", run, "val", "--out", tmp_path / "found.csv")
    assert (refused.exit_code, "only options follow a run" in refused.stderr) == (2, True)


@pytest.mark.parametrize("words", ["evaluate", "report", "status", "replay", "checkpoints list"])
def test_a_name_that_no_file_can_have_is_told_in_one_line(words: str) -> None:
    ended = command(*words.split(), "x" * 300)
    assert ended.exit_code == 2
    assert len(ended.stderr.strip().splitlines()) == 1
