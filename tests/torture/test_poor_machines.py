"""What a machine does to a training or to a command: whatever it is, it ends in order or with one
message, and the run continues with the bits of one that was left in peace.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.checkpoint.read import choose, list_checkpoints
from tests.pool import Launched, RanksFailed, on_ranks, train_on_ranks
from tests.resume.test_exact import STORM, assert_same, finish
from tests.torture import poor_parts

pytestmark = [pytest.mark.torture, pytest.mark.timeout(600)]
POOR = "optimizer={_target_: tests.torture.poor_parts.Poor, lr: 1e-3}"


def launch(directory: Path, ranks: int, poor: str, *overrides: str) -> list[Launched]:
    env = {"POOR": poor, "RUN_DISK": str(directory)}
    asked = [f"run.dir={directory}", POOR, *overrides]
    return train_on_ranks(ranks, STORM, asked, env=env, timeout_s=120)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with many checkpoints."""
    run = tmp_path_factory.mktemp("trained") / "run"
    finish(run, 1, "checkpoint.every.steps=4", "checkpoint.keep_last=100")
    return run


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks that was left in peace."""
    run = tmp_path_factory.mktemp("reference") / "run"
    ends = launch(run, 2, "")
    assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr
    return run


def test_a_kill_before_every_change_of_a_prune(trained: Path, tmp_path: Path) -> None:
    def copy() -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))

    prune = ["checkpoints", "prune", str(tmp_path / "run"), "--keep-last", "2"]
    copy()
    (number,) = on_ranks(1, poor_parts.die_at_change, 0, *prune)
    kept = [one.path.name for one in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert number > 20
    for point in range(1, number + 1):
        run = copy()
        with pytest.raises(RanksFailed) as failed:
            on_ranks(1, poor_parts.die_at_change, point, *prune)
        assert failed.value.failures[0].exit_code == -9
        choice = choose(run / "checkpoints", "auto")
        assert (choice.path and choice.path.name, choice.skipped) == (kept[-1], [])
        assert all(one.manifest for one in list_checkpoints(run / "checkpoints", "full"))
        assert on_ranks(1, poor_parts.command, *prune) == [0]
        left = sorted(one.name for one in (run / "checkpoints").iterdir() if not one.is_symlink())
        assert left == kept


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_checkpoint_that_is_deleted_while_a_command_reads_it(
    trained: Path, tmp_path: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a training does whose retention deletes it: it has been read, or is missed in words."""
    codes = []
    for point in range(1, 100):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        run = Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))
        checkpoint = run / "checkpoints" / "step-00000012"
        arguments = [command, str(checkpoint)]
        arguments += (
            [str(tmp_path / f"{point}.safetensors")]
            if command == "export"
            else ["--allow", "tests."]
        )
        ((code, seen),) = on_ranks(1, poor_parts.lose_checkpoint, point, checkpoint, *arguments)
        said = capfd.readouterr()
        assert "Traceback" not in said.out + said.err, point
        codes.append(code)
        if seen < point:
            break
    assert codes[-1] == 0, said
    assert set(codes) == {0, 2}


def ended_in_words(ends: Sequence[Launched]) -> str:
    text = "".join(one.stderr for one in ends)
    assert "Traceback" not in text, text
    assert all(one.exit_code not in (0, 75) for one in ends), text
    return text


def test_no_file_can_be_opened(reference: Path, tmp_path: Path) -> None:
    said = ended_in_words(launch(tmp_path / "run", 2, "9:files", "checkpoint.max_failures=1"))
    assert "Too many open files" in said
    assert "ulimit -n" in said
    ends = launch(tmp_path / "run", 2, "")
    assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr
    assert_same(tmp_path / "run", reference)


def test_no_memory_is_left(reference: Path, tmp_path: Path) -> None:
    said = ended_in_words(launch(tmp_path / "run", 2, "9:memory", "checkpoint.max_failures=1"))
    assert "memory" in said
    ends = launch(tmp_path / "run", 2, "")
    assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr
    assert_same(tmp_path / "run", reference)


def test_the_disk_becomes_read_only(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if subprocess.run(["mount", "--bind", run, run], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    subprocess.run(["umount", run], check=True)
    try:
        said = ended_in_words(launch(run, 2, "9:readonly", "checkpoint.max_failures=2"))
    finally:
        subprocess.run(["umount", run], check=True)
    assert "Read-only file system" in said
    ends = launch(run, 2, "")
    assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr
    assert_same(run, reference)


def test_the_clock_is_set_back(reference: Path, tmp_path: Path) -> None:
    """In a launch, and between one that is cut off and the next."""
    run = tmp_path / "run"
    train_on_ranks(2, STORM, [f"run.dir={run}", POOR], env={"POOR": "5:clock", "DIE_AT": "0:23"})
    ends = launch(run, 2, "1:clock")
    assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr
    assert_same(run, reference)
    booked = json.loads((run / "outcome.json").read_text())["time"]
    assert all(0 <= seconds < 600 for seconds in booked.values()), booked
