"""A secret of the environment reaches the component that takes it, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.config.read import read_config, read_stored, resolved_yaml
from harness.errors import ConfigError
from harness.hidden import Reference
from harness.sources.digits import Digits
from tests.commands.forged import DIGITS, change_config, checkpoints_of, copied
from tests.commands.test_hostile_code import SMALL
from tests.pool import command, train_on_ranks

VALUE = "hunter2hunter2"
ENV = {"HF_TOKEN": VALUE}
PLACE = "${oc.env:HF_TOKEN}"
STORED = "${secret:HF_TOKEN}"


class Guarded(Digits):
    """Digits for those who know the secret; who says it wrong is told what was said."""

    def __init__(self, split: str, token: str, url: str = "") -> None:
        if token != VALUE:
            raise ValueError(f"wrong token: {token}")
        if url and url != f"https://me:{VALUE}@host/digits":
            raise ValueError(f"wrong url: {url}")
        super().__init__(split)


def sources(**more: str) -> list[str]:
    spec = {"_target_": "tests.commands.test_secrets.Guarded", "token": PLACE, **more}
    return [
        f"data.{name}.source={json.dumps({**spec, 'split': name})}"
        for name in ("train", "val", "test")
    ]


def everything_written(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()
    }


def test_a_run_with_a_secret_is_trained_resumed_reported_and_tracked_without_showing_it(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    url = "https://me:${oc.env:HF_TOKEN}@host/${run.name}"
    trackers = ["tracking.backends=[tensorboard]", "tracking.wandb={project: p, mode: offline}"]
    asked = [*SMALL, *sources(url=url), *trackers, f"run.dir={run}"]
    asked += [f"data.store={{dir: {tmp_path / 'store'}}}"]
    shown = []
    for steps in (4, 8):
        (end,) = train_on_ranks(1, DIGITS, [*asked, f"stop.budget={{steps: {steps}}}"], env=ENV)
        assert end.exit_code == 0, end.stderr
        shown.append(end.stdout + end.stderr)
    assert "going on from step-00000004" in shown[-1]
    assert "changed from step 4 on: stop.budget.steps: 4 -> 8\n" in shown[-1]
    for arguments in (
        ["report", run],
        ["evaluate", run, "--allow", "tests"],
        ["track", "sync", run, "tracking.wandb=null"],
        ["checkpoints", "list", run],
        ["replay", run],
    ):
        ended = command(*arguments, env=ENV)
        assert ended.exit_code == 0, ended.stderr
        shown.append(ended.stdout + ended.stderr)
    assert not [text for text in shown if VALUE in text]
    written = {**everything_written(run), **everything_written(tmp_path / "store")}
    assert not [name for name, content in written.items() if VALUE.encode() in content]
    assert STORED in (run / "config.yaml").read_text()
    assert STORED in (run / "report.html").read_text()
    assert STORED in (checkpoints_of(run)[-1] / "config.yaml").read_text()


def test_an_error_of_the_component_does_not_tell_it(tmp_path: Path) -> None:
    asked = [*SMALL, *sources(), "stop.budget={steps: 2}", f"run.dir={tmp_path / 'run'}"]
    (end,) = train_on_ranks(1, DIGITS, asked, env={"HF_TOKEN": "another-secret"})
    assert end.exit_code == 2
    assert "wrong token: ***" in end.stderr
    assert "another-secret" not in end.stdout + end.stderr
    (end,) = train_on_ranks(1, DIGITS, asked)
    assert end.exit_code == 2
    assert "HF_TOKEN is not set in the environment. Set it." in end.stderr


def test_another_s_checkpoint_is_given_no_secret_unless_its_component_is_trusted(
    digits: Path, tmp_path: Path
) -> None:
    for key, spec in (
        ("network", {"_target_": "harness.networks.Mlp", "dims": [64, 256, 10], "norm": PLACE}),
        ("optimizer.lr", PLACE),
        ("data.val.source.split", "${secret:HF_TOKEN}"),
    ):
        run = copied(digits, tmp_path / key)
        change_config(run, {key: spec})
        refused = command("evaluate", run, env=ENV)
        assert refused.exit_code == 2
        assert "would be looked up in your environment" in refused.stderr, refused.stderr
        asked = [*SMALL, "stop.budget={steps: 8}", f"run.dir={run}"]
        (end,) = train_on_ranks(1, DIGITS, asked, env=ENV)
        assert end.exit_code == 2
        assert VALUE not in refused.stderr + end.stdout + end.stderr
        assert not [one for one in everything_written(run).values() if VALUE.encode() in one]


# -- what is a secret


def read(tmp_path: Path, **arguments: Any) -> Any:
    """What these arguments of a network become."""
    path = tmp_path / "c.yaml"
    lines = DIGITS.read_text().replace(
        "network: {_target_: harness.networks.Mlp, dims: [64, 256, 10]}",
        f"network: {json.dumps({'_target_': 'harness.networks.Chain', **arguments})}",
    )
    path.write_text(lines)
    return read_config(path)


def test_places_are_kept_by_the_key_by_the_variable_or_by_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "PLACE", "MONKEY_DIR", "DB_PASSWORD"):
        monkeypatch.setenv(name, f"{name.lower()}-value")
    kept = {
        "api_key": "${oc.env:PLACE}",
        "tokens": ["${oc.env:PLACE}"],
        "any": {"deeper": "x-${oc.env:DB_PASSWORD}-y"},
        "marked": "${secret:PLACE}",
        "default": "${secret:NOT_SET,abc}",
        "by_way": "${network.api_key}",
    }
    clear = {
        "path": "${oc.env:PLACE}",
        "monkey": "${oc.env:MONKEY_DIR}",
        "own": "\\${oc.env:HF_TOKEN}",
    }
    config = read(tmp_path, **kept, **clear)
    network = config.network
    assert isinstance(network["api_key"], Reference)
    assert network["api_key"] == network["by_way"] == "${secret:PLACE}"
    assert network["api_key"].value() == network["marked"].value() == "place-value"
    assert network["tokens"][0].value() == "place-value"
    assert network["any"]["deeper"].value() == "x-db_password-value-y"
    assert network["default"].value() == "abc"
    assert network["path"] == "place-value"
    assert network["monkey"] == "monkey_dir-value"
    assert network["own"] == "${oc.env:HF_TOKEN}"
    assert type(network["own"]) is str
    # Stored and read again it is the same
    (tmp_path / "stored.yaml").write_text(resolved_yaml(config))
    stored = read_stored(tmp_path / "stored.yaml")
    assert stored == config
    assert isinstance(stored.network["api_key"], Reference)
    assert type(stored.network["own"]) is str
    again = read_config(tmp_path / "stored.yaml")
    assert again == config
    shown = resolved_yaml(read_config(tmp_path / "c.yaml"))
    assert shown.count("-value") == 2  # of path and monkey


def test_a_secret_that_nothing_could_look_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NOT_SET is not set in the environment"):
        read(tmp_path, token="${oc.env:NOT_SET}")
    (tmp_path / "d.yaml").write_text(DIGITS.read_text())
    with pytest.raises(ConfigError, match=r"run\.name: .* only arguments of components can be sec"):
        read_config(tmp_path / "d.yaml", ["run.name='${secret:HOME}'"])
