"""Proofs by force: whatever happens in the midst of a save, the old checkpoint or the new one is
there, whole.

The calls of a save are listed by strace, then a save is killed before each of them that changes
anything: what a kill after a call leaves is what a kill before the next one finds. In the same way
each call is made to fail, and the power is cut after each, with what was not fsynced lost or kept.
"""

import ctypes
import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoint.history import read_history
from harness.checkpoint.read import choose, inspect, list_checkpoints
from harness.checkpoint.retention import Retention
from harness.checkpoint.write import CheckpointStore
from harness.ranks.ranks import Ranks
from tests.checkpoint.examples import (
    LOSS,
    assert_same,
    history_of,
    loaded_from,
    names_in,
    save_steps,
    snapshot,
    store_in,
)
from tests.pool import on_ranks

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
CHANGING = (
    "mkdir",
    "openat",
    "fallocate",
    "pwrite64",
    "fsync",
    "rename",
    "symlink",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "rmdir",
)
KEEP_LAST = 1

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace: apt-get install strace"
)


@dataclass
class Call:
    """A traced call: the `number`-th of its kind by that process."""

    pid: int
    name: str
    number: int
    text: str

    def changes(self) -> bool:
        return self.name != "openat" or "O_CREAT" in self.text


class Saver:
    """The forking process; see tests/torture/saver.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.saver"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._read() == "ready"

    def save(
        self,
        directory: Path,
        scene: "Scene",
        saves: Sequence[Any],
        strace: Sequence[str] = (),
        rank: int | None = None,
    ) -> tuple[list[int], list[Any]]:
        """Let the scene's ranks save under strace (attached to one of them, or to all); process
        ids and how they ended.
        """
        order = {
            "directory": str(directory),
            "before": scene.before,
            "sharded": scene.sharded,
            "saves": list(saves),
            "size": scene.size,
            "keep_last": KEEP_LAST,
            "timeout_s": 5.0,
        }
        self._write(json.dumps(order))
        pids: list[int] = json.loads(self._read())
        tracer = _attach(strace, pids if rank is None else [pids[rank]]) if strace else None
        self._write("go")
        answers: list[Any] = json.loads(self._read())
        if tracer is not None:
            tracer.wait(20)
            assert tracer.stderr is not None
            tracer.stderr.close()
        return pids, answers

    def close(self) -> None:
        self._process.communicate(timeout=20)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def _attach(arguments: Sequence[str], pids: Sequence[int]) -> "subprocess.Popen[str]":
    command = ["strace", *arguments, *(word for pid in pids for word in ("-p", str(pid)))]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    for _ in pids:
        line = tracer.stderr.readline()
        assert "attached" in line, line
    return tracer


@pytest.fixture(scope="module")
def saver() -> Iterator[Saver]:
    saver = Saver()
    yield saver
    saver.close()


@dataclass(frozen=True)
class Scene:
    """What is there before the launch, and what is saved; `before`: by the same launch, unharmed;
    `old`: the step to be found if the save fails.
    """

    name: str
    directory: Path
    saves: list[Any]
    old: int
    before: list[Any] = field(default_factory=list)
    size: int = 2
    sharded: bool = False

    def some(self, calls: list[Call]) -> list[Call]:
        """The calls at which it is disturbed, the last one among them: of sharded state a third,
        whose calls are those of any other.
        """
        return calls[:: -3 if self.sharded else -1][::-1]

    def copy_to(self, directory: Path) -> Path:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(self.directory, directory, symlinks=True)
        return directory

    @property
    def new(self) -> int:
        return int(self.saves[0][0])

    def check(self, directory: Path) -> bool:
        """Assert that the old or the new checkpoint is found, whole, the best one too, and no half
        of any; returns whether it is the new one.
        """
        choice = choose(directory, "auto")
        assert choice.path is not None
        assert choice.skipped == []
        loaded = loaded_from(choice.path, 1, self.size)
        step = loaded.manifest.step
        assert step in (self.old, self.new)
        assert repr(read_history(choice.path)) == repr(history_of(step))
        expected = snapshot(step)
        assert_same(loaded.model, expected.model)
        assert_same(loaded.optimizer, expected.optimizer)
        if loaded.rng is not None:
            assert_same(loaded.rng, {"torch": torch.arange(16, dtype=torch.uint8) + step + 1})
        manifests = [one.manifest for one in list_checkpoints(directory)]
        assert all(manifests), "half of a checkpoint bears its name"
        assert any(one is not None and one.metrics.get("val/loss") == 0.5 for one in manifests), (
            "the best is lost"
        )
        return step == self.new and loaded.manifest.attempt.startswith("attempt")

    def go_on(self, directory: Path) -> None:
        """The next launch: collects leftovers, saves, tidies up."""
        store = store_in(directory, retention=Retention(keep_last=KEEP_LAST))
        store.save(snapshot(self.new + 1), LOSS)
        store.close()
        (report,) = store.reports()
        assert (report.error, report.warning) == (None, None)
        left = names_in(directory, lambda name: not name.startswith("aside-"))
        assert left == ["best", "latest", "step-00000001", f"step-{self.new + 1:08}"]
        assert (
            inspect(directory / "best", verify="full").problems
            == inspect(directory / "latest", verify="full").problems
            == []
        )


@pytest.fixture(
    scope="module",
    params=[
        "a save with retention",
        "a save over another launch's",
        "a launch's second save",
        "a save of sharded state",
    ],
)
def scene(
    request: pytest.FixtureRequest, saver: Saver, tmp_path_factory: pytest.TempPathFactory
) -> Scene:
    directory = tmp_path_factory.mktemp("scene") / "checkpoints"
    store = store_in(directory, retention=Retention(keep_last=100))
    store.save(snapshot(1, metrics={"val/loss": 0.5}), LOSS)
    store.save(snapshot(2, rng={"torch": torch.arange(16, dtype=torch.uint8) + 3}), LOSS)
    store.close()
    assert [report.error for report in store.reports()] == [None, None]
    if request.param in ("a save with retention", "a save of sharded state"):
        sharded = "sharded" in request.param
        return Scene(request.param, directory, [(3, {"val/loss": 0.7})], old=2, sharded=sharded)
    if request.param == "a launch's second save":
        return Scene(request.param, directory, [(4, {"val/loss": 0.7})], old=3, before=[(3, {})])
    return Scene(request.param, directory, [(2, {"val/loss": 0.7})], old=2)


def calls_of(log: str) -> list[Call]:
    """The traced calls in the order of their ends, counted by process and kind as strace counts
    them.
    """
    counts: dict[tuple[int, str], int] = {}
    begun: dict[int, Call] = {}
    calls = []
    for line in log.splitlines():
        match = re.match(r"(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)", line)
        if match is None:  # a signal, or the end of a process
            continue
        pid, name, text = int(match[1]), match[2], match[3]
        if pid in begun:
            call = begun.pop(pid)
            call.text += text
        else:
            counts[pid, name] = counts.get((pid, name), 0) + 1
            call = Call(pid, name, counts[pid, name], text)
        if text.endswith("<unfinished ...>"):
            call.text = call.text.removesuffix("<unfinished ...>").rstrip()
            begun[pid] = call
        else:
            calls.append(call)
    return calls


def listed(
    saver: Saver, scene: Scene, directory: Path, rank: int | None
) -> tuple[list[int], list[Call]]:
    """The calls of an undisturbed save by one rank, or by all."""
    scene.copy_to(directory)
    log = directory.with_name("log")
    pids, answers = saver.save(
        directory,
        scene,
        scene.saves,
        ["-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={','.join(CHANGING)}"],
        rank,
    )
    assert [answer["reports"] for answer in answers] == [[[scene.new, None, None]]] * scene.size
    return pids, [call for call in calls_of(log.read_text()) if call.pid in pids]


@needs_strace
@pytest.mark.parametrize("rank", [0, 1])
def test_a_kill_before_and_after_every_call_of_a_save(
    saver: Saver, scene: Scene, tmp_path: Path, rank: int
) -> None:
    directory = tmp_path / "checkpoints"
    _, calls = listed(saver, scene, directory, rank)
    assert scene.check(directory)
    scene.go_on(directory)
    points = [call for call in calls if call.changes()]
    assert len(points) > (30 if rank == 0 else 6)
    found = []
    for call in scene.some(points):
        scene.copy_to(directory)
        inject = f"inject={call.name}:signal=SIGKILL:when={call.number}"
        _, answers = saver.save(
            directory,
            scene,
            scene.saves,
            ["-e", f"trace={','.join(CHANGING)}", "-e", inject, "-o", "/dev/null"],
            rank,
        )
        assert answers[rank]["exit"] == -9, (call, answers)
        assert answers[1 - rank]["exit"] == 0, (call, answers)
        found.append(scene.check(directory))
        scene.go_on(directory)
    assert found == sorted(found), "the new one was found, and then the old one again"
    assert found[0] is False
    assert found[-1] is (rank == 0)


FAULTS = [
    ("fsync", "EIO"),
    ("pwrite64", "EIO"),
    ("pwrite64", "ENOSPC"),
    ("fallocate", "ENOSPC"),
    ("openat", "EACCES"),
    ("mkdir", "ENOSPC"),
    ("rename", "EIO"),
]


@needs_strace
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_every_call_of_a_save(
    saver: Saver, scene: Scene, tmp_path: Path, rank: int
) -> None:
    """It is told, and costs that save only: the next one, by the same ranks, succeeds."""
    directory = tmp_path / "checkpoints"
    _, calls = listed(saver, scene, directory, rank)
    for name, error in FAULTS:
        for call in scene.some([one for one in calls if one.name == name and one.changes()]):
            scene.copy_to(directory)
            after = tmp_path / f"checkpoints-after-{scene.new}"
            for path in (after, tmp_path / f"checkpoints-after-{scene.new + 1}"):
                shutil.rmtree(path, ignore_errors=True)
            inject = f"inject={name}:error={error}:when={call.number}"
            saves = [*scene.saves, (scene.new + 1, {})]
            _, answers = saver.save(
                directory,
                scene,
                saves,
                ["-e", f"trace={','.join(CHANGING)}", "-e", inject, "-o", "/dev/null"],
                rank,
            )
            assert [answer["exit"] for answer in answers] == [0, 0]
            is_new = scene.check(after)
            for answer in answers:
                (_, failure, warning), later = answer["reports"]
                assert os.strerror(getattr(errno, error)) in (failure or warning), (call, answer)
                assert is_new or failure, (call, answer)
                assert later == [scene.new + 1, None, None], (call, answer)
            assert inspect(directory / f"step-{scene.new + 1:08}", verify="full").problems == []
            assert choose(directory, "auto").skipped == []
            assert names_in(directory, lambda name: name.startswith(".")) == []


# -- power cuts


@dataclass
class Node:
    """A file or directory of the model: what a program sees."""

    kind: str
    data: bytearray = field(default_factory=bytearray)
    entries: "dict[str, Node]" = field(default_factory=dict)
    target: str = ""
    # What has not been made durable: of a file its content as it was at the last fsync, of a
    # directory the changes since.
    durable: bytes = b""
    pending: "list[tuple[Any, ...]]" = field(default_factory=list)
    kept: "dict[str, Node]" = field(default_factory=dict)


def tree_of(path: Path, files: dict[int, Node] | None = None) -> Node:
    """A durable tree like the one at `path`; a file of several names is one node."""
    files = {} if files is None else files
    if path.is_symlink():
        return Node("link", target=os.readlink(path))
    if path.is_dir():
        entries = {one.name: tree_of(one, files) for one in path.iterdir()}
        return Node("directory", entries=dict(entries), kept=dict(entries))
    content = path.read_bytes()
    new = Node("file", data=bytearray(content), durable=content)
    return files.setdefault(path.stat().st_ino, new)


class Disk:
    """Replays calls on a tree below `root`; `contents` are the bytes that files were given, by
    name.
    """

    def __init__(self, root: Path, before: Path, contents: dict[str, bytes]) -> None:
        self._root = str(root)
        self.tree = tree_of(before)
        self._contents = contents

    def replay(self, call: Call) -> None:
        text = call.text
        if call.name == "openat" and "O_CREAT" in text:
            self._change("put", _strings(text)[0], Node("file"))
        elif call.name == "mkdir":
            self._change("put", _strings(text)[0], Node("directory"))
        elif call.name == "symlink":
            target, path = _strings(text)
            self._change("put", path, Node("link", target=target))
        elif call.name in ("link", "linkat"):
            path, other = _strings(text)
            self._change("put", other, self._at(path))
        elif call.name == "rename":
            self._change("move", *_strings(text))
        elif call.name in ("unlink", "rmdir"):
            self._change("drop", _strings(text)[0])
        elif call.name == "unlinkat":
            above = _descriptor(text)
            name = _strings(text)[0]
            self._change("drop", name if name.startswith("/") else f"{above}/{name}")
        elif call.name == "fallocate":
            node, size = self._at(_descriptor(text)), int(re.findall(r", (\d+)\)", text)[0])
            node.data.extend(bytes(size - len(node.data)))
        elif call.name == "pwrite64":
            path = _descriptor(text)
            size, begin = (int(number) for number in re.findall(r", (\d+), (\d+)\)", text)[0])
            self._at(path).data[begin : begin + size] = self._contents[Path(path).name][
                begin : begin + size
            ]
        elif call.name == "fsync":
            node = self._at(_descriptor(text))
            node.durable, node.kept, node.pending = bytes(node.data), dict(node.entries), []

    def crash(self, target: Path, chance: random.Random, kept: float) -> None:
        """Write down what a power cut may leave: of the changes that were not made durable each is
        kept with this probability.
        """
        shutil.rmtree(target, ignore_errors=True)
        self._left: dict[int, bytes] = {}  # of files, by node: the same under each name
        self._write(self.tree, target, chance, kept)

    def _write(self, node: Node, path: Path, chance: random.Random, kept: float) -> None:
        if node.kind == "link":
            path.symlink_to(node.target)
        elif node.kind == "file":
            if id(node) not in self._left:
                self._left[id(node)] = self._content(node, chance, kept)
            path.write_bytes(self._left[id(node)])
        else:
            entries = dict(node.kept)
            for change in node.pending:
                if chance.random() < kept:
                    _apply(entries, *change)
            path.mkdir()
            for name, entry in entries.items():
                self._write(entry, path / name, chance, kept)

    def _content(self, node: Node, chance: random.Random, kept: float) -> bytes:
        if bytes(node.data) == node.durable or chance.random() < kept:
            return bytes(node.data)
        durable = node.durable if node.data.startswith(node.durable) else b""
        new = bytes(node.data[len(durable) :])
        return chance.choice(
            [node.durable, durable + bytes(len(new)), durable + new[: len(new) // 2]]
        )

    def _change(self, kind: str, path: str, what: Any = None) -> None:
        above = self._at(os.path.dirname(path))
        if kind == "move":
            assert os.path.dirname(what) == os.path.dirname(path), (
                "all renames of a save stay in one directory"
            )
            what = os.path.basename(what)
        change = (kind, os.path.basename(path), what)
        _apply(above.entries, *change)
        above.pending.append(change)

    def _at(self, path: str) -> Node:
        node = self.tree
        for name in Path(path).relative_to(self._root).parts:
            node = node.entries[name]
        return node


def _apply(entries: dict[str, Node], kind: str, name: str, what: Any) -> None:
    if kind == "put":
        entries[name] = what
    elif kind == "drop":
        entries.pop(name, None)
    elif name in entries:
        entries[what] = entries.pop(name)


def _strings(text: str) -> list[str]:
    return re.findall(r'"([^"]*)"', text)


def _descriptor(text: str) -> str:
    match = re.match(r"[\w-]+<([^>]*)>", text)
    assert match, text
    return match[1]


@needs_strace
def test_a_power_cut_after_every_call_of_a_save(saver: Saver, scene: Scene, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    _, calls = listed(saver, scene, directory, None)
    contents = {
        path.name: path.read_bytes() for path in (directory / f"step-{scene.new:08}").iterdir()
    }
    disk = Disk(directory, tmp_path / "checkpoints-before", contents)
    chance = random.Random(0)
    after = tmp_path / "after"
    found: list[tuple[int, float, bool]] = []
    for number, call in enumerate([None, *(one for one in calls if one.changes())]):
        if call is not None:
            disk.replay(call)
        if scene.sharded and call is not None and call.name not in ("rename", "fsync"):
            continue
        for kept in (0.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.9, 0.1):
            disk.crash(after, chance, kept)
            found.append((number, kept, scene.check(after)))
    last = found[-1][0]
    assert all(is_new for number, _, is_new in found if number == last), (
        "an announced checkpoint was lost"
    )
    assert not any(is_new for number, _, is_new in found if number == 0)
    scene.go_on(after)
    disk.crash(after, chance, 1.0)
    assert names_in(after) == names_in(directory)


# -- full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)],
        check=False,
        capture_output=True,
    ).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield path
    ctypes.CDLL(None).umount2(str(path).encode(), 2)  # MNT_DETACH


def resize(disk: Path, size_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(disk)], check=True)


def used_bytes(disk: Path) -> int:
    usage = shutil.disk_usage(disk)
    return usage.total - usage.free


def save_on_a_full_disk(directory: Path, step: int) -> list[Any]:
    """A save on any number of ranks, the preflight deceived: (error, warning)."""
    ranks = Ranks.join(20.0)
    original, shutil.disk_usage = (
        shutil.disk_usage,
        lambda path: type("Usage", (), {"free": 2**50})(),
    )  # type: ignore[assignment,misc]
    try:
        store: CheckpointStore = store_in(directory, ranks, Retention(keep_last=1))
        store.save(
            snapshot(
                step,
                model={f"{index}.w": torch.full((2000,), float(step)) for index in range(6)},
                history=history_of(1),
            ),
            LOSS,
        )
        store.close()
    finally:
        shutil.disk_usage = original
    return [(one.error, one.warning) for one in store.reports()]


@pytest.mark.parametrize("size", [1, 2])
def test_a_disk_that_is_full_at_any_point(small_disk: Path, size: int) -> None:
    directory = small_disk / "checkpoints"
    on_ranks(size, save_on_a_full_disk, directory, 1)
    before = used_bytes(small_disk)
    on_ranks(size, save_on_a_full_disk, small_disk / "scratch", 1)
    needed = used_bytes(small_disk) - before
    shutil.rmtree(small_disk / "scratch")
    outcomes = []
    page = os.sysconf("SC_PAGE_SIZE")
    for step, room in enumerate(range(0, needed + 2 * page, page), start=2):
        resize(small_disk, used_bytes(small_disk) + room)
        reports = on_ranks(size, save_on_a_full_disk, directory, step)
        assert len({error for ((error, _),) in reports}) == 1
        error = reports[0][0][0]
        outcomes.append(error is None)
        assert error is None or "No space left on device" in error
        chosen = choose(directory, "auto")
        assert chosen.skipped == []
        assert chosen.path is not None
        resize(small_disk, 4 * 2**20)
        if error is None:
            assert chosen.path.name == f"step-{step:08}"
        store_in(directory).close()
        assert names_in(directory, lambda name: name.startswith(".")) == []
    assert outcomes == sorted(outcomes)
    assert outcomes[0] is False
    assert outcomes[-1] is True


def test_a_run_goes_on_when_the_disk_has_room_again(small_disk: Path) -> None:
    save_steps(small_disk / "checkpoints", 1)
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 16384))
    ((error, _),) = save_on_a_full_disk(small_disk / "checkpoints", 2)
    assert "No space left on device" in error
    (small_disk / "ballast").unlink()
    assert save_on_a_full_disk(small_disk / "checkpoints", 3) == [(None, None)]
