"""`fermarsi evaluate` says what the run said."""

import json
import re
from pathlib import Path

import pytest

from harness.commands.compare import refuse_changes
from harness.config.mistakes import known_fields
from harness.config.read import read_config, resolved_yaml
from harness.config.schema import Config
from harness.errors import ConfigError
from harness.wording import dotted
from tests.config.test_read import BASE
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
    said = "  optimizer.lr: 0.001 -> 0.5\n  network.width: as it was trained\nLeave them out, or"
    assert f"have no effect:\n{said}" in refused.stderr
    refused = command("evaluate", run, "split=test")
    assert "an option begins with two dashes: --split test" in " ".join(refused.stderr.split())
    refused = command("predict", run, "val", "--out", tmp_path / "found.csv")
    assert (refused.exit_code, "only options follow a run" in refused.stderr) == (2, True)


@pytest.mark.parametrize("words", ["evaluate", "report", "status", "replay", "checkpoints list"])
def test_a_name_that_no_file_can_have_is_told_in_one_line(words: str) -> None:
    ended = command(*words.split(), "x" * 300)
    assert ended.exit_code == 2
    assert len(ended.stderr.strip().splitlines()) == 1


def test_each_setting_after_a_run_is_refused_by_name(tmp_path: Path) -> None:
    """For all keys of the schema: none has an effect, and none is dropped in silence."""
    (tmp_path / "digits.yaml").write_text(BASE)
    (tmp_path / "config.yaml").write_text(resolved_yaml(read_config(tmp_path / "digits.yaml")))
    keys = [dotted(one).replace("*", "encoder") for one in known_fields(Config)]
    assert len(keys) > 200
    for key in keys:
        named = re.escape(key)
        with pytest.raises(ConfigError, match=f"\n  {named}: .* -> 7391\n|{named}=7391: .*no keys"):
            refuse_changes(tmp_path, [f"{key}=7391"])
    with pytest.raises(ConfigError, match=r"Other samples: fermarsi predict --files or --source"):
        refuse_changes(tmp_path, ["data.val.source.files=new.csv"])
