"""Links in a run directory lead nothing of ours to write, delete or show what lies elsewhere."""

import os
from pathlib import Path

import pytest

from harness.rundir.links import WRITTEN
from tests.commands.forged import DIGITS, checkpoints_of, copied
from tests.commands.test_hostile_code import SMALL
from tests.pool import Launched, command, train_on_ranks


def everything_in(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def linked(run: Path, name: str, elsewhere: Path) -> Path:
    """The run with one of its files or directories moved away, and a link in its place."""
    if not (run / name).exists():
        (run / name).mkdir()
    (elsewhere / name).parent.mkdir(exist_ok=True, parents=True)
    (run / name).rename(elsewhere / name)
    (run / name).symlink_to(elsewhere / name)
    return elsewhere / name


def assert_refused(ended: Launched, run: Path, name: str) -> None:
    assert ended.exit_code == 2, ended.stdout + ended.stderr
    assert f"{run / name}: a link" in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr


def test_these_are_all_that_is_written(digits: Path, tmp_path: Path) -> None:
    run = copied(digits, tmp_path / "run")
    trackers = ["tracking.backends=[tensorboard]", "tracking.wandb={project: p, mode: offline}"]
    asked = [*SMALL, "stop.budget={steps: 8}", "log.trace=true", f"run.dir={run}", *trackers]
    (ended,) = train_on_ranks(1, DIGITS, asked)
    assert ended.exit_code == 0, ended.stderr
    assert command("report", run).exit_code == 0
    assert {*os.listdir(run)} <= {*WRITTEN}
    assert {"tensorboard", "trace.jsonl", "report.html", "lease"} <= {*os.listdir(run)}


@pytest.mark.parametrize("name", [one for one in WRITTEN if one != "report.html"])
def test_launches_prune_and_sync_write_through_no_link(
    digits: Path, tmp_path: Path, name: str
) -> None:
    run, elsewhere = copied(digits, tmp_path / "run"), tmp_path / "elsewhere"
    linked(run, name, elsewhere)
    for more in (".hidden", "events.out.tfevents.1", "00000000", "step-00000001"):
        (elsewhere / more).write_text("mine")
        if (elsewhere / name).is_dir():
            (elsewhere / name / more).write_text("mine")
    before = everything_in(elsewhere)
    asked = [*SMALL, "stop.budget={steps: 8}", "log.trace=true", f"run.dir={run}"]
    assert_refused(train_on_ranks(1, DIGITS, asked)[0], run, name)
    assert_refused(command("checkpoints", "prune", run), run, name)
    if name not in ("metrics.jsonl", "config.yaml"):
        sync = ["track", "sync", run, "tracking.backends=[tensorboard]"]
        assert_refused(command(*sync), run, name)
    assert everything_in(elsewhere) == before
    assert name == "checkpoints" or len(checkpoints_of(run)) == 3


def test_a_report_replaces_a_link_of_its_name(digits: Path, tmp_path: Path) -> None:
    run, mine = copied(digits, tmp_path / "run"), tmp_path / "mine"
    mine.write_text("mine")
    (run / "report.html").symlink_to(mine)
    assert command("report", run).exit_code == 0
    assert mine.read_text() == "mine"
    assert not (run / "report.html").is_symlink()
    assert "<svg" in (run / "report.html").read_text()


def test_a_report_shows_no_file_that_a_link_leads_to(digits: Path, tmp_path: Path) -> None:
    run, secret = copied(digits, tmp_path / "run"), tmp_path / "secret"
    secret.write_text("stop: {budget: {steps: 1}}\nkey: hunter2\n")
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(secret)
    for arguments in (["report", run], ["replay", run], ["track", "sync", run]):
        ended = command(*arguments)
        assert ended.exit_code == 2
        assert "config.yaml: cannot be read: a link" in ended.stderr, ended.stderr
        assert "hunter2" not in ended.stdout + ended.stderr


def test_only_what_leases_are_called_is_cleared_away(digits: Path, tmp_path: Path) -> None:
    run = copied(digits, tmp_path / "run")
    kept = (".git", ".env", "notes", "12", ".00000001-zz", "00000001x", "²²²²²²²²")
    for name in (*kept, ".00000001-0123abcd", "00000000"):
        (run / "lease" / name).touch()
    ended = command("checkpoints", "prune", run)
    assert ended.exit_code == 0, ended.stderr
    assert {*kept} <= {*os.listdir(run / "lease")}
    assert not {".00000001-0123abcd", "00000000"} & {*os.listdir(run / "lease")}


def test_a_checkpoint_that_is_a_link_is_taken_away_as_a_link(digits: Path, tmp_path: Path) -> None:
    run = copied(digits, tmp_path / "run")
    oldest = checkpoints_of(run)[0]
    moved = oldest.rename(tmp_path / "moved")
    oldest.symlink_to(moved)
    before = everything_in(moved)
    (run / "checkpoints" / "best").unlink()
    (run / "checkpoints" / "best").symlink_to("../../moved")
    ended = command("checkpoints", "prune", run, "--keep-last", 1)
    assert ended.exit_code == 0, ended.stderr
    assert everything_in(moved) == before
