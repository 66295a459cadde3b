"""One launch at a time in a run directory."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.errors import CheckpointError, ConfigError
from harness.rundir.lease import Lease

FAST = {"beat_s": 0.05, "watch_s": 0.4}


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    lease = Lease(tmp_path / "run", **FAST)
    yield lease
    lease.release()


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@contextmanager
def killed_holder(directory: Path) -> Iterator[int]:
    """A process that took the lease and was killed, not reaped yet; its process id."""
    script = (
        f"from harness.rundir.lease import Lease; from pathlib import Path; "
        f"Lease(Path({str(directory)!r})).take(); print('taken', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process.pid


def test_launches_are_counted_and_a_lease_given_back_is_taken_at_once(tmp_path: Path) -> None:
    for number in range(1, 4):
        lease = Lease(tmp_path / "run", watch_s=1e6)
        assert lease.take() == number
        assert lease.message is None
        lease.check()
        lease.release()
        lease.release()
    assert os.listdir(tmp_path / "run/lease") == ["00000003"]


def test_a_second_launch_is_refused_and_told_who_holds_the_run(
    lease: Lease, tmp_path: Path
) -> None:
    lease.take()
    with pytest.raises(
        ConfigError,
        match=(
            rf"launch 1 holds this run and is alive \({os.uname().nodename}, process "
            rf"{os.getpid()}\)\. Stop it first"
        ),
    ) as raised:
        Lease(tmp_path / "run").take()
    assert raised.value.exit_code == 2
    lease.check()


def test_the_lease_of_a_dead_process_is_taken_over_at_once_with_a_message(tmp_path: Path) -> None:
    with killed_holder(tmp_path / "run") as pid:
        pass
    lease = Lease(tmp_path / "run", watch_s=1e6)
    assert lease.take() == 2
    assert lease.message == (
        f"{tmp_path}/run: took over from launch 1 ({os.uname().nodename}, process {pid}), "
        "which did not end in order."
    )
    lease.release()


def test_a_process_that_waits_to_be_reaped_is_dead(tmp_path: Path) -> None:
    with killed_holder(tmp_path / "run"):
        lease = Lease(tmp_path / "run", watch_s=1e6)
        assert lease.take() == 2
        lease.release()


def test_another_process_with_the_same_number_is_not_the_holder(
    lease: Lease, tmp_path: Path
) -> None:
    lease.take()
    lease.release()
    rewrite(tmp_path / "run/lease/00000001", released=False, started="12345")
    other = Lease(tmp_path / "run", watch_s=1e6)
    assert other.take() == 2
    other.release()


def test_a_holder_elsewhere_is_alive_while_its_lease_changes(lease: Lease, tmp_path: Path) -> None:
    lease.take()
    lease._holder |= {"machine": "another boot/pid:[1]", "host": "far"}
    time.sleep(0.2)
    with pytest.raises(ConfigError, match=r"launch 1 holds this run and is alive \(far, process"):
        Lease(tmp_path / "run", **FAST).take()


def test_a_holder_elsewhere_that_does_not_change_is_dead(lease: Lease, tmp_path: Path) -> None:
    lease.take()
    lease.release()
    rewrite(
        tmp_path / "run/lease/00000001", released=False, machine="another boot/pid:[1]", host="far"
    )
    other = Lease(tmp_path / "run", **FAST)
    began = time.monotonic()
    assert other.take() == 2
    assert 0.3 < time.monotonic() - began < 5
    assert "(far, process" in (other.message or "")
    other.release()


def test_clocks_do_not_matter(lease: Lease, tmp_path: Path) -> None:
    lease.take()
    lease.release()
    path = tmp_path / "run/lease/00000001"
    rewrite(path, released=False, machine="another")
    os.utime(path, (2**33, 2**33))  # from the future, and does not change
    other = Lease(tmp_path / "run", **FAST)
    assert other.take() == 2
    other.release()


def test_a_lease_that_is_given_back_while_it_is_watched(lease: Lease, tmp_path: Path) -> None:
    lease.take()
    lease._released.set()
    rewrite(tmp_path / "run/lease/00000001", machine="another")
    lease._holder["machine"] = "another"
    threading.Timer(0.3, lease.release).start()
    other = Lease(tmp_path / "run", beat_s=0.05, watch_s=1.0)
    assert other.take() == 2
    other.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}"])
def test_a_lease_that_was_never_completed_is_dead(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease/00000007").write_bytes(content)
    lease = Lease(tmp_path, **FAST)
    assert lease.take() == 8
    assert "an unknown host" in (lease.message or "")
    lease.release()


def test_whoever_was_fenced_out_is_told_and_gives_nothing_back(
    lease: Lease, tmp_path: Path
) -> None:
    lease.take()
    lease.check()
    rewrite(tmp_path / "run/lease/00000001", machine="another")
    lease._released.set()  # its thread sleeps, as it would
    other = Lease(tmp_path / "run", **FAST)
    assert other.take() == 2
    with pytest.raises(
        CheckpointError, match="launch 2 has taken over the run from this one, launch 1"
    ):
        lease.check()
    lease.release()
    other.check()
    other.release()


def test_a_fenced_out_holder_that_wakes_up_stops_beating(lease: Lease, tmp_path: Path) -> None:
    lease.take()
    (tmp_path / "run/lease/00000002").write_text("{}")
    (tmp_path / "run/lease/00000001").unlink()
    time.sleep(0.3)
    assert os.listdir(tmp_path / "run/lease") == ["00000002"]


def test_a_lease_that_was_removed_is_not_held_any_more(lease: Lease, tmp_path: Path) -> None:
    lease.take()
    (tmp_path / "run/lease/00000001").unlink()
    with pytest.raises(CheckpointError, match="the lease of this launch has been removed"):
        lease.check()
    (tmp_path / "run/lease").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="this launch cannot confirm that it holds the run"):
        lease.check()


def test_of_many_launches_at_once_one_gets_the_run(tmp_path: Path) -> None:
    with killed_holder(tmp_path):
        pass
    leases = [Lease(tmp_path, **FAST) for _ in range(8)]
    taken: list[int] = []
    start = threading.Barrier(8)

    def take(lease: Lease) -> None:
        start.wait()
        try:
            taken.append(lease.take())
        except ConfigError:
            taken.append(0)

    threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [0] * 7 + [2]
    for lease in leases:
        lease.release()


def test_a_launch_that_comes_too_late_is_not_fooled_by_numbers_that_were_cleared_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found launch 1 dead; before it could become number 2, launches 2 and 3 came and cleared
    up.
    """
    Lease(tmp_path)
    lease = Lease(tmp_path, **FAST)

    def meanwhile(number: int, check_leave: object) -> None:
        monkeypatch.undo()
        for _ in range(2):
            other = Lease(tmp_path)
            other.take()
            other.release()

    monkeypatch.setattr(lease, "_inspect", meanwhile)
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease/00000001").write_text('{"released": true}')
    assert lease.take() == 4
    lease.release()


def test_a_directory_that_cannot_be_written_to_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(
        ConfigError, match=r"run: .*\. Make the run directory writable or choose another run\.dir\."
    ):
        Lease(tmp_path / "run").take()
