"""Somebody else's run or checkpoint is data: whatever its config names, nothing of it runs."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.manifest import MANIFEST, dump_manifest, parse_manifest
from harness.checkpoint.retention import RANKED_BY
from harness.tracking.courier import RunInfo
from harness.tracking.settings import WandbConfig
from harness.tracking.weights_and_biases import WandbRun
from tests.commands.forged import DIGITS, change_config, checkpoints_of, copied
from tests.pool import Launched, command, train_on_ranks


def assert_harmless(ended: Launched, mark: Path, code: int | None = None) -> None:
    assert not mark.exists(), f"code of the run ran: {ended.stderr}"
    assert "Traceback" not in ended.stderr, ended.stderr
    if code is not None:
        assert ended.exit_code == code, ended.stderr


def touching(mark: Path) -> dict[str, Any]:
    return {"_target_": "subprocess.getoutput", "cmd": f"touch {mark}"}


SMALL = (
    "stop.every={steps: 2}",
    "checkpoint={every: {steps: 2}, keep_last: 3}",
    "batch={size: 32, micro_size: 32}",
    "stop.targets=null",
)


# -- 1: commands that only look, and launches that resume from it


@pytest.mark.parametrize("action", ["list", "verify", "prune"])
@pytest.mark.parametrize("where", ["network", "task", "optimizer", "optimizer.lr"])
def test_checkpoints_are_listed_verified_and_pruned_without_any_component(
    digits: Path, tmp_path: Path, action: str, where: str
) -> None:
    run, mark = copied(digits, tmp_path / "run"), tmp_path / "mark"
    change_config(run, {where: touching(mark)})
    ended = command("checkpoints", action, run)
    assert_harmless(ended, mark, 0)
    if action == "prune":
        assert len(checkpoints_of(run)) in (1, 2)


def test_a_module_of_the_run_directory_is_not_imported(digits: Path, tmp_path: Path) -> None:
    run, mark = copied(digits, tmp_path / "run"), tmp_path / "mark"
    change_config(run, {"task": {"_target_": "from_the_run.Task"}, "stop.best": None})
    (run / "from_the_run.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n")
    for arguments in (("list",), ("verify",), ("prune", "--keep-best", "2")):
        assert_harmless(command("checkpoints", *arguments, run), mark, 0)


@pytest.mark.parametrize("where", ["task", "optimizer.lr", "schedule", "data.val.source"])
def test_a_launch_that_goes_on_from_another_s_checkpoint_makes_nothing_of_its_config(
    digits: Path, tmp_path: Path, where: str
) -> None:
    run, mark = copied(digits, tmp_path / "run"), tmp_path / "mark"
    change_config(run, {where: touching(mark)})
    found = checkpoints_of(run)[-1]
    asked = [*SMALL, "stop.budget={steps: 8}"]
    (end,) = train_on_ranks(
        1, DIGITS, [*asked, f"run.dir={tmp_path / 'mine'}", f"run.resume={found}"]
    )
    assert_harmless(end, mark, 2)
    (end,) = train_on_ranks(1, DIGITS, [*asked, f"run.dir={run}"])
    assert_harmless(end, mark, 2)


def test_the_look_at_a_finished_run_makes_nothing_of_its_config(
    digits: Path, tmp_path: Path
) -> None:
    run, mark = copied(digits, tmp_path / "run"), tmp_path / "mark"
    change_config(run, {"task": touching(mark)})
    outcome = (run / "outcome.json").read_text()
    for reason in ("budget", "diverged"):
        (run / "outcome.json").write_text(outcome.replace('"budget"', f'"{reason}"'))
        (end,) = train_on_ranks(1, DIGITS, [*SMALL, "stop.budget={steps: 6}", f"run.dir={run}"])
        assert_harmless(end, mark)


def test_weights_of_another_s_run_are_taken_without_its_config(
    digits: Path, tmp_path: Path
) -> None:
    run, mark = copied(digits, tmp_path / "run"), tmp_path / "mark"
    change_config(run, {"network": touching(mark), "task": touching(mark)})
    asked = [*SMALL, "stop.budget={steps: 2}", f"run.dir={tmp_path / 'mine'}"]
    (end,) = train_on_ranks(1, DIGITS, [*asked, f"run.init_from={run}"])
    assert_harmless(end, mark, 0)


def test_checkpoints_of_an_earlier_version_are_pruned_by_the_link_alone(
    digits: Path, tmp_path: Path
) -> None:
    run = copied(digits, tmp_path / "run")
    for checkpoint in checkpoints_of(run):
        manifest = parse_manifest((checkpoint / MANIFEST).read_bytes())
        facts = {name: fact for name, fact in manifest.facts.items() if name != RANKED_BY}
        (checkpoint / MANIFEST).write_bytes(
            dump_manifest(manifest.model_copy(update={"facts": facts}))
        )
    refused = command("checkpoints", "prune", run, "--keep-best", 2)
    assert refused.exit_code == 2
    assert "it is not known which checkpoints are best, so none is deleted" in refused.stderr
    assert len(checkpoints_of(run)) == 3
    best = (run / "checkpoints" / "best").resolve()
    assert command("checkpoints", "prune", run).exit_code == 0
    assert best in checkpoints_of(run)


# -- 2: what a network, a task or a source is made of


def torch_file(path: Path, mark: Path) -> Path:
    """A pickle that touches a file when it is read."""
    path.write_bytes(pickle.dumps(Touch(str(mark))))
    return path


class Touch:
    def __init__(self, mark: str) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._mark}",)


def attacks(run: Path, mark: Path) -> dict[str, dict[str, Any]]:
    """Configs that ran code of the checkpoint's, or would have, by `key: value`."""
    (run / "evil.py").write_text(
        f"import pathlib; pathlib.Path({str(mark)!r}).touch()\nclass Net: pass\n"
    )
    pickled = torch_file(run / "weights.pth", mark)
    remote = "transformers.AutoModelForImageClassification.from_config"
    vit = {"_target_": "transformers.ViTConfig", "auto_map": {"AutoModel": f"{run}--evil.Net"}}
    return {
        "a function of transformers": {
            "network": {
                "_target_": "transformers.testing_utils.execute_subprocess_async",
                "cmd": ["touch", str(mark)],
            }
        },
        "a module in the checkpoint": {
            "network": {
                "_target_": "transformers.dynamic_module_utils.get_class_in_module",
                "class_name": "Net",
                "module_path": str(run / "evil.py"),
            }
        },
        "code that a config names": {
            "network": {"_target_": remote, "config": vit, "trust_remote_code": True}
        },
        "a pickle for timm": {
            "network": {
                "_target_": "timm.create_model",
                "model_name": "resnet10t",
                "checkpoint_path": str(pickled),
            }
        },
        "a pickle for timm, deeper": {
            "network": {
                "_target_": "harness.networks.Chain",
                "one": {
                    "_target_": "timm.create_model",
                    "model_name": "resnet10t",
                    "pretrained": True,
                    "pretrained_cfg": {"file": str(pickled)},
                },
            }
        },
        "a data set of pickles": {
            "data.val.source": {
                "_target_": "harness.sources.hub.Hub",
                "path": "pandas",
                "data_files": str(pickled),
            }
        },
        "a call of torchvision's": {
            "task": {
                "_target_": "harness.tasks.Classification",
                "input": "image",
                "target": {
                    "_target_": "torchvision.datasets.utils.extract_archive",
                    "from_path": str(pickled),
                },
            }
        },
        "a class of ours that writes": {
            "network": {"_target_": "harness.data.store.Store", "directory": str(mark)}
        },
    }


def test_evaluate_and_predict_make_nothing_that_runs_code(digits: Path, tmp_path: Path) -> None:
    mark, one = tmp_path / "mark", tmp_path / "one"
    for name, changes in attacks(tmp_path, mark).items():
        run = copied(digits, one)
        change_config(run, changes)
        for arguments in (["evaluate", run], ["predict", run, "--out", tmp_path / "out.csv"]):
            ended = command(*arguments)
            assert_harmless(ended, mark, 2)
            assert "If you trust this one, add --allow " in ended.stderr, name
        assert not (tmp_path / "out.csv").exists()
        shutil.rmtree(run)


def test_a_user_who_trusts_it_says_so(digits: Path, tmp_path: Path) -> None:
    run, mark = copied(digits, tmp_path / "run"), tmp_path / "mark"
    change_config(run, {"network": touching(mark)})
    told = command("evaluate", run).stderr
    flag = told[told.index("--allow ") :].split(":")[0].split()
    assert flag == ["--allow", "subprocess.getoutput"]
    command("evaluate", run, *flag)
    assert mark.exists()


@pytest.mark.parametrize("command_line", [["evaluate", "."], ["predict", ".", "--out", "p.csv"]])
def test_modules_that_lie_where_one_stands_are_not_those_of_a_run(
    digits: Path, tmp_path: Path, command_line: list[str]
) -> None:
    run, mark = copied(digits, tmp_path / "run"), tmp_path / "mark"
    # What is not installed, or what a library looks for if it is there
    for name in ("soundfile", "evil", "usercustomize", "apex", "tensorflow", "cupy"):
        (run / f"{name}.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n")
    change_config(run, {"task": {"_target_": "evil.Task"}})
    main = "from harness.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", main, *command_line],
        cwd=run,
        env=os.environ | {"PYTHONPATH": str(DIGITS.parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert_harmless(Launched(ended.returncode, ended.stdout, ended.stderr), mark, 2)
    assert "evil.Task is code from elsewhere" in ended.stderr


# -- 3: nothing leaks, no other machine is asked, no other file is read


SECRET = {"SECRET_KEY": "hunter2hunter2"}


@pytest.mark.parametrize("key", ["run.name", "network.activation", "stop.best.metric"])
def test_nothing_of_the_environment_gets_into_what_another_s_config_says(
    digits: Path, tmp_path: Path, key: str
) -> None:
    leak, run = "${oc.env:SECRET_KEY}", copied(digits, tmp_path / "run")
    change_config(run, {key: leak, "tracking.wandb": {"project": leak, "mode": "offline"}})
    launch = [*SMALL, "stop.budget={steps: 8}", f"run.dir={run}"]
    ends = [
        command(*arguments, env=SECRET)
        for arguments in (
            ["evaluate", run],
            ["replay", run],
            ["report", run],
            ["track", "sync", run],
            ["checkpoints", "list", run],
            ["status", run],
        )
    ]
    ends += train_on_ranks(1, DIGITS, launch, env=SECRET)
    for end in ends:
        assert "hunter2" not in end.stdout + end.stderr
        assert "Traceback" not in end.stderr, end.stderr
    files = [path for path in run.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


def test_no_other_file_and_no_other_machine_is_asked_for_what_a_checkpoint_names(
    digits: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "credentials.csv"
    secret.write_text("aws_access_key_id,hunter2\n1,2\n")
    table = {"_target_": "harness.sources.tables.Table", "features": ["x"]}
    for path, said in (
        (secret, "is outside the working directory"),
        ("https://evil.example/?q=1", "is fetched from elsewhere"),
        ("evil/data-set.csv", "no such file"),
    ):
        run = copied(digits, tmp_path / "run")
        change_config(run, {"data.val.source": {**table, "files": str(path)}})
        for arguments in (["evaluate", run], ["predict", run, "--out", tmp_path / "out.csv"]):
            ended = command(*arguments)
            assert ended.exit_code == 2
            assert said in ended.stderr, ended.stderr
            assert "hunter2" not in ended.stderr
        shutil.rmtree(run)
    run = copied(digits, tmp_path / "run")
    change_config(run, {"data.val.source": {**table, "files": str(secret)}})
    for env, more in (({}, ["--allow", f"{tmp_path}/"]), ({"FERMARSI_ALLOW": f"{tmp_path}/"}, [])):
        assert "no column 'x'" in command("evaluate", run, *more, env=env).stderr


def test_a_stored_config_is_read_from_one_regular_file(digits: Path, tmp_path: Path) -> None:
    run, base = copied(digits, tmp_path / "run"), tmp_path / "base.yaml"
    base.write_text("hunter2: {a: [1\n")
    change_config(run, {"base": str(base)})
    for arguments in (["evaluate", run], ["replay", run], ["report", run]):
        ended = command(*arguments)
        assert ended.exit_code == 2
        assert "the config stored by a run must be complete" in ended.stderr
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")
    for arguments in (["report", run], ["track", "sync", run]):
        ended = command(*arguments, timeout_s=20)
        assert ended.exit_code == 2
        assert "not a regular file" in ended.stderr


def test_a_sync_sends_nothing_of_this_machine_and_of_the_code_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    asked: list[dict[str, Any]] = []

    class Opened:
        starting_step = 0

        def define_metric(self, *_: object, **__: object) -> None: ...

    def init(**options: Any) -> Opened:
        asked.append(options)
        return Opened()

    monkeypatch.setattr(wandb, "init", init)
    info = RunInfo("theirs", "0123abcd", tmp_path, {}, "")
    for live in (False, True):
        WandbRun(WandbConfig(project="theirs", mode="offline"), info, print, live=live).begin()
    sync, training = (one["settings"] for one in asked)
    assert sync.disable_git
    assert sync.disable_code
    assert sync.x_disable_meta
    assert not training.disable_git
