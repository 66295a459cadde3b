"""Somebody else's run or checkpoint is data: whatever its config names, nothing of it runs."""

from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.manifest import MANIFEST, dump_manifest, parse_manifest
from harness.checkpoint.retention import RANKED_BY
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


# -- 1: commands that only look, and launches that go on from it


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
    assert "which checkpoints are best cannot be told, so none is deleted" in refused.stderr
    assert len(checkpoints_of(run)) == 3
    best = (run / "checkpoints" / "best").resolve()
    assert command("checkpoints", "prune", run).exit_code == 0
    assert best in checkpoints_of(run)
