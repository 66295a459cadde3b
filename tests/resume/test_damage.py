"""Going on where something is wrong with the files, or with a rank that reads them."""

import errno
import os
import platform
import re
import shutil
import signal
import time
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint import stored
from harness.checkpoint.read import read_manifest
from harness.config.read import read_config
from harness.ranks.ranks import Ranks
from harness.training import resume
from harness.training.resume import agree_on_checkpoint
from tests.pool import on_ranks, train_on_ranks
from tests.resume.parts import Storm
from tests.resume.test_exact import STORM, finish, launch

_read_into = stored._read_into
OVERRIDES = ("network._target_=tests.resume.test_damage.Reader", "checkpoint.keep_last=3")


class Reader(Storm):
    """A network whose rank READS fails HOW as soon as weights are read for it by peers."""

    def __init__(self, width: int = 400) -> None:
        super().__init__(width)
        how = os.environ.get("HOW")
        if how in ("killed", "unreadable"):
            stored._TRY_FROM_BYTES = 0
            stored._CHUNK_BYTES = 2**16
        if how is not None and os.environ.get("RANK") == os.environ["READS"]:
            stored._read_into = _misread if how == "otherwise" else _fail
            platform.node = lambda: "another"


def _fail(file: FileIO, begin: int, target: memoryview) -> None:
    if os.environ["HOW"] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.EIO, "Input/output error", file.name)


def _misread(file: FileIO, begin: int, target: memoryview) -> None:
    _read_into(file, begin, target)
    target[0] ^= 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with checkpoints at the steps 7, 14 and 21."""
    run = tmp_path_factory.mktemp("damage") / "run"
    finish(run, 2, *OVERRIDES, "stop.budget.steps=21")
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def flip(path: Path, where: float) -> None:
    with path.open("r+b") as file:
        file.seek(round(where * (path.stat().st_size - 1)))
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 16]))


def choose_after_each_damage(run: Path) -> list[Any]:
    ranks = Ranks.join(20.0)
    config = read_config(STORM, [f"run.dir={run}", *OVERRIDES])
    newest = run / "checkpoints/step-00000021"
    found = []
    for name in sorted(read_manifest(newest).files):
        for where in (0.3, 0.999):
            ranks.decide(lambda: flip(newest / name, where))  # noqa: B023 - called at once
            start = agree_on_checkpoint(config, ranks)
            found.append([name, Path(start.checkpoint or "").name, start.notes])
            ranks.wait_for_all()
            ranks.decide(lambda: flip(newest / name, where))  # noqa: B023 - called at once
    whole = agree_on_checkpoint(config, ranks)
    return [*found, ["", Path(whole.checkpoint or "").name, whole.notes]]


def test_a_damaged_byte_in_any_file_sends_all_ranks_to_the_same_older_checkpoint(run: Path) -> None:
    one, other = on_ranks(2, choose_after_each_damage, run)
    assert one == other
    assert len({name for name, _, _ in one}) == 12
    for name, chosen, notes in one[:-1]:
        assert chosen == "step-00000014", name
        assert [note for note in notes if "warning" in note and name in note] != []
    assert one[-1][1] == "step-00000021"


def test_damage_that_another_rank_finds_is_told_once_and_the_run_goes_on(run: Path) -> None:
    for step in ("21", "14"):
        path = run / f"checkpoints/step-000000{step}"
        for number in (1, 2):  # those that each of the ranks verifies
            flip(path / f"optimizer-0000{number}-of-00002.safetensors", 0.5)
    ends = launch(run, 2, *OVERRIDES, "stop.budget.steps=24")
    assert [one.exit_code for one in ends] == [0, 0]
    told = [line for line in ends[0].stdout.splitlines() if "skipped, not valid" in line]
    assert len(told) == 2
    assert "step-00000021" in told[0]
    assert "step-00000014" in told[1]
    assert ends[0].stdout.count("going on from step-00000012") == 1
    assert "skipped" not in ends[1].stderr + ends[1].stdout


@pytest.mark.parametrize(
    ("how", "codes", "words"),
    [
        ("killed", [1, -9], "lost rank 1"),
        ("unreadable", [2, 2], "cannot be read: .*Input/output error"),
    ],
)
def test_a_rank_that_fails_while_it_reads_for_its_peers_ends_the_launch_in_words(
    run: Path, how: str, codes: list[int], words: str
) -> None:
    overrides = (f"run.dir={run}", *OVERRIDES, "stop.budget.steps=24")
    ends = train_on_ranks(2, STORM, overrides, env={"DIE_AT": "", "HOW": how, "READS": "1"})
    said = "".join(one.stderr for one in ends)
    assert [one.exit_code for one in ends] == codes, said
    assert len(re.findall(words, said)) == 1, said
    assert "Traceback" not in said


def resume_slowly(run: Path) -> str:
    """Hashes of one rank that take four times as long as the ranks wait for each other."""
    ranks = Ranks.join(1.0)
    if ranks.rank == 1:
        original = resume.find_damage
        resume.find_damage = lambda *args: time.sleep(4.0) or original(*args)  # type: ignore[func-returns-value] # sleeps first
    config = read_config(STORM, [f"run.dir={run}", *OVERRIDES])
    return Path(agree_on_checkpoint(config, ranks).checkpoint or "").name


def test_hashes_may_take_longer_than_the_ranks_wait_for_each_other(run: Path) -> None:
    assert on_ranks(2, resume_slowly, run) == ["step-00000021"] * 2


def test_machines_that_see_other_bytes_in_a_checkpoint_end_the_launch(run: Path) -> None:
    overrides = (f"run.dir={run}", *OVERRIDES, "stop.budget.steps=24")
    env = {"DIE_AT": "", "READS": "1", "HOW": "otherwise"}
    ends = train_on_ranks(2, STORM, overrides, env=env)
    said = "".join(one.stderr for one in ends)
    assert [one.exit_code for one in ends] == [2, 2], said
    assert said.count("not the same on all ranks once read: the machines see different files") == 1
